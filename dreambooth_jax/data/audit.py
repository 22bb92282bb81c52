"""The audit of a folder of photos: every file, its faults, and the action taken."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from dreambooth_jax import files
from dreambooth_jax.data import annotations, images, inspection, looks
from dreambooth_jax.data.annotations import NOTHING, Wanted
from dreambooth_jax.data.colour import RGB, WHITE
from dreambooth_jax.data.images import Size
from dreambooth_jax.data.inspection import Finding, Inspection, Photo, Take, counted

_LISTED = 5  # names in a warning
FEWEST = 3  # photos below which a run is warned: Ruiz et al. 2022 have 3 to 5
_FOLDER_HINT = "expected a folder that holds the photos themselves, 3 to 5 of them"
_CLASS_HINT = "expected a folder that holds the class images themselves, for prior.images"


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
                f"{counted(len(self.kept), 'photo')} in {self.folder}: 3 to 5 teach a subject, one "
                "teaches a picture."
            )
        blank = self._noted(looks.BLANK)
        if blank and self.wanted.of_subject:
            told.append(
                f"{counted(len(blank), 'photo')} of {len(self.kept)} in {self.folder} show "
                f"{looks.BLANK} in what is trained on: {', '.join(blank[:_LISTED])}. Remove what "
                "does not show the subject, or write "
                "--config.subject.crop='(fy, fx)', the place of the subject."
            )
        if twice := self._noted(looks.TWICE):
            told.append(
                f"{counted(len(twice), 'photo')} in {self.folder} may be copies of others, which "
                f"count twice then: {', '.join(twice[:_LISTED])}. Remove them if they are."
            )
        for finding in self.findings:
            held = inspection.pictures_in(finding.path) if finding.path.is_dir() else 0
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
            f"{counted(len(self.kept), 'photo')} kept, {len(self.skipped)} skipped, "
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


def audit(
    folder: str | os.PathLike[str],
    *,
    size: int | Size,
    strict: bool = False,
    background: RGB = WHITE,
    wanted: Wanted = NOTHING,
    several: Sequence[Size] = (),
    take: Take | None = None,
) -> Audit:
    """Decode every file of `folder` (not of its sub-folders) and report on all of them at once.

    size: a side in pixels, or height and width; with `several` shapes each photo's is the one that
    cuts least off it. `take` is called with each photo that is kept, its pixels and its mask while
    they are there: every file is decoded once, one at a time, since they are large. Skipped is what
    does not decode, is smaller than `least(size)`, or repeats the pixels of another file.
    AuditError when no photo is left, when a caption or mask that is `wanted` is not as it must be
    or, if `strict`, when any file was skipped.
    """
    hint = _FOLDER_HINT if wanted.of_subject else _CLASS_HINT
    folder = _check_folder(folder, hint)
    size = images.sides(size)
    sizes = tuple(several) or (size,)
    paths = sorted(folder.iterdir(), key=lambda path: path.name)
    alone = [path for path in paths if annotations.owner(path.name) is None]
    photos = {path.stem for path in alone}
    seen = Inspection(alone, sizes=sizes, background=background, wanted=wanted, take=take)
    for path in paths:
        owned = annotations.owner(path.name) in photos or path.name == annotations.LIST
        if owned or path in seen.masks:
            seen.findings += _beside(path, wanted)
        elif path.is_dir() and not path.name.startswith(".") and not wanted.of_subject:
            done = "of another class, if any"
            seen.findings.append(Finding(path, "sub-folder", done, "ignored"))
        else:
            seen.look(path)
    kept, findings = seen.kept, seen.findings
    report = Audit(folder, size, tuple(kept), tuple(findings), wanted, tuple(several))
    if not kept:
        raise AuditError(f"No usable photo.\n{report}\n{hint}", report)
    if report.wrong:
        count = counted(len(report.wrong), "caption or mask", "captions or masks")
        raise AuditError(f"{count} not as needed.\n{report}", report)
    if strict and report.skipped:
        raise AuditError(
            f"{counted(len(report.skipped), 'file')} cannot be used, and strict is on.\n{report}\n"
            "Remove or fix what is skipped, or set strict=False to continue without it",
            report,
        )
    return report


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


def _shown(text: str) -> str:
    """The text with escapes for what a terminal would obey: it has names of files."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
