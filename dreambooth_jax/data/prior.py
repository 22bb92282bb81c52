"""The class images of prior preservation: made once by the untouched base, kept as PNG files.

A manifest lies beside them. A folder is used again only when its manifest says that it would come
out the same: same prompt, seed, sampler and base weights. It grows in blocks: a run that was killed
in the middle resumes with the next block, and the images are those of a run that was not. Black,
constant or non-finite images are drawn again from another seed, and counted.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image

from dreambooth_jax import files, rng, untrusted

MANIFEST = "manifest.json"
LOW_RES = "low_res"  # sub-folder with what the base stage made, where an upscaler made the images
MAX_ATTEMPTS = 5
# Standard deviation in grey levels below which a picture shows nothing.
_EMPTY_BELOW = 2.0

# seeds -> uint8 pictures of each stage in order, `[n,H,W,3]`
Draw = Callable[[Sequence[int]], Sequence[np.ndarray]]


class PriorError(ValueError):
    """The class images cannot be used, or cannot be made."""


@dataclasses.dataclass(frozen=True)
class Prior:
    """Class images uint8 `[M,H,W,3]`, the base stage's version (or None), how many were redone."""

    images: np.ndarray
    low_res: np.ndarray | None
    redone: int


def seed_of(seed: int, index: int, attempt: int) -> int:
    """The seed of class image `index`, 32 bits."""
    return int(rng.generator(seed, "class image", index, attempt).integers(2**32, dtype=np.uint32))


def is_empty(picture: np.ndarray) -> bool:
    """A picture `[H,W,3]` of (nearly) one colour, which is also what non-finite values become."""
    return bool(picture.astype(np.float32).std(axis=(0, 1)).max() < _EMPTY_BELOW)


def make_or_reuse(
    folder: str | os.PathLike[str],
    *,
    num_images: int,
    block: int,
    made_by: Mapping[str, Any],
    seed: int,
    draw: Draw,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> Prior:
    """`num_images` class images in `folder`, drawing only those that are not there yet.

    Args:
      block: images per call of `draw`; whole blocks are drawn, so that resuming changes nothing.
      made_by: what determines the images (prompt, sampler, fingerprints), for the JSON manifest.
      share: which of how many processes this is. All draw the same; each writes its part of the
        images, the first one the manifest as well.
      wait: returns when all processes have called it.

    Raises:
      PriorError: the folder was made otherwise, or holds foreign files, or images stay empty.
    """
    folder = files.at(folder)
    made_by = json.loads(json.dumps(dict(made_by, seed=seed, block=block)))
    entries = _known(folder, made_by)
    stages: int | None = None
    blocks: list[list[np.ndarray]] = []
    for start in range(0, num_images, block):
        indices = list(range(start, start + block))
        kept = [_read(folder, entries.get(_name(i))) for i in indices[: num_images - start]]
        if all(picture is not None for picture in kept):
            pictures = [np.stack(column) for column in zip(*filter(None, kept), strict=True)]
        else:
            pictures, attempts = _draw_block(indices, seed=seed, draw=draw)
            pictures = [column[: num_images - start] for column in pictures]
            used = indices[: num_images - start]
            if not entries:  # first, so that a run killed amid its first block knows its own
                if share[0] == 0:
                    _write_manifest(folder, made_by, entries)
                wait()
            _write(folder, used, pictures, share)
            entries |= _entries(used, pictures, attempts, seed)
            wait()
            if share[0] == 0:
                _write_manifest(folder, made_by, entries)
        stages = len(pictures)
        blocks.append(pictures)
    columns = [np.concatenate(column) for column in zip(*blocks, strict=True)]
    of_run = (entry for name, entry in entries.items() if name < _name(num_images))
    redone = sum(entry["attempt"] > 0 for entry in of_run)
    if redone:
        logging.warning("prior: %d class images came out empty and were drawn again", redone)
    return Prior(columns[-1], columns[0] if stages and stages > 1 else None, redone)


def _name(index: int) -> str:
    return f"{index:05d}.png"


def check(folder: Path) -> None:
    """Checks, before anything is drawn, that a folder is one of class images, or empty, or absent.

    Raises:
      PriorError: it is a file, holds foreign files, or has a manifest that cannot be read.
    """
    _manifest(folder)


def _manifest(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]] | None:
    """The manifest's account of how its images were made, and its entries; None without one."""
    if folder.exists() and not folder.is_dir():
        raise PriorError(
            f"{folder}: found a file, expected a folder for class images. Set prior.folder to "
            "another place, or move the file away."
        )
    file = folder / MANIFEST
    if not file.is_file():
        found = folder.iterdir() if folder.is_dir() else ()
        # Folders are of low-res pictures, or of another class.
        foreign = sorted(p.name for p in found if p.suffix != ".tmp" and not p.is_dir())
        if foreign:
            raise PriorError(
                f"{folder} holds {len(foreign)} files (the first is {foreign[0]!r}) but no "
                f"{MANIFEST}: it was not made by this program, so its model is unknown. Set "
                "prior.folder to another folder, or empty this one."
            )
        return None
    try:
        manifest = untrusted.json_object(file, remedy="")
        with untrusted.values(file):
            before, entries = manifest["made_by"], manifest["images"]
            if not (isinstance(before, dict) and isinstance(entries, dict)):
                raise ValueError("made_by and images are not both objects {…}")
            for name, entry in entries.items():
                _check_entry(name, entry)
    except untrusted.FileError as error:
        raise PriorError(
            f"{file} cannot be read ({error}). Delete {folder} to make the images anew."
        ) from error
    return before, entries


