"""Beside a photo: its caption, `NAME.txt` or a line of `metadata.jsonl`; its `NAME.mask.png`."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from dreambooth_jax import untrusted
from dreambooth_jax.data import cropping, images
from dreambooth_jax.data.colour import ImageError
from dreambooth_jax.data.images import Decoded

CAPTION, MASK, LIST = ".txt", ".mask.png", "metadata.jsonl"
CAPTIONS = (CAPTION, ".caption")
_TEXTS = ("text", "caption", "prompt")  # keys of a caption in a line of the list
_LIKE_A_MASK = re.compile(
    r"(?P<photo>.+?)[-_.]mask(label)?\.(png|jpe?g|webp|bmp|tiff?)", re.IGNORECASE
)
_LONGEST = 2**16  # bytes of a caption
PAINTED = ("files", "alpha")  # masks that lie beside a photo or in it
FIELDS = ("subject", "identifier", "class_noun")  # what a caption may have in braces
_BLACK = (0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The kinds of files that photos are to have beside them.

    captions: "prompt" (none are read), "files" (each has one), "optional".
    masks: "none", "files", "alpha" (the photo's own transparency).
    word: the subject's, which captions of photos must name and those of class images must not;
      "auto" while it is not chosen.
    of_subject: photos of the subject, not class images.
    crop: (fy, fx) of the photos' first crop, or (); see `cropping.placed`.
    """

    captions: str = "prompt"
    masks: str = "none"
    word: str = "auto"
    of_subject: bool = True
    crop: tuple[float, ...] = ()


NOTHING = Wanted()


def owner(name: str) -> str | None:
    """The name without ending of the photo that a file belongs to; None for other files.

    Captions are NAME.txt, NAME.caption or NAME.jpg.txt, masks NAME.mask.png; what looks like a mask
    of another program, NAME-masklabel.png or NAME_mask.jpg, belongs to its photo as well.
    """
    lower = name.lower()
    if lower.endswith(MASK):
        return name[: -len(MASK)]
    for ending in CAPTIONS:
        if lower.endswith(ending):
            rest = pathlib.PurePath(name[: -len(ending)])
            return rest.stem if rest.suffix.lower() in images.SUFFIXES else rest.name
    found = _LIKE_A_MASK.fullmatch(name)
    return found["photo"] if found else None


def is_mask(name: str) -> bool:
    """Returns True if a file that belongs to a photo is a mask, or looks like one."""
    return not name.lower().endswith(CAPTIONS)


def is_read_as_mask(name: str) -> bool:
    """Returns True for a name that masks are read from."""
    return name.lower().endswith(MASK)


def caption_file(photo: pathlib.Path) -> pathlib.Path | None:
    """The file with the photo's caption, in whatever case its ending is written."""
    wanted = [f"{stem}{ending}" for ending in CAPTIONS for stem in (photo.stem, photo.name)]
    there = {path.name: path for path in photo.parent.iterdir() if owner(path.name) == photo.stem}
    lower = {name.lower(): path for name, path in there.items()}
    exact = [there[name] for name in wanted if name in there]
    return next(iter(exact + [lower[n.lower()] for n in wanted if n.lower() in lower]), None)


def listed(photo: pathlib.Path) -> str | None:
    """The photo's caption in `metadata.jsonl`, the list that data sets of the hub have.

    Raises:
      FileError: the list cannot be read, or has no text for the photo.
    """
    file = photo.with_name(LIST)
    if not file.exists():
        return None
    for number, line in enumerate(untrusted.text(file).splitlines(), 1):
        if not line.strip():
            continue
        entry = untrusted.parsed(line, f"{file}, line {number}")
        if isinstance(entry, dict) and entry.get("file_name") == photo.name:
            found = next((entry[key] for key in _TEXTS if key in entry), None)
            if not isinstance(found, str):
                raise untrusted.FileError(
                    f"{file}, line {number} has no text under {' or '.join(_TEXTS)}"
                )
            return found
    return None


def _caption_of(photo: pathlib.Path) -> tuple[str, str | None]:
    """Returns the place of a photo's caption and the whole text there, None without one."""
    file = caption_file(photo)
    if file is None:
        return LIST, listed(photo)
    return file.name, untrusted.text(file, limit=_LONGEST, encoding="utf-8-sig")


