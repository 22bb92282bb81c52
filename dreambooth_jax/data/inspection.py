"""One file of a folder of photos: a usable photo, or the finding that says why it is none."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np

from dreambooth_jax.data import annotations, images, looks, shapes
from dreambooth_jax.data.annotations import Wanted
from dreambooth_jax.data.colour import RGB, ImageError, Note
from dreambooth_jax.data.images import Decoded, Size

Outcome = Literal["kept", "skipped", "ignored", "wrong"]

# Suffixes of files beside photos that are no photos.
_TEXTS = (".caption", ".csv", ".json", ".jsonl", ".md", ".npz", ".toml", ".txt", ".yaml", ".yml")
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx")


@dataclasses.dataclass(frozen=True)
class Photo:
    """A usable photo: its file, the SHA-256 of its upright RGB pixels, its upright size in pixels.

    Nothing else of the file travels on: no place, no camera, no date. `caption` is the line of its
    caption file as it stands there, `mask` the SHA-256 of its mask's pixels, `covered` the share of
    them that is white; None if not wanted. `shape` is the one it is cut to, the nearest of those
    that there are.
    """

    path: pathlib.Path
    sha256: str
    width: int
    height: int
    notes: tuple[Note, ...] = ()
    caption: str | None = None
    mask: str | None = None
    covered: float | None = None
    shape: Size | None = None

    @property
    def shown(self) -> float:
        """The share of the photo that its first crop shows."""
        return 1.0 if self.shape is None else shapes.kept((self.height, self.width), self.shape)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report: what was found in a file and what was done; "kept" ones are notes.

    "wrong" is a photo whose caption or mask is not as it must be: none is trained on without.
    """

    path: pathlib.Path
    problem: str
    action: str
    outcome: Outcome

    def __str__(self) -> str:
        return f"{self.problem}: {self.action}"


# Called with a photo that is kept, its pixels uint8 [H, W, 3] and its mask uint8 [H, W], if any.
Take = Callable[[Photo, np.ndarray, np.ndarray | None], None]