def _known(folder: Path, made_by: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifest's entries, if it was made by the same means; none for an empty folder."""
    there = _manifest(folder)
    if there is None:
        return {}
    before, entries = there
    # Images do not depend on how many are drawn at once: a run may be resumed on other devices.
    keys = sorted(({*before} | {*made_by}) - {"block"})
    different = [key for key in keys if before.get(key) != made_by.get(key)]
    if different:
        lines = "".join(
            f"\n  {key}: then {before.get(key)!r}, now {made_by.get(key)!r}" for key in different
        )
        raise PriorError(
            f"the class images in {folder} were made in another way:{lines}\n"
            "Put the settings back, set prior.folder to another folder, or delete this one."
        )
    return entries


def _check_entry(name: str, entry: Any) -> None:
    """Raises ValueError when it is not what `_entries` says of the image `name`."""
    places = entry["files"]
    known = {name, f"{LOW_RES}/{name}"}
    sound = isinstance(places, dict) and name in places and known.issuperset(places)
    if not (sound and isinstance(entry["attempt"], int) and name == Path(name).name):
        raise ValueError(f"the entry of {name!r} is {entry!r:.200}")


def _read(folder: Path, entry: Mapping[str, Any] | None) -> list[np.ndarray] | None:
    """One entry's pictures in order of the stages; None when one is missing or was changed."""
    if entry is None:
        return None
    pictures = []
    for name, digest in entry["files"].items():
        try:
            picture = _decoded(folder / name)
        except (OSError, untrusted.FileError):  # told below
            picture = None
        if picture is None or _digest(picture) != digest:
            logging.warning("prior: %s is missing or was changed; it is made again", folder / name)
            return None
        pictures.append(picture)
    return pictures


def _decoded(file: Path) -> np.ndarray:
    """A PNG file's pixels; whatever a damaged one makes Pillow raise is a FileError."""
    with (
        untrusted.reading(file, "a class image"),
        untrusted.regular(file).open("rb") as opened,
        Image.open(opened, formats=["PNG"]) as image,
    ):
        return np.asarray(image.convert("RGB"))


def _draw_block(
    indices: Sequence[int], *, seed: int, draw: Draw
) -> tuple[list[np.ndarray], dict[int, int]]:
    """Pictures of each stage for `indices`, empty ones drawn again, and which attempt each took."""
    attempts: dict[int, int] = {}
    pictures: list[np.ndarray] = []
    empty = list(range(len(indices)))
    for attempt in range(MAX_ATTEMPTS):
        # The whole block again, so that an image does not depend on which others failed.
        drawn = draw([seed_of(seed, i, attempt) for i in indices])
        pictures = pictures or [np.array(column) for column in drawn]
        for k in empty:
            attempts[indices[k]] = attempt
            for column, new in zip(pictures, drawn, strict=True):
                column[k] = new[k]
        empty = [k for k in empty if any(is_empty(column[k]) for column in pictures)]
        if not empty:
            return pictures, attempts
    raise PriorError(
        f"class images {[indices[k] for k in empty]} are black, of one colour or not finite after "
        f"{MAX_ATTEMPTS} attempts. The base model or its sampler is broken: try a lower "
        "sampler.guidance_scale, dtype='float32', or, with a model of pixels, "
        "sampler.threshold='dynamic'."
    )


def _digest(picture: np.ndarray) -> str:
    return hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()


def _write(
    folder: Path,
    indices: Sequence[int],
    pictures: Sequence[np.ndarray],
    share: tuple[int, int],
) -> None:
    """Writes this process's part of a block; a file appears whole or not at all."""
    for k, index in enumerate(indices):
        if k % share[1] == share[0]:
            for name, picture in _files(index, [column[k] for column in pictures]).items():
                with files.written(folder / name) as part:
                    Image.fromarray(picture).save(part, format="PNG")


def _files(index: int, pictures: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The pictures of one image, those of the last stage at last, by their place in the folder."""
    names = [f"{LOW_RES}/{_name(index)}"] * (len(pictures) - 1) + [_name(index)]
    return dict(zip(names, pictures, strict=True))


def _entries(
    indices: Sequence[int],
    pictures: Sequence[np.ndarray],
    attempts: Mapping[int, int],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Returns the manifest's entries of a block."""
    entries = {}
    for k, index in enumerate(indices):
        of_image = _files(index, [column[k] for column in pictures])
        entries[_name(index)] = {
            "files": {name: _digest(picture) for name, picture in of_image.items()},
            "seed": seed_of(seed, index, attempts[index]),
            "attempt": attempts[index],
        }
    return entries


def _write_manifest(folder: Path, made_by: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    content = {
        "made_by": made_by,
        "redone": sum(e["attempt"] > 0 for e in entries.values()),
        "images": dict(entries),
    }
    files.write_text(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
