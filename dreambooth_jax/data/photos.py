"""Photos at the sizes of the stages: the same window at every size, with its prompt and mask."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax import rng
from dreambooth_jax.data import annotations, images
from dreambooth_jax.data.audit import Audit, Finding, Photo
from dreambooth_jax.data.colour import RGB, WHITE

# A random crop shows at least 1/1.15 = 87 % of what the centre crop shows each way: the subject,
# which people put near the middle, stays in the picture.
MAX_ZOOM = 1.15


class Window(NamedTuple):
    """Which part of a photo a row shows, in relative coordinates: the same at every size."""

    photo: str
    fy: float
    fx: float
    zoom: float


@dataclasses.dataclass(frozen=True)
class Photos:
    """N photos with K crops each: `pixels[size]` is uint8 [N·K, size, size, 3], row n·K + k.

    Row i shows `windows[i]` at every size, so a cascade gets pairs; k = 0 is the centre crop.
    `prompts` has the prompt of each photo by its name; `masks[size]`, float32 [N·K, size, size] in
    [0, 1], how much of each pixel shows the subject: empty where photos have no masks.
    """

    photos: tuple[str, ...]
    pixels: dict[int, np.ndarray]
    windows: tuple[Window, ...]
    audit: Audit
    prompts: Mapping[str, str]
    masks: dict[int, np.ndarray]

    @property
    def row_prompts(self) -> list[str]:
        """The prompt of each row."""
        return [self.prompts[window.photo] for window in self.windows]

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


def cut(
    report: Audit,
    *,
    prompt: str,
    words: Mapping[str, str],
    sizes: Sequence[int],
    crops: int = 1,
    seed: int = 0,
    max_photos: int | None = None,
    background: RGB = WHITE,
) -> Photos:
    """What an audit kept, cut at each of `sizes` from the original.

    A photo's prompt is its caption, with `words` (`annotations.FIELDS`) put in, or `prompt`. Crops
    after the first are at a random place and zoom that depend on (seed, photo name, k) alone; one
    that would show nothing of the photo's mask is the centre instead.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes is {sizes!r}; expected one or more sides in pixels, such as [64]")
    if crops < 1:
        raise ValueError(f"crops is {crops}; expected 1 (the centre) or more per photo")
    report = _first(report, max_photos)
    windows: list[Window] = []
    pixels: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    masks: dict[int, list[np.ndarray]] = {size: [] for size in sizes}
    for photo in report.kept:
        original = images.read(photo.path, background=background)  # one at a time: they are large
        mask = annotations.read_mask(photo.path, report.wanted)
        for window in _windows(photo.path.name, crops=crops, seed=seed, mask=mask):
            windows.append(window)
            where: dict[str, Any] = {"crop": (window.fy, window.fx), "zoom": window.zoom}
            for size in sizes:
                pixels[size].append(images.cover(original, size, **where))
                if mask is not None:
                    masks[size].append(images.cover_mask(mask, size, **where))
    return Photos(
        photos=tuple(photo.path.name for photo in report.kept),
        pixels={size: np.stack(rows) for size, rows in pixels.items()},
        windows=tuple(windows),
        audit=report,
        prompts={photo.path.name: _prompt(photo, prompt, words) for photo in report.kept},
        masks={size: np.stack(rows) for size, rows in masks.items() if rows},
    )


def _prompt(photo: Photo, prompt: str, words: Mapping[str, str]) -> str:
    return prompt if photo.caption is None else annotations.filled(photo.caption, words)


def _windows(name: str, *, crops: int, seed: int, mask: np.ndarray | None) -> list[Window]:
    """The centre, then crops − 1 random windows; none changes when photos or crops are added."""
    windows = [Window(name, 0.5, 0.5, 1.0)]
    for k in range(1, crops):
        draw = rng.generator(seed, "crop", name, k)
        fy, fx = draw.uniform(size=2)
        window = Window(name, float(fy), float(fx), float(draw.uniform(1, MAX_ZOOM)))
        shown = mask is None or images.cover_mask(mask, 64, crop=window[1:3], zoom=window.zoom)
        windows.append(window if np.max(shown) >= 0.5 else windows[0])
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
