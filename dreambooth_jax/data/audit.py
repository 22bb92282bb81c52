"""What is in a folder of photos: every file, what is odd about it, and what was done."""

import dataclasses
import hashlib
import os
import pathlib
from typing import Literal

import numpy as np

from dreambooth_jax.data import annotations, images
from dreambooth_jax.data.annotations import NOTHING, Wanted
from dreambooth_jax.data.colour import RGB, WHITE, ImageError, Note

Outcome = Literal["kept", "skipped", "ignored", "wrong"]

_SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__macosx")
_FOLDER_HINT = "expected a folder that holds the photos themselves, 3 to 5 of them"
_CLASS_HINT = "expected a folder that holds the class images themselves, for prior.images"


@dataclasses.dataclass(frozen=True)
class Photo:
    """A usable photo: its file, the SHA-256 of its upright RGB pixels, its upright size in pixels.

    Nothing else of the file travels on: no place, no camera, no date. `caption` is the line of its
    caption file as it stands there, `mask` the SHA-256 of its mask's pixels; None if not wanted.
    """

    path: pathlib.Path
    sha256: str
    width: int
    height: int
    notes: tuple[Note, ...] = ()
    caption: str | None = None
    mask: str | None = None


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
    """The photos of a folder that serve at `size`, and a finding for each thing that is odd."""

    folder: pathlib.Path
    size: int
    kept: tuple[Photo, ...]
    findings: tuple[Finding, ...]
    wanted: Wanted = NOTHING

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
        """Files nobody meant as photos (.DS_Store), sub-folders, photos beyond `max_photos`."""
        return tuple(finding for finding in self.findings if finding.outcome == "ignored")

    def __str__(self) -> str:
        """The report: one line for each file, in the order of their names.

        Class images can be many: of those only the files that are not used as they are.
        """
        rows = [
            (
                photo.path.name,
                "kept",
                "; ".join([f"{photo.width}×{photo.height}", *map(str, photo.notes), *_told(photo)]),
            )
            for photo in self.kept
            if self.wanted.of_subject
        ]
        rows += [
            (finding.path.name, finding.outcome, str(finding))
            for finding in (*self.skipped, *self.ignored, *self.wrong)
        ]
        shown = {name: name if name.isprintable() else ascii(name) for name, _, _ in rows}
        width = max((len(name) for name in shown.values()), default=0)
        head = (
            f"{_count(len(self.kept), 'photo')} kept, {len(self.skipped)} skipped, "
            f"{len(self.ignored)} ignored{f', {len(self.wrong)} wrong' if self.wrong else ''} "
            f"in {self.folder} (for {self.size}×{self.size} pixels)"
        )
        lines = [f"  {outcome:<8} {shown[name]:<{width}}  {text}" for name, outcome, text in rows]
        return "\n".join([head, *(line for _, line in sorted(zip(rows, lines, strict=True)))])


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


def audit(
    folder: str | os.PathLike[str],
    *,
    size: int,
    strict: bool = False,
    background: RGB = WHITE,
    wanted: Wanted = NOTHING,
) -> Audit:
    """Decode every file of `folder` (not of its sub-folders) and report on all of them at once.

    Skipped is what does not decode, has a side below `min_side(size)` pixels, or repeats the pixels
    of another file. AuditError when no photo is left, when a caption or mask that is `wanted` is
    not as it must be or, if `strict`, when any file was skipped.
    """
    folder = _check_folder(folder, _FOLDER_HINT if wanted.of_subject else _CLASS_HINT)
    kept: list[Photo] = []
    findings: list[Finding] = []
    first: dict[str, str] = {}  # sha256 → name of the photo that has these pixels
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    photos = {path.stem for path in paths if annotations.owner(path.name) is None}
    for path in paths:
        if annotations.owner(path.name) in photos:
            findings += _beside(path, wanted)
            continue
        if path.is_dir() and not path.name.startswith(".") and not wanted.of_subject:
            findings.append(Finding(path, "sub-folder", "of another class, if any", "ignored"))
            continue
        result = _inspect(path, size=size, background=background)
        if isinstance(result, Photo) and result.sha256 in first:
            result = Finding(
                path, f"same picture as {first[result.sha256]}", "not used twice", "skipped"
            )
        if isinstance(result, Photo):
            first[result.sha256] = path.name
            result, wrong = _annotated(result, wanted)
            findings += wrong
            kept.append(result)
            findings += [Finding(path, note.found, note.done, "kept") for note in result.notes]
        else:
            findings.append(result)
    report = Audit(folder, size, tuple(kept), tuple(findings), wanted)
    if not kept:
        hint = _FOLDER_HINT if wanted.of_subject else _CLASS_HINT
        raise AuditError(f"No usable photo.\n{report}\n{hint}", report)
    if report.wrong:
        count = _count(len(report.wrong), "caption or mask", "captions or masks")
        raise AuditError(f"{count} not as needed.\n{report}", report)
    if strict and report.skipped:
        raise AuditError(
            f"{_count(len(report.skipped), 'file')} cannot be used, and strict is on.\n{report}\n"
            "Remove or mend what is skipped, or set strict=False to go on without it",
            report,
        )
    return report