def read_caption(photo: pathlib.Path, wanted: Wanted) -> str | None:
    """The line in the photo's caption file, braces and all; None where there need not be one.

    Raises:
      ImageError: there is no such line, or it does not name the subject.
    """
    if wanted.captions == "prompt":
        return None
    noun = "subject" if wanted.of_subject else "class_noun"
    example = f"write one line, such as 'a photo of a {{{noun}}} in the garden'"
    try:
        name, text = _caption_of(photo)
    except (OSError, untrusted.FileError) as error:
        raise ImageError(f"caption: {untrusted.in_short(error)}", example) from None
    if text is None and wanted.captions == "optional":
        return None
    if text is None:
        raise ImageError(f"caption {photo.stem}{CAPTION} is missing", example)
    file = photo.with_name(name)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) != 1:
        found = f"has {len(lines)} lines" if lines else "is empty"
        raise ImageError(f"caption {file.name} {found}", example)
    told = f"caption {file.name}, {shown(lines[0])},"
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


def shown(caption: str) -> str:
    """A caption in a message: one that is long in short."""
    return repr(caption if len(caption) <= 200 else f"{caption[:150]} … {caption[-40:]}")


def names(caption: str, word: str) -> bool:
    """Returns True if a caption has the identifier in it, or braces in its place."""
    if "{subject}" in caption or "{identifier}" in caption:
        return True
    alone = rf"(?<!\w){re.escape(word.lower())}(?!\w)"
    return word != "auto" and re.search(alone, caption.lower()) is not None


def filled(caption: str, words: Mapping[str, str]) -> str:
    """The caption with `FIELDS` in braces replaced by these words; other braces stay."""
    return re.sub(r"{(\w+)}", lambda found: words[found[1]], caption)


def shape(size: int | images.Size) -> str:
    """The shape of a crop in a message: "square", or "64×96 crop"."""
    height, width = images.sides(size)
    return "square" if height == width else f"{images.told(size)} crop"


def read_mask(
    photo: pathlib.Path,
    wanted: Wanted,
    *,
    size: int | images.Size = 64,
    decoded: Decoded | None = None,
) -> np.ndarray | None:
    """The photo's mask as uint8 [H, W], upright, 255 where the subject is; None if none is wanted.

    size: a side, or height and width, whose shape the crop has.
    decoded: the photo, where it is decoded already.

    Raises:
      ImageError: there is none, it does not fit the photo, or shows nothing.
    """
    if wanted.masks == "none":
        return None
    mask, name = painted_mask(photo, wanted.masks, decoded=decoded)
    thumbnail = images.thumbnail(size, 64)
    place = cropping.placed(wanted.crop, mask, thumbnail)
    if images.cover_mask(mask, thumbnail, crop=place).max() < 0.5:
        where = f"at subject.crop = {wanted.crop}" if wanted.crop else "around the subject"
        remedy = "write another subject.crop, or fix the mask (white is the subject)"
        raise ImageError(f"the {shape(size)} {where} shows nothing of its {name}", remedy)
    return mask


def painted_mask(
    photo: pathlib.Path, masks: str, *, decoded: Decoded | None = None
) -> tuple[np.ndarray, str]:
    """A photo's mask uint8 [H, W], upright, not white all over, and its name in messages.

    masks: "files" or "alpha".
    decoded: the photo, where it is decoded already.

    Raises:
      ImageError: there is none, or it does not fit the photo.
    """
    decoded = images.decode(photo) if decoded is None else decoded
    if masks == "alpha":
        mask = decoded.alpha
        if mask is None or mask.min() == 255:
            remedy = "save it as PNG without its background, or write --config.subject.masks=files"
            raise ImageError("nothing of it is transparent", remedy)
        name = "transparency"
    else:
        file = photo.with_name(photo.stem + MASK)
        name = f"mask {file.name}"
        if not file.exists():
            like = [p.name for p in photo.parent.iterdir() if owner(p.name) == photo.stem]
            other = next((name for name in sorted(like) if is_mask(name)), None)
            remedy = "make it: white where the subject is, black else"
            raise ImageError(f"{name} is missing", f"rename {other} to it" if other else remedy)
        try:
            grey = images.read(file, background=_BLACK).mean(-1)
        except (ImageError, OSError) as error:
            raise ImageError(f"{name}: {error}", "save it as a PNG in black and white") from error
        mask = np.rint(grey).astype(np.uint8)
        upright = decoded.pixels.shape[:2]
        if mask.shape != upright:
            found, needed = (images.told(x) for x in (mask.shape[:2], upright))
            turned = mask.shape == upright[::-1]
            remedy = "make it of the same size"
            if turned:
                remedy = "the photo is stored turned (EXIF orientation): paint on the upright one"
            raise ImageError(f"{name} is {found}, the photo {needed} (both upright)", remedy)
    if mask.max() == 1:
        raise ImageError(f"{name} has values 0 and 1", "save it with 0 (off) and 255 (the subject)")
    if mask.min() == 255:
        raise ImageError(f"{name} is white all over", "make it black where the subject is not")
    return mask, name
