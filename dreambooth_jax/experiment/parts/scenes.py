"""The photos of `--mode=edit`, with their masks: found, checked, opened one at a time."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts
from dreambooth_jax.config import Plan
from dreambooth_jax.data import annotations, canvas, images
from dreambooth_jax.data.canvas import Box, Canvas
from dreambooth_jax.data.colour import ImageError

_FEW_CELLS = 16  # along a side: a latent model cannot draw a subject on fewer


@dataclasses.dataclass(frozen=True)
class Scene:
    """A photo to edit; its pixels and those of its mask are read when they are needed.

    name: of the files of its edits, without ending; `drawn`: it is drawn itself, by the source
    prompt, and is in `source`.
    sha256, mask_sha256: of the upright photo's pixels, and of the mask as it is used.
    box: the window that is drawn anew; None without a mask.
    found: a mask bool `[H,W]` that the model found.
    """

    name: str
    path: Path
    sha256: str
    mask_sha256: str
    box: Box | None
    drawn: bool = False
    found: np.ndarray | None = dataclasses.field(default=None, compare=False, repr=False)

    @property
    def source(self) -> str:
        """The file with the upright photo."""
        return f"{self.name}.source.png"

    def opened(self, plan: Plan, shape: tuple[int, int]) -> Canvas:
        """The photo with its mask, for a model that makes pictures of height and width `shape`.

        Raises:
          ImageError: as `found`.
        """
        return _canvas(self.path, plan, shape, found=self.found)


def found(plan: Plan, shape: tuple[int, int]) -> tuple[Scene, ...]:
    """Every photo of `edit.images`, checked with its mask.

    Raises:
      ConfigError: no photo, or one that cannot be edited as asked; names all of them.
      Disagreement: not all hosts have the same files.
    """
    paths = _paths(plan.edit.images)
    scenes, wrong = [], []
    for name, path in zip(_names(paths), paths, strict=True):
        try:
            opened = _canvas(path, plan, shape)
        except (ImageError, OSError) as error:
            wrong.append(f"{path}: {error}")
            continue
        if plan.edit.masks in ("none", *annotations.PAINTED):
            _tell(path, opened, shape)
        scenes.append(_described(Scene(name, path, "", "", None), opened))
    if wrong:
        raise configs.ConfigError(
            f"{len(wrong)} of {len(paths)} photos cannot be edited:\n  " + "\n  ".join(wrong)
        )
    hosts.agree(
        "the photos to edit",
        {scene.name: [scene.sha256, scene.mask_sha256] for scene in scenes},
        remedy="Copy the same folder to every host, with its masks.",
    )
    return tuple(scenes)


def described(scene: Scene, plan: Plan, shape: tuple[int, int]) -> Scene:
    """The scene with checksums and window as its photo and its mask have them."""
    opened = scene.opened(plan, shape)
    _tell(scene.path, opened, shape)
    return _described(scene, opened)


def _described(scene: Scene, opened: Canvas) -> Scene:
    marked = "" if opened.inside is None else digest(opened.inside)
    return dataclasses.replace(
        scene, sha256=digest(opened.photo), mask_sha256=marked, box=opened.box
    )


def cutout(plan: Plan) -> tuple[np.ndarray, np.ndarray] | None:
    """The photo of `edit.cutout` uint8 `[h,w,3]` and its mask uint8 `[h,w]`; None where it is "".

    Its mask lies beside it, or is its transparency.

    Raises:
      ConfigError: it cannot be read, or its mask shows nothing.
    """
    if not plan.edit.cutout:
        return None
    path = files.at(plan.edit.cutout)
    kind = "files" if path.with_name(path.stem + annotations.MASK).exists() else "alpha"
    try:
        decoded = images.decode(path)
        mask, name = annotations.painted_mask(path, kind, decoded=decoded)
        if not (mask >= 128).any():
            raise ImageError(f"{name} is black all over", "make it white where the subject is")
        return decoded.pixels, mask
    except (ImageError, OSError) as error:
        raise configs.ConfigError(
            f"edit.cutout = {plan.edit.cutout!r}: {error}. Expected a photo of the subject with "
            "NAME.mask.png beside it, or without its background."
        ) from error


def drawn(plan: Plan) -> tuple[Scene, ...]:
    """The scenes that are drawn themselves, `edit.num_images` of them."""
    return tuple(
        Scene(f"scene_{k:02d}", Path(), "", "", None, drawn=True)
        for k in range(plan.edit.num_images)
    )


def _paths(given: str) -> list[Path]:
    """Returns the photo, or all photos of the folder."""
    if not given:
        raise configs.ConfigError(
            "edit.images = '': expected a photo, or a folder of photos. Write "
            "--config.edit.images=PHOTO.jpg, or, to draw scenes, "
            "--config.edit.method=prompt_to_prompt."
        )
    place = files.at(given)
    if files.is_remote(place) and place.suffix.lower() in images.SUFFIXES:
        place = files.here(place.parent) / place.name
    elif files.is_remote(place):
        place = files.here(place)
    if not place.exists():
        raise configs.ConfigError(
            f"edit.images = {given!r}: no such file or folder. Write "
            "--config.edit.images=PHOTO.jpg."
        )
    if not place.is_dir():
        return [place]
    paths = [
        path
        for path in sorted(place.iterdir())
        if path.suffix.lower() in images.SUFFIXES
        and not path.name.startswith(".")
        and annotations.owner(path.name) is None
    ]
    if not paths:
        raise configs.ConfigError(f"edit.images = {given!r}: no photo in this folder.")
    return paths


def _names(paths: Sequence[Path]) -> list[str]:
    """A name for each photo's edits, no two the same on a disk that ignores capitals.

    Its stem, or with its ending where photos share the stem; numbered where that is another's too.
    """
    stems = [path.stem.casefold() for path in paths]
    first = [
        path.stem if stems.count(stem) == 1 else path.name.replace(".", "_")
        for stem, path in zip(stems, paths, strict=True)
    ]
    kept, taken = [], {name.casefold() for name in first}
    seen: set[str] = set()
    for name in first:
        own, k = name, 2
        while own.casefold() in seen or (own != name and own.casefold() in taken):
            own, k = f"{name}_{k}", k + 1
        seen.add(own.casefold())
        kept.append(own)
    return kept


def _canvas(
    path: Path, plan: Plan, shape: tuple[int, int], *, found: np.ndarray | None = None
) -> Canvas:
    """Raises ImageError where photo or mask are not as they must be."""
    c = plan.edit
    decoded = images.decode(path)
    photo = decoded.pixels
    how: dict[str, Any] = {"context": c.context, "feather": c.feather}
    if c.masks not in annotations.PAINTED and found is None:
        return Canvas.of(photo, None, shape, **how)
    if found is not None:
        inside = ~found if c.outside else canvas.grown(found, c.grow)
        return Canvas.of(photo, inside, shape, **how)
    mask, name = annotations.painted_mask(path, c.masks, decoded=decoded)
    if canvas.is_grey(mask) and not c.soft:
        raise ImageError(
            f"{name} is grey in most of what it shows",
            "paint it in black and white, or write --config.edit.soft=True",
        )
    mask = 255 - mask if c.outside else mask
    inside = mask > 0 if c.soft else mask >= 128
    if not inside.any():
        raise ImageError(f"{name} is black all over", "make it white where the photo changes")
    if c.soft:
        amounts = (mask / np.float32(255)).astype(np.float32)
        return Canvas.of(photo, inside, shape, amounts=amounts, **how)
    inside = inside if c.outside else canvas.grown(inside, c.grow)
    return Canvas.of(photo, inside, shape, **how)


def _tell(path: Path, opened: Canvas, shape: tuple[int, int]) -> None:
    """Logs the part of a photo that is drawn anew, and what makes that hard."""
    height, width = opened.photo.shape[:2]
    if opened.box is None or opened.inside is None:
        logging.info("%s, %d×%d, is edited as a whole.", path, width, height)
        if abs(height / width - shape[0] / shape[1]) > 0.02:
            logging.warning(
                "%s, %d×%d: a picture of this model is %d×%d; the rest of the photo is cropped. A "
                "mask (edit.masks) keeps the whole photo.",
                *(path, width, height, shape[1], shape[0]),
            )
        return
    box = opened.box
    logging.info(
        "%s, %d×%d: a window of %d×%d pixels at (%d, %d) is drawn with %d×%d; %.1f %% of the photo "
        "may change.",
        *(path, width, height, box.width, box.height, box.left, box.top, shape[1], shape[0]),
        100 * opened.inside.mean(),
    )
    if opened.cells(shape).sum() < min(_FEW_CELLS**2, shape[0] * shape[1] / 16):
        logging.warning(
            "%s: the mask covers %d of the %d pixels that the model draws: too few for a subject. "
            "Paint a larger mask, or write --config.edit.context=0.2.",
            *(path, opened.cells(shape).sum(), shape[0] * shape[1]),
        )


def digest(pixels: np.ndarray) -> str:
    """The SHA-256 of an array's shape and content."""
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
