"""What lies beside a photo: its caption, `NAME.txt`, and its mask, `NAME.mask.png`."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from dreambooth_jax.data import images
from dreambooth_jax.data.colour import WHITE, ImageError

CAPTION, MASK = ".txt", ".mask.png"
FIELDS = ("subject", "identifier", "class_noun")  # what a caption may have in braces
_BLACK = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What photos are to have beside them.

    captions: "prompt" (none are read), "files" (each has one), "optional".
    masks: "none", "files", "alpha" (the photo's own transparency).
    word: the subject's, which captions of photos must name and those of class images must not;
      "auto" while it is not chosen.
    of_subject: photos of the subject, not class images.
    """

    captions: str = "prompt"
    masks: str = "none"
    word: str = "auto"
    of_subject: bool = True


NOTHING = Wanted()


def owner(name: str) -> str | None:
    """The name without ending of the photo that a file belongs to; None for other files."""
    for ending in (MASK, CAPTION):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return None


def read_caption(photo: pathlib.Path, wanted: Wanted) -> str | None:
    """The line in the photo's caption file, braces and all; None where there need not be one.

    Raises:
      ImageError: there is no such line, or it does not name the subject.
    """
    file = photo.with_name(photo.stem + CAPTION)
    if wanted.captions == "prompt" or (wanted.captions == "optional" and not file.exists()):
        return None
    noun = "subject" if wanted.of_subject else "class_noun"
    example = f"write one line, such as 'a photo of a {{{noun}}} in the garden'"
    try:
        text = file.read_text("utf-8-sig")
    except FileNotFoundError:
        raise ImageError(f"caption {file.name} is missing", example) from None
    except (UnicodeDecodeError, OSError) as error:
        raise ImageError(
            f"caption {file.name} is no UTF-8 text ({error})", "save it anew"
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        found = f"has {len(lines)} lines" if lines else "is empty"
        raise ImageError(f"caption {file.name} {found}", example)
    told = f"caption {file.name}, {lines[0]!r},"
    unknown = [name for name in re.findall(r"{(\w*)}", lines[0]) if name not in FIELDS]
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ImageError(f"{told} has {{{unknown[0]}}}", f"only {known} can be replaced")
    if wanted.of_subject and not names(lines[0], wanted.word):
        own = "" if wanted.word == "auto" else f", or the word {wanted.word!r} itself,"
        remedy = f"write {{subject}} or {{identifier}}{own} where the subject is named"
        raise ImageError(f"{told} does not name the subject", remedy)
    if not wanted.of_subject and names(lines[0], wanted.word):
        raise ImageError(f"{told} names the subject", "write {class_noun}: class images are others")
    return lines[0]


def names(caption: str, word: str) -> bool:
    """Whether a caption has the subject's word in it, or braces where it will be."""
    if "{subject}" in caption or "{identifier}" in caption:
        return True
    alone = rf"(?<!\w){re.escape(word.lower())}(?!\w)"
    return word != "auto" and re.search(alone, caption.lower()) is not None


def filled(caption: str, words: Mapping[str, str]) -> str:
    """The caption with `FIELDS` in braces replaced by these words; other braces stay."""
    return re.sub(r"{(\w+)}", lambda found: words[found[1]], caption)


def read_mask(photo: pathlib.Path, wanted: Wanted) -> np.ndarray | None:
    """The photo's mask as uint8 [H, W], upright, 255 where the subject is; None if none is wanted.

    Raises:
      ImageError: there is none, it does not fit the photo, or shows nothing.
    """
    if wanted.masks == "none":
        return None
    white = images.read(photo, background=WHITE)
    if wanted.masks == "alpha":
        # round((α·c + (255 − α)·b) / 255) for b = 255 and b = 0: they differ by 255 − α exactly.
        mask = 255 - (white - images.read(photo, background=_BLACK))[..., 0]
        if mask.min() == 255:
            remedy = "save it as PNG without its background, or write --config.subject.masks=files"
            raise ImageError("nothing of it is transparent", remedy)
        name = "transparency"
    else:
        file = photo.with_name(photo.stem + MASK)
        name = f"mask {file.name}"
        if not file.exists():
            raise ImageError(
                f"{name} is missing", "make it: white where the subject is, black else"
            )
        try:
            grey = images.read(file, background=_BLACK).mean(-1)
        except (ImageError, OSError) as error:
            raise ImageError(f"{name}: {error}", "save it as a PNG in black and white") from error
        mask = np.rint(grey).astype(np.uint8)
        if mask.shape != white.shape[:2]:
            found = "×".join(map(str, mask.shape[::-1]))
            size = "×".join(map(str, white.shape[1::-1]))
            raise ImageError(
                f"{name} is {found}, the photo {size} (both upright)", "make it of the same size"
            )
    if images.cover_mask(mask, 64).max() < 0.5:
        remedy = "crop the photo around the subject, or mend the mask (white is the subject)"
        raise ImageError(f"the square in the middle shows nothing of its {name}", remedy)
    return mask