def min_side(size: int) -> int:
    """Pixels that the short side of a photo must have to serve at `size`: half of it, at least 16.

    Enlarging by more than 2 shows the model blur and teaches it that the subject is blurred.
    """
    return max(16, (size + 1) // 2)


def least(size: int | Size) -> Size:
    """Height and width that a photo must have to serve at `size`: `min_side` of each."""
    height, width = images.sides(size)
    return min_side(height), min_side(width)


class Inspection:
    """The photos of a folder that are kept so far, and the findings; each file is decoded once."""

    def __init__(
        self,
        paths: Iterable[pathlib.Path],
        *,
        sizes: Sequence[Size],
        background: RGB,
        wanted: Wanted,
        take: Take | None,
    ) -> None:
        """paths: those that no other one's name has as its caption or mask."""
        self.kept: list[Photo] = []
        self.findings: list[Finding] = []
        self.masks = looks.Masks(paths, background=background)
        self._sizes, self._wanted, self._take = sizes, wanted, take
        self._known = looks.Known()
        self._first: dict[str, str] = {}  # sha256 → name of the photo that has these pixels

    def look(self, path: pathlib.Path) -> None:
        """Decodes one entry of the folder, and keeps it or tells why not."""
        decoded = self._decoded(path)
        if isinstance(decoded, Finding):
            self.findings.append(decoded)
            return
        result = self._photo(path, decoded)
        if isinstance(result, Finding):
            self.findings.append(result)
            return
        self._first[result.sha256] = path.name
        if self._wanted.of_subject:
            result = self._compared(result, decoded.pixels)
        result, mask, wrong = _annotated(result, self._wanted, decoded)
        self.findings += wrong
        self.findings += [Finding(path, n.found, n.done, "kept") for n in result.notes]
        self.kept.append(result)
        if self._take is not None and not wrong:
            self._take(result, decoded.pixels, mask)

    def _decoded(self, path: pathlib.Path) -> Decoded | Finding:
        if refused := _no_photo(path):
            return refused
        try:
            return self.masks.decode(path)
        except ImageError as error:
            return Finding(path, error.problem, error.remedy, "skipped")
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            return Finding(path, f"cannot be opened ({reason})", "check the file", "skipped")

    def _photo(self, path: pathlib.Path, decoded: Decoded) -> Photo | Finding:
        """A picture as a photo that is large enough and new, or the finding about it."""
        pixels = decoded.pixels
        height, width = pixels.shape[:2]
        size = self._sizes[shapes.nearest((height, width), self._sizes)]
        needed = least(size)
        if height < needed[0] or width < needed[1]:
            square = needed[0] == needed[1]
            told = f"{needed[0]} px on the short side" if square else f"{images.told(needed)} px"
            problem = f"too small ({width}×{height}; needs at least {told})"
            return Finding(path, problem, "use a larger copy", "skipped")
        digest = _digest(pixels)
        if digest in self._first:
            same = f"same picture as {self._first[digest]}"
            return Finding(path, same, "not used twice", "skipped")
        notes = (*decoded.notes, *looks.notes(pixels, size=size, wanted=self._wanted))
        return Photo(path, digest, width, height, notes, shape=size)

    def _compared(self, photo: Photo, pixels: np.ndarray) -> Photo:
        """The photo, with a note where it looks like an earlier one."""
        same = self._known.like(photo.path.name, pixels)
        note = Note(f"looks like {same}", looks.TWICE)
        return dataclasses.replace(photo, notes=(*photo.notes, note)) if same else photo


def _annotated(
    photo: Photo, wanted: Wanted, decoded: Decoded
) -> tuple[Photo, np.ndarray | None, list[Finding]]:
    """The photo with its caption, its mask, and findings where they are not as they must be."""
    mask, wrong = None, []
    try:
        photo = dataclasses.replace(photo, caption=annotations.read_caption(photo.path, wanted))
    except ImageError as error:
        wrong.append(Finding(photo.path, error.problem, error.remedy, "wrong"))
    try:
        size = photo.shape or (photo.height, photo.width)
        mask = annotations.read_mask(photo.path, wanted, size=size, decoded=decoded)
        if mask is not None:
            covered = float(mask.mean() / 255)
            photo = dataclasses.replace(photo, mask=_digest(mask), covered=covered)
    except ImageError as error:
        wrong.append(Finding(photo.path, error.problem, error.remedy, "wrong"))
    return photo, mask, wrong


def _no_photo(path: pathlib.Path) -> Finding | None:
    """The finding about what is no picture, by its name and kind."""
    if path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES:
        return Finding(path, "file of the system, or hidden", "not looked at", "ignored")
    if path.is_dir():
        held = pictures_in(path)
        told = f"sub-folder with {counted(held, 'picture')}" if held else "sub-folder"
        return Finding(path, told, "not searched; move photos up to use them", "ignored")
    if path.is_symlink() and not path.exists():
        return Finding(path, f"link to nothing ({path.readlink()})", "fix the link", "skipped")
    if not path.is_file():  # opening a pipe would block without end
        return Finding(path, "not a regular file", "not opened", "skipped")
    if path.suffix.lower() in _TEXTS:
        return Finding(path, "not an image: a text or data", "not used", "ignored")
    return None


def pictures_in(folder: pathlib.Path) -> int:
    """Counts the files of a folder, not of its sub-folders, that have a picture's ending."""
    try:
        return sum(path.suffix.lower() in images.SUFFIXES for path in folder.iterdir())
    except OSError:  # of another user
        return 0


def _digest(pixels: np.ndarray) -> str:
    """SHA-256 of shape and pixels: equal for the same picture under another name or file format."""
    digest = hashlib.sha256(np.asarray(pixels.shape, "<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def counted(number: int, noun: str, nouns: str = "") -> str:
    """A number with its noun: "1 photo", "2 photos"."""
    return f"{number} {noun}" if number == 1 else f"{number} {nouns or f'{noun}s'}"