def _beside(path: pathlib.Path, wanted: Wanted) -> list[Finding]:
    """What is to be said of a caption or mask beside a photo: nothing when it is read."""
    mask = path.name.lower().endswith(annotations.MASK)
    if (wanted.masks == "files") if mask else (wanted.captions != "prompt"):
        return []
    what, key = ("mask", "masks") if mask else ("caption", "captions")
    how = f"not read; --config.subject.{key}=files reads it" if wanted.of_subject else "not read"
    return [Finding(path, f"{what} of a photo", how, "ignored")]


def _annotated(photo: Photo, wanted: Wanted) -> tuple[Photo, list[Finding]]:
    """The photo with its caption and mask, and findings where they are not as they must be."""
    wrong = []
    try:
        photo = dataclasses.replace(photo, caption=annotations.read_caption(photo.path, wanted))
    except ImageError as error:
        wrong.append(Finding(photo.path, error.problem, error.remedy, "wrong"))
    try:
        mask = annotations.read_mask(photo.path, wanted)
        photo = dataclasses.replace(photo, mask=None if mask is None else _digest(mask))
    except ImageError as error:
        wrong.append(Finding(photo.path, error.problem, error.remedy, "wrong"))
    return photo, wrong


def _told(photo: Photo) -> list[str]:
    """A photo's caption and mask in the report."""
    caption = [] if photo.caption is None else [f"caption {photo.caption!r}"]
    return [*caption, *([] if photo.mask is None else ["with a mask"])]


def _check_folder(folder: str | os.PathLike[str], hint: str) -> pathlib.Path:
    name = os.fspath(folder)
    if "://" in name:
        raise AuditError(f"{name} is a remote address; copy the photos to a local folder first")
    path = pathlib.Path(name).expanduser()
    if not path.exists():
        near = path.parent
        while not near.exists():
            near = near.parent
        raise AuditError(f"No such folder: {name} (there is {near.absolute()}); {hint}")
    if not path.is_dir():
        raise AuditError(f"{name} is a file; {hint}. Did you mean {path.parent}?")
    return path


def _inspect(path: pathlib.Path, *, size: int, background: RGB) -> Photo | Finding:
    """One entry of the folder as a usable photo, or as the finding that says why it is none."""
    if path.name.startswith(".") or path.name.lower() in _SYSTEM_FILES:
        return Finding(path, "file of the system, or hidden", "not looked at", "ignored")
    if path.is_dir():
        return Finding(path, "sub-folder", "not searched; move photos up to use them", "ignored")
    if path.is_symlink() and not path.exists():
        return Finding(path, f"link to nothing ({path.readlink()})", "mend the link", "skipped")
    if not path.is_file():  # opening a pipe would wait for ever
        return Finding(path, "not a regular file", "not opened", "skipped")
    try:
        pixels, notes = images.decode(path, background=background)
    except ImageError as error:
        return Finding(path, error.problem, error.remedy, "skipped")
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Finding(path, f"cannot be opened ({reason})", "check the file", "skipped")
    height, width = pixels.shape[:2]
    if min(height, width) < min_side(size):
        return Finding(
            path,
            f"too small ({width}×{height}; needs at least {min_side(size)} px on the short side)",
            "use a larger copy",
            "skipped",
        )
    notes = (*notes, *_shape_notes(pixels, size=size))
    return Photo(path, _digest(pixels), width, height, notes)


def _shape_notes(pixels: np.ndarray, *, size: int) -> list[Note]:
    """What the owner should know about a photo that is used all the same."""
    notes = []
    short, long = sorted(pixels.shape[:2])
    if short < size:
        notes.append(Note(f"smaller than {size} px", f"enlarged ×{size / short:.2g}"))
    if 2 * short < long:
        notes.append(Note("long and narrow", f"a square crop shows {short / long:.0%} of it"))
    if (pixels == pixels[0, 0]).all():
        notes.append(Note("one colour all over", "kept; is it the right file?"))
    return notes


def _digest(pixels: np.ndarray) -> str:
    """SHA-256 of shape and pixels: equal for the same picture under another name or file format."""
    digest = hashlib.sha256(np.asarray(pixels.shape, "<i8").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {nouns or f'{noun}s'}"
