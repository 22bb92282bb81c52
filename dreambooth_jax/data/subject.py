"""The subject: its photos at the sizes of the stages, and the two prompts that name it."""

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dreambooth_jax import rng
from dreambooth_jax.data import images
from dreambooth_jax.data.audit import Audit, Finding, audit
from dreambooth_jax.data.colour import RGB, WHITE

# A random crop shows at least 1/1.15 = 87 % of what the centre crop shows each way: the subject,
# which people put near the middle, stays in the picture.
MAX_ZOOM = 1.15

# Written with a vowel, spoken with a consonant; and the other way round.
_SPOKEN_CONSONANT = (
    "eu", "ewe", "once", "one", "ufo", "uk", "uni", "usa", "usb", "use", "usu", "uten", "uv",
)  # fmt: skip
_SPOKEN_VOWEL = ("heir", "honest", "honor", "honour", "hour")
_UN_PREFIX = ("unid", "unim", "unin")  # unidentified, unimpressed, uninvited: "un" + a vowel


class Window(NamedTuple):
    """Which part of a photo a row shows, in relative coordinates: the same at every size."""

    photo: str
    fy: float
    fx: float
    zoom: float


@dataclasses.dataclass(frozen=True)
class Words:
    """What the subject is called, and the two prompts that name it and its class."""

    identifier: str
    class_noun: str
    instance_prompt: str
    class_prompt: str

    @classmethod
    def of(cls, *, identifier: str, class_noun: str) -> "Words":
        """The words with the prompts that follow from them (`prompts`)."""
        return cls(identifier, class_noun, *prompts(identifier=identifier, class_noun=class_noun))


@dataclasses.dataclass(frozen=True)
class Subject(Words):
    """N photos with K crops each: `pixels[size]` is uint8 [N·K, size, size, 3], row n·K + k.

    Row i shows `windows[i]` at every size, so a cascade gets pairs; k = 0 is the centre crop.
    """

    photos: tuple[str, ...]
    pixels: dict[int, np.ndarray]
    windows: tuple[Window, ...]
    audit: Audit

    def sizes(self, size: int) -> np.ndarray:
        """Of each row of `pixels[size]` what `Stage.whole` is of a whole picture: float32 [N·K, 6].

        Height and width of the photo; rows and columns cropped off at the top and at the left once
        the photo is scaled; height and width of the row.
        """
        photos = {photo.path.name: photo for photo in self.audit.kept}
        told = []
        for window in self.windows:
            height, width = photos[window.photo].height, photos[window.photo].width
            scale = window.zoom * size / min(height, width)
            top, left = window.fy * (height * scale - size), window.fx * (width * scale - size)
            told.append([height, width, round(top), round(left), size, size])
        return np.array(told, np.float32)


def read(
    folder: str | os.PathLike[str],
    *,
    class_noun: str,
    identifier: str,
    sizes: Sequence[int],
    crops: int = 1,
    seed: int = 0,
    strict: bool = False,
    max_photos: int | None = None,
    background: RGB = WHITE,
) -> Subject:
    """The photos of `folder` cut at each of `sizes` from the original, and the prompts for them.

    Crops after the first are at a random place and zoom that depend on (seed, photo name, k) alone.
    AuditError as `audit`; ValueError for words or numbers that make no sense.
    """
    instance_prompt, class_prompt = prompts(identifier=identifier, class_noun=class_noun)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes is {sizes!r}; expected one or more sides in pixels, such as [64]")
    if crops < 1:
        raise ValueError(f"crops is {crops}; expected 1 (the centre) or more per photo")
    report = audit(folder, size=max(sizes), strict=strict, background=background)
    report = _first(report, max_photos)

    names = tuple(photo.path.name for photo in report.kept)
    windows = [window for name in names for window in _windows(name, crops=crops, seed=seed)]
    rows: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    for n, photo in enumerate(report.kept):
        original = images.read(photo.path, background=background)  # one at a time: they are large
        for window in windows[n * crops : (n + 1) * crops]:
            for size, cut in rows.items():
                position = (window.fy, window.fx)
                cut.append(images.cover(original, size, crop=position, zoom=window.zoom))
    return Subject(
        photos=names,
        pixels={size: np.stack(cut) for size, cut in rows.items()},
        windows=tuple(windows),
        identifier=identifier,
        class_noun=class_noun,
        instance_prompt=instance_prompt,
        class_prompt=class_prompt,
        audit=report,
    )


def prompts(*, identifier: str, class_noun: str) -> tuple[str, str]:
    """Instance and class prompt, such as ("a zib owl", "an owl") (Ruiz et al. 2022, §3.2)."""
    for name, words in (("identifier", identifier), ("class_noun", class_noun)):
        if not words or words != " ".join(words.split()):
            raise ValueError(
                f"{name} is {words!r}; expected words with single spaces between them, such as "
                + ("'zib'" if name == "identifier" else "'dog' or 'stuffed animal'")
            )
        first, _, rest = words.partition(" ")
        if rest and first.lower() in ("a", "an", "the"):
            raise ValueError(
                f"{name} is {words!r}; the prompts add the article themselves: write {rest!r}"
            )
    instance = f"{identifier} {class_noun}"
    return f"{article(instance)} {instance}", f"{article(class_noun)} {class_noun}"


def article(phrase: str) -> str:
    """The indefinite article before `phrase`, "a" or "an", by how English speaks its first word."""
    word = phrase.lower()
    if word.startswith(_SPOKEN_VOWEL):
        return "an"
    if word.startswith(_SPOKEN_CONSONANT) and not word.startswith(_UN_PREFIX):
        return "a"
    return "an" if word[:1] in set("aeiou") else "a"


def _windows(name: str, *, crops: int, seed: int) -> list[Window]:
    """The centre, then crops − 1 random windows; none changes when photos or crops are added."""
    windows = [Window(name, 0.5, 0.5, 1.0)]
    for k in range(1, crops):
        draw = rng.generator(seed, "crop", name, k)
        fy, fx = draw.uniform(size=2)
        windows.append(Window(name, float(fy), float(fx), float(draw.uniform(1, MAX_ZOOM))))
    return windows


def _first(report: Audit, max_photos: int | None) -> Audit:
    """The audit with at most `max_photos` kept, in the order of their names; the rest is listed."""
    if max_photos is None:
        return report
    if max_photos < 1:
        raise ValueError(f"max_photos is {max_photos}; expected at least 1, or None for all")
    beyond = report.kept[max_photos:]
    why = f"beyond max_photos={max_photos}"
    extra = [Finding(photo.path, why, "not used", "ignored") for photo in beyond]
    dropped = {photo.path for photo in beyond}
    findings = [finding for finding in report.findings if finding.path not in dropped]
    return dataclasses.replace(report, kept=report.kept[:max_photos], findings=(*findings, *extra))
