"""Photos of a subject as the page takes them in: decoded and written anew, with captions, masks."""

import dataclasses
import io
import re
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dreambooth_jax import files, untrusted
from dreambooth_jax.data import annotations, audit, images
from dreambooth_jax.data.annotations import Wanted
from dreambooth_jax.data.colour import ImageError
from dreambooth_jax.studio.places import RefusedError

MOST = 50  # photos of a subject
MB = 2**20
LARGEST = 50 * MB  # bytes of a file
THUMBNAIL = 256  # pixels
_SMALL = 2**21  # pixels, up to which a picture without loss stays one
_LOSSLESS = (b"\x89PNG", b"BM", b"II*\0", b"MM\0*", b"GIF8")
_OURS = re.compile(r"photo_(\d{2,})", re.IGNORECASE)  # a stem; some disks take no notice of case
_LONGEST = 1000  # characters of a caption
# Pillow's limits on bombs are settings of the whole process, and a large photo takes much memory.
_DECODING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Shown:
    """A photo as the page shows it: file name, size in pixels, caption, mask, what the audit found.

    changed: a number that differs when photo or mask do. usable: trained on.
    """

    name: str
    width: int
    height: int
    caption: str
    has_mask: bool
    findings: tuple[str, ...]
    usable: bool
    changed: int


def take(folder: Path, content: bytes, *, called: str) -> str:
    """Decodes an uploaded photo and writes it as `photo_NN`; returns the name it got.

    What a file holds besides pixels (place, camera, time) is not written. Transparency becomes the
    photo's mask.

    Raises:
      RefusedError: it is no photo, or there are too many.
    """
    if len(content) > LARGEST:
        raise RefusedError(f"{called}: larger than {LARGEST // MB} MB. Save a smaller copy.")
    with _DECODING, tempfile.TemporaryDirectory() as place:
        there = names(folder)
        if len(there) >= MOST:
            raise RefusedError(f"{called}: {MOST} photos are there already; 3 to 5 are enough.")
        # The ending tells camera raw files apart; nothing else of the sender's name is used.
        ending = re.sub(r"[^a-z0-9.]", "", Path(called).suffix.lower())[:8]
        file = Path(place) / f"upload{ending}"
        file.write_bytes(content)
        try:
            decoded = images.decode(file)
        except (ImageError, OSError, MemoryError) as error:
            raise RefusedError(f"{called}: {error}") from error
        pixels, mask = decoded.pixels, _transparency(file, decoded)
        lossless = content.startswith(_LOSSLESS) or content[8:12] == b"WEBP"
        kind = "png" if lossless and pixels.shape[0] * pixels.shape[1] <= _SMALL else "jpg"
        name = f"photo_{_free_number(folder):02d}.{kind}"
        with files.written(folder / name) as part:
            options: dict[str, Any] = {"quality": 95} if kind == "jpg" else {}
            Image.fromarray(pixels).save(part, format={"jpg": "JPEG"}.get(kind, "PNG"), **options)
        if mask is not None:
            _write_mask(folder / name, mask)
    return name


def _free_number(folder: Path) -> int:
    """A number above those of all that is there: captions and masks belong to a stem."""
    there = [path.name for path in folder.iterdir()]
    stems = {Path(name).stem for name in there} | {annotations.owner(name) or "" for name in there}
    return max((int(found[1]) for each in stems if (found := _OURS.fullmatch(each))), default=0) + 1


def _transparency(file: Path, decoded: images.Decoded) -> np.ndarray | None:
    try:
        return annotations.read_mask(file, Wanted(masks="alpha"), decoded=decoded)
    except ImageError:  # nothing of it is transparent
        return None


def names(folder: Path) -> list[str]:
    """Returns the names of the photos in a folder, in order."""
    found = []
    for path in folder.iterdir():
        of_photo = annotations.owner(path.name) is None and not path.name.startswith(".")
        if of_photo and path.suffix.lower() in images.SUFFIXES and path.is_file():
            found.append(path.name)
    return sorted(found)


def known(folder: Path, name: str) -> Path:
    """Returns the path of a photo that is in the folder.

    Raises:
      RefusedError: there is none of this name.
    """
    if name not in names(folder):
        raise RefusedError(f"There is no photo {name!r} in {folder.name}.")
    return folder / name


def remove(photo: Path) -> None:
    """Removes a photo with its caption and mask, but not those of another photo of its stem."""
    others = [name for name in names(photo.parent) if name != photo.name]
    shared = any(Path(name).stem == photo.stem for name in others)
    for path in list(photo.parent.iterdir()):
        alone = not shared or path.name.startswith(f"{photo.name}.")  # NAME.jpg.txt
        if alone and annotations.owner(path.name) == photo.stem:
            path.unlink()
    photo.unlink()


