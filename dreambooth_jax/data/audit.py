"""The audit of a folder of photos: every file, its faults, and the action taken."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from dreambooth_jax import files
from dreambooth_jax.data import annotations, images, looks, shapes
from dreambooth_jax.data.annotations import NOTHING, Wanted
from dreambooth_jax.data.colour import RGB, WHITE, ImageError, Note
from dreambooth_jax.data.images import Size

Outcome = Literal["kept", "skipped", "ignored", "wrong"]

# Suffixes of files beside photos that are no photos.
_TEXTS = (".caption", ".csv", ".json", ".jsonl", ".md", ".npz", ".toml", ".txt", ".yaml", ".yml")
_LISTED = 5  # names in a warning
FEWEST = 3  # photos below which a run is warned: Ruiz et al. 2022 have 3 to 5
_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx")
_FOLDER_HINT = "expected a folder that holds the photos themselves, 3 to 5 of them"
_CLASS_HINT = "expected a folder that holds the class images themselves, for prior.images"


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


@dataclasses.dataclass(frozen=True)
class Audit:
    """The photos of a folder that serve at `size`, and a finding for each thing that is odd.

    Where there are several `shapes`, each photo is cut to the nearest.
    """

    folder: pathlib.Path
    size: Size
    kept: tuple[Photo, ...]
    findings: tuple[Finding, ...]
    wanted: Wanted = NOTHING
    shapes: tuple[Size, ...] = ()

    @property
    def skipped(self) -> tuple[Finding, ...]:
        """Files that look as if they were meant to be photos and cannot be used."""
        return tuple(finding for finding in self.findings if finding.outcome == "skipped")

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """Photos without the caption or mask that they must have."""
        return tuple(finding for finding in self.findings if finding.outcome == "wrong")

    @property
    def ignored(self) -> tuple[Finding, ...]:
        """Files that are no photos (.DS_Store), sub-folders, photos beyond `max_photos`."""
        return tuple(finding for finding in self.findings if finding.outcome == "ignored")

    @property
    def warnings(self) -> list[str]:
        """Findings to look at before hours of training."""
        told = []
        if self.wanted.of_subject and len(self.kept) < FEWEST:
            told.append(
                f"{_count(len(self.kept), 'photo')} in {self.folder}: 3 to 5 teach a subject, one "
                "teaches a picture."
            )
        blank = self._noted(looks.BLANK)
        if blank and self.wanted.of_subject:
            told.append(
                f"{_count(len(blank), 'photo')} of {len(self.kept)} in {self.folder} show "
                f"{looks.BLANK} in what is trained on: {', '.join(blank[:_LISTED])}. Remove what "
                "does not show the subject, or write "
                "--config.subject.crop='(fy, fx)', the place of the subject."
            )
        if twice := self._noted(looks.TWICE):
            told.append(
                f"{_count(len(twice), 'photo')} in {self.folder} may be copies of others, which "
                f"count twice then: {', '.join(twice[:_LISTED])}. Remove them if they are."
            )
        for finding in self.findings:
            held = _pictures_in(finding.path) if finding.path.is_dir() else 0
            if held > len(self.kept) and self.wanted.of_subject:
                told.append(
                    f"{finding.path} holds {held} pictures, more than {self.folder} itself, and is "
                    "not searched. If those are the photos, write its name instead."
                )
        return [_shown(line) for line in told]

    def __str__(self) -> str:
        """The report: one line for each file, in the order of their names.

        Class images can be many: of those only the files that are not used as they are.
        """
        rows = [
            (
                photo.path.name,
                "kept",
                "; ".join([self._cut(photo), *map(str, photo.notes), *_told(photo)]),
            )
            for photo in self.kept
            if self.wanted.of_subject
        ]
        rows += [
            (finding.path.name, finding.outcome, str(finding))
            for finding in (*self.skipped, *self.ignored, *self.wrong)
        ]
        sizes = ", ".join(map(images.told, self.shapes or (self.size,)))
        shown = {name: name if name.isprintable() else ascii(name) for name, _, _ in rows}
        width = max((len(name) for name in shown.values()), default=0)
        head = (
            f"{_count(len(self.kept), 'photo')} kept, {len(self.skipped)} skipped, "
            f"{len(self.ignored)} ignored{f', {len(self.wrong)} wrong' if self.wrong else ''} "
            f"in {self.folder} (for {sizes} pixels)"
        )
        lines = [f"  {how:<8} {shown[name]:<{width}}  {_shown(text)}" for name, how, text in rows]
        return "\n".join([head, *(line for _, line in sorted(zip(rows, lines, strict=True)))])

    def _noted(self, text: str) -> list[str]:
        """The names of photos with such a note."""
        return [
            photo.path.name
            for photo in self.kept
            if any(text in f"{note.found}: {note.done}" for note in photo.notes)
        ]

    def _cut(self, photo: Photo) -> str:
        """A photo's size and, where there are several shapes, its own and what of it is shown."""
        size = images.told((photo.height, photo.width))
        if not self.shapes or photo.shape is None:
            return size
        return f"{size}, cut to {images.told(photo.shape)}: {photo.shown:.0%} of it"