def caption(photo: Path, text: str) -> None:
    """Writes a photo's caption, one line; an empty one is removed, and its mask stays.

    Raises:
      RefusedError: it is too long.
    """
    line = " ".join(text.split())
    if len(line) > _LONGEST:
        raise RefusedError(f"The caption has {len(line)} characters; at most {_LONGEST}.")
    old = annotations.caption_file(photo)
    file = old if old is not None else photo.with_name(photo.stem + annotations.CAPTION)
    if line:
        files.write_text(file, line + "\n")
    else:
        file.unlink(missing_ok=True)


def paint(photo: Path, content: bytes) -> None:
    """Writes a mask, white where the subject is, scaled to the photo's size; its caption stays.

    Raises:
      RefusedError: it is no picture of the photo's shape.
    """
    with _DECODING, tempfile.TemporaryDirectory() as place:
        file = Path(place) / "mask.png"
        file.write_bytes(content)
        try:
            grey = images.read(file, background=(0, 0, 0)).mean(-1)
            height, width = images.read(photo).shape[:2]
        except (ImageError, OSError, MemoryError) as error:
            raise RefusedError(f"The mask: {error}") from error
        if abs(grey.shape[0] * width - grey.shape[1] * height) > width + height + sum(grey.shape):
            raise RefusedError(
                f"The mask is {grey.shape[1]}×{grey.shape[0]}, the photo {width}×{height}: another "
                "shape."
            )
        scaled = Image.fromarray(np.rint(grey).astype(np.uint8)).resize((width, height))
        mask = np.where(np.asarray(scaled) >= 128, 255, 0).astype(np.uint8)
        if mask.any():
            _write_mask(photo, mask)
        else:
            mask_of(photo).unlink(missing_ok=True)


def mask_of(photo: Path) -> Path:
    """Returns the path of a photo's mask, which need not be there."""
    return photo.with_name(photo.stem + annotations.MASK)


def _write_mask(photo: Path, mask: np.ndarray) -> None:
    with files.written(mask_of(photo)) as part:
        Image.fromarray(mask).save(part, format="PNG")


def looked_at(
    folder: Path, *, size: int | images.Size, captions: str = "prompt", masks: str = "none"
) -> tuple[list[Shown], list[str]]:
    """Returns the photos with the audit's sentences, and its sentences about the folder."""
    present = names(folder)
    if not present:
        return [], []
    wanted = Wanted(captions=captions, masks=masks)
    with _DECODING:
        try:
            report = audit.audit(folder, size=size, wanted=wanted)
            general = list(report.warnings)
        except audit.AuditError as error:
            if error.audit is None:
                return [], [str(error)]
            report, general = error.audit, []
    by_name: dict[str, list[str]] = {}
    wrong = {finding.path.name for finding in report.wrong}
    for finding in report.findings:
        if finding.outcome != "ignored":
            by_name.setdefault(finding.path.name, []).append(str(finding))
    kept = {photo.path.name: photo for photo in report.kept}
    shown = [
        _shown(folder / name, kept.get(name), by_name.get(name, []), name in wrong)
        for name in present
    ]
    return shown, general


def _shown(photo: Path, kept: Any, findings: Iterable[str], wrong: bool) -> Shown:
    mask, file = mask_of(photo), annotations.caption_file(photo)
    try:
        text = untrusted.text(file, limit=2**16, encoding="utf-8-sig").strip() if file else ""
    except (OSError, untrusted.FileError):  # shown as empty; the audit of a run tells it
        text = ""
    stamps = [each.stat().st_mtime_ns for each in (photo, mask) if each.is_file()]
    return Shown(
        name=photo.name,
        width=kept.width if kept else 0,
        height=kept.height if kept else 0,
        caption=text,
        has_mask=mask.is_file(),
        findings=tuple(findings),
        usable=kept is not None and not wrong,
        changed=max(stamps) // 10**6,
    )


def crop(photo: Path, *, size: int | images.Size) -> bytes:
    """Returns the part of a photo that the model sees, as PNG or, if large, as WebP."""
    with _DECODING:
        shown = images.cover(images.read(photo), size)
    buffer = io.BytesIO()
    kind = "PNG" if max(images.sides(size)) <= THUMBNAIL else "WEBP"
    Image.fromarray(shown).save(buffer, format=kind)
    return buffer.getvalue()


def shrunk(file: Path, *, side: int) -> bytes:
    """Returns a picture as WebP of at most `side` pixels along its longer side."""
    with _DECODING, tempfile.TemporaryDirectory() as place:
        if files.is_remote(file):
            copy = Path(place) / file.name
            copy.write_bytes(file.read_bytes())
            file = copy
        picture = Image.fromarray(images.read(file))
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, format="WEBP", quality=85)
    return buffer.getvalue()