class AuditError(ValueError):
    """A folder that cannot be trained on; the text is the whole report, `audit` is it as data."""

    def __init__(self, message: str, audit: Audit | None = None) -> None:
        super().__init__(message)
        self.audit = audit


def min_side(size: int) -> int:
    """Pixels that the short side of a photo must have to serve at `size`: half of it, at least 16.

    Enlarging by more than 2 shows the model blur and teaches it that the subject is blurred.
    """
    return max(16, (size + 1) // 2)


def least(size: int | Size) -> Size:
    """Height and width that a photo must have to serve at `size`: `min_side` of each."""
    height, width = images.sides(size)
    return min_side(height), min_side(width)


def audit(
    folder: str | os.PathLike[str],
    *,
    size: int | Size,
    strict: bool = False,
    background: RGB = WHITE,
    wanted: Wanted = NOTHING,
    several: Sequence[Size] = (),
) -> Audit:
    """Decode every file of `folder` (not of its sub-folders) and report on all of them at once.

    size: a side in pixels, or height and width; with `several` shapes each photo's is the one that
    cuts least off it. Skipped is what does not decode, is smaller than `least(size)`, or repeats
    the pixels of another file. AuditError when no photo is left, when a caption or mask that is
    `wanted` is not as it must be or, if `strict`, when any file was skipped.
    """
    hint = _FOLDER_HINT if wanted.of_subject else _CLASS_HINT
    folder = _check_folder(folder, hint)
    size = images.sides(size)
    sizes = tuple(several) or (size,)
    kept: list[Photo] = []
    findings: list[Finding] = []
    known = looks.Known()
    first: dict[str, str] = {}  # sha256 → name of the photo that has these pixels
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    photos = {path.stem for path in paths if annotations.owner(path.name) is None}
    masks = looks.masks(path for path in paths if annotations.owner(path.name) is None)
    for path in paths:
        if path in masks or annotations.owner(path.name) in photos or path.name == annotations.LIST:
            findings += _beside(path, wanted)
            continue
        if path.is_dir() and not path.name.startswith(".") and not wanted.of_subject:
            findings.append(Finding(path, "sub-folder", "of another class, if any", "ignored"))
            continue
        result, pixels = _inspect(path, sizes=sizes, background=background, wanted=wanted)
        if isinstance(result, Photo) and result.sha256 in first:
            same = f"same picture as {first[result.sha256]}"
            result = Finding(path, same, "not used twice", "skipped")
        if isinstance(result, Photo):
            first[result.sha256] = path.name
            result = _compared(result, pixels, known) if wanted.of_subject else result
            on_white = pixels if background == WHITE else None
            result, wrong = _annotated(result, wanted, result.shape or size, on_white)
            findings += [*wrong, *(Finding(path, n.found, n.done, "kept") for n in result.notes)]
            kept.append(result)
        else:
            findings.append(result)
    report = Audit(folder, size, tuple(kept), tuple(findings), wanted, tuple(several))
    if not kept:
        raise AuditError(f"No usable photo.\n{report}\n{hint}", report)
    if report.wrong:
        count = _count(len(report.wrong), "caption or mask", "captions or masks")
        raise AuditError(f"{count} not as needed.\n{report}", report)
    if strict and report.skipped:
        raise AuditError(
            f"{_count(len(report.skipped), 'file')} cannot be used, and strict is on.\n{report}\n"
            "Remove or fix what is skipped, or set strict=False to continue without it",
            report,
        )
    return report


def _compared(photo: Photo, pixels: np.ndarray | None, known: looks.Known) -> Photo:
    """The photo, with a note where it looks like an earlier one."""
    same = None if pixels is None else known.like(photo.path.name, pixels)
    note = Note(f"looks like {same}", looks.TWICE)
    return dataclasses.replace(photo, notes=(*photo.notes, note)) if same else photo


def _beside(path: pathlib.Path, wanted: Wanted) -> list[Finding]:
    """Returns the findings about a caption or mask beside a photo; none if it is read.

    What belongs to a photo by its name; else it is a mask by its looks.
    """
    several, owner = path.name == annotations.LIST, annotations.owner(path.name)
    mask = not several and (owner is None or annotations.is_mask(path.name))
    if mask and not annotations.is_read_as_mask(path.name):
        of = path.stem if owner is None else owner
        return [Finding(path, "looks like a mask", f"read is {of}{annotations.MASK}", "ignored")]
    if (wanted.masks == "files") if mask else (wanted.captions != "prompt"):
        return []
    what, key = ("mask", "masks") if mask else ("caption", "captions")
    how = f"not read; --config.subject.{key}=files reads it" if wanted.of_subject else "not read"
    return [Finding(path, f"{what}{'s of photos' if several else ' of a photo'}", how, "ignored")]


def _annotated(
    photo: Photo, wanted: Wanted, size: Size, on_white: np.ndarray | None
) -> tuple[Photo, list[Finding]]:
    """The photo with its caption and mask, and findings where they are not as they must be."""
    wrong = []
    try:
        photo = dataclasses.replace(photo, caption=annotations.read_caption(photo.path, wanted))
    except ImageError as error:
        wrong.append(Finding(photo.path, error.problem, error.remedy, "wrong"))
    try:
        mask = annotations.read_mask(photo.path, wanted, size=size, on_white=on_white)
        if mask is not None:
            covered = float(mask.mean() / 255)
            photo = dataclasses.replace(photo, mask=_digest(mask), covered=covered)
    except ImageError as error:
        wrong.append(Finding(photo.path, error.problem, error.remedy, "wrong"))
    return photo, wrong


def _told(photo: Photo) -> list[str]:
    """A photo's caption and mask in the report."""
    caption = [] if photo.caption is None else [f"caption {annotations.shown(photo.caption)}"]
    covered = "" if photo.covered is None else f" that covers {photo.covered:.0%}"
    return [*caption, *([] if photo.mask is None else [f"with a mask{covered}"])]


def _check_folder(folder: str | os.PathLike[str], hint: str) -> pathlib.Path:
    name = os.fspath(folder)
    if "://" in name:
        raise AuditError(f"{name} is a remote address; copy the photos to a local folder first")
    path = files.local(name)
    if not path.exists():
        near = path.parent
        while not near.exists():
            near = near.parent
        raise AuditError(f"No such folder: {name} (there is {near.absolute()}); {hint}")
    if not path.is_dir():
        packed = path.suffix.lower() in (".zip", ".gz", ".tar", ".tgz", ".7z", ".rar")
        what = "Unpack it and write the folder" if packed else f"Did you mean {path.parent}?"
        raise AuditError(f"{name} is a file; {hint}. {what}")
    return path


def _no_photo(path: pathlib.Path) -> Finding | None:
    """The finding about what is no picture, by its name and kind."""
    if path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES:
        return Finding(path, "file of the system, or hidden", "not looked at", "ignored")
    if path.is_dir():
        held = _pictures_in(path)
        told = f"sub-folder with {_count(held, 'picture')}" if held else "sub-folder"
        return Finding(path, told, "not searched; move photos up to use them", "ignored")
    if path.is_symlink() and not path.exists():
        return Finding(path, f"link to nothing ({path.readlink()})", "fix the link", "skipped")
    if not path.is_file():  # opening a pipe would block without end
        return Finding(path, "not a regular file", "not opened", "skipped")
    if path.suffix.lower() in _TEXTS:
        return Finding(path, "not an image: a text or data", "not used", "ignored")
    return None


def _inspect(
    path: pathlib.Path, *, sizes: Sequence[Size], background: RGB, wanted: Wanted
) -> tuple[Photo | Finding, np.ndarray | None]:
    """One entry of the folder as a usable photo, or as the finding that says why it is none.

    The pixels of a photo come with it: it may be large, and is decoded once.
    """
    if refused := _no_photo(path):
        return refused, None
    try:
        pixels, notes = images.decode(path, background=background)
    except ImageError as error:
        return Finding(path, error.problem, error.remedy, "skipped"), None
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Finding(path, f"cannot be opened ({reason})", "check the file", "skipped"), None
    height, width = pixels.shape[:2]
    size = sizes[shapes.nearest((height, width), sizes)]
    needed = least(size)
    if height < needed[0] or width < needed[1]:
        square = needed[0] == needed[1]
        told = f"{needed[0]} px on the short side" if square else f"{images.told(needed)} px"
        problem = f"too small ({width}×{height}; needs at least {told})"
        return Finding(path, problem, "use a larger copy", "skipped"), None
    notes = (*notes, *looks.notes(pixels, size=size, wanted=wanted))
    return Photo(path, _digest(pixels), width, height, notes, shape=size), pixels


def _pictures_in(folder: pathlib.Path) -> int:
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


def _shown(text: str) -> str:
    """The text with escapes for what a terminal would obey: it has names of files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {nouns or f'{noun}s'}"
