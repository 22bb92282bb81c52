"""Photos at the sizes of the stages: the same window at every size, with its prompt and mask."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from dreambooth_jax import rng
from dreambooth_jax.data import annotations, cropping, images
from dreambooth_jax.data.audit import Audit, Finding, Photo
from dreambooth_jax.data.colour import RGB, WHITE
from dreambooth_jax.data.images import Size, sides

# A random crop shows at least 1/1.15 = 87 % of what the centre crop shows each way: the subject,
# which people put near the middle, stays in the picture.
MAX_ZOOM = 1.15


class Window(NamedTuple):
    """The part of a photo that a row shows, in relative coordinates: the same at every size."""

    photo: str
    fy: float
    fx: float
    zoom: float


@dataclasses.dataclass(frozen=True)
class Photos:
    """N photos with K crops each: `pixels[h, w]` is uint8 [N·K, h, w, 3], row n·K + k.

    Row i shows `windows[i]` at every size, so a cascade gets pairs; k = 0 is at `cropping.placed`.
    Where the audit has several shapes, each photo has rows at its own alone: see `at`.
    `prompts` has the prompt of each photo by its name; `masks[h, w]`, float32 [N·K, h, w] in
    [0, 1], how much of each pixel shows the subject: empty where photos have no masks.
    """

    photos: tuple[str, ...]
    pixels: dict[Size, np.ndarray]
    windows: tuple[Window, ...]
    audit: Audit
    prompts: Mapping[str, str]
    masks: dict[Size, np.ndarray]

    @property
    def row_prompts(self) -> list[str]:
        """The prompt of each row."""
        return [self.prompts[window.photo] for window in self.windows]

    def at(self, size: Size) -> Self:
        """Returns the photos that have pictures of this size, with these pictures alone."""
        if len(self.pixels[size]) == len(self.windows):
            return self
        kept = tuple(photo for photo in self.audit.kept if photo.shape == size)
        names = tuple(photo.path.name for photo in kept)
        return dataclasses.replace(
            self,
            photos=names,
            pixels={size: self.pixels[size]},
            windows=tuple(window for window in self.windows if window.photo in names),
            audit=dataclasses.replace(self.audit, kept=kept),
            masks={size: self.masks[size]} if self.masks else {},
        )

    def shown(self, rows: Mapping[Size, np.ndarray]) -> list[np.ndarray]:
        """Returns every row of `pixels` or `masks`: of a photo's several sizes the largest."""
        shapes = {photo.path.name: photo.shape for photo in self.audit.kept}
        left = {size: iter(pictures) for size, pictures in rows.items()}
        found = (shapes[window.photo] for window in self.windows)
        return [next(left[shape if shape in left else max(left)]) for shape in found]

    def sizes(self, size: int | Size) -> np.ndarray:
        """SDXL's size conditioning of each row of `pixels[h, w]`, float32 [N·K, 6].

        Height and width of the photo; rows and columns cropped off at the top and at the left once
        the photo is scaled; height and width of the row.
        """
        photos = {photo.path.name: photo for photo in self.audit.kept}
        (rows, columns), told = sides(size), []
        for window in self.windows:
            height, width = photos[window.photo].height, photos[window.photo].width
            scale = max(window.zoom * rows / height, window.zoom * columns / width)
            top, left = window.fy * (height * scale - rows), window.fx * (width * scale - columns)
            told.append([height, width, round(top), round(left), rows, columns])
        return np.array(told, np.float32)


def cut(
    report: Audit,
    *,
    prompt: str,
    words: Mapping[str, str],
    sizes: Sequence[int | Size],
    crops: int = 1,
    seed: int = 0,
    max_photos: int | None = None,
    background: RGB = WHITE,
) -> Photos:
    """Cuts the photos that an audit kept, at each of `sizes`, from the original.

    A size is a side, or height and width; where there are several, they have one shape. Where the
    audit has several shapes, each photo is cut at its own, and not at `sizes`. A photo's prompt is
    its caption, with `words` (`annotations.FIELDS`) put in, or `prompt`. Crops after the first are
    at a random place and zoom that depend on (seed, photo name, k) alone; one that would show
    nothing of the photo's mask is the first instead.
    """
    wanted = [sides(size) for size in sizes]
    if not wanted or min(map(min, wanted)) < 1:
        raise ValueError(f"sizes is {sizes!r}; expected one or more sides in pixels, such as [64]")
    if crops < 1:
        raise ValueError(f"crops is {crops}; expected 1 (the centre) or more per photo")
    report = _first(report, max_photos)
    windows: list[Window] = []
    pixels: dict[Size, list[np.ndarray]] = {}
    masks: dict[Size, list[np.ndarray]] = {}
    for photo in report.kept:
        own = [photo.shape] if report.shapes and photo.shape else wanted
        original = images.read(photo.path, background=background)  # one at a time: they are large
        on_white = original if background == WHITE else None
        mask = annotations.read_mask(photo.path, report.wanted, size=own[0], on_white=on_white)
        shape = images.thumbnail(own[0], 64)
        crop = report.wanted.crop
        for window in _windows(photo, mask, crops=crops, seed=seed, shape=shape, crop=crop):
            windows.append(window)
            where: dict[str, Any] = {"crop": (window.fy, window.fx), "zoom": window.zoom}
            for size in own:
                pixels.setdefault(size, []).append(images.cover(original, size, **where))
                if mask is not None:
                    shown = images.cover_mask(mask, size, **where)
                    masks.setdefault(size, []).append(shown)
    return Photos(
        photos=tuple(photo.path.name for photo in report.kept),
        pixels={size: np.stack(rows) for size, rows in pixels.items()},
        windows=tuple(windows),
        audit=report,
        prompts={photo.path.name: _prompt(photo, prompt, words) for photo in report.kept},
        masks={size: np.stack(rows) for size, rows in masks.items()},
    )


def _prompt(photo: Photo, prompt: str, words: Mapping[str, str]) -> str:
    return prompt if photo.caption is None else annotations.filled(photo.caption, words)


def _windows(
    photo: Photo,
    mask: np.ndarray | None,
    *,
    crops: int,
    seed: int,
    shape: Size,
    crop: tuple[float, ...],
) -> list[Window]:
    """The first, then crops − 1 random windows; none changes when photos or crops are added.

    Where the settings place the first one, the others are in it.
    """
    name = photo.path.name
    first = cropping.placed(crop, mask, shape)
    windows = [Window(name, *first, 1.0)]
    for k in range(1, crops):
        draw = rng.generator(seed, "crop", name, k)
        fy, fx = map(float, draw.uniform(size=2))
        zoom = float(draw.uniform(1, MAX_ZOOM))
        if crop:
            size = photo.height, photo.width
            fy, fx = cropping.within(size, shape, first, (fy, fx, zoom))
        window = Window(name, fy, fx, zoom)
        shown = mask is None or images.cover_mask(mask, shape, crop=window[1:3], zoom=window.zoom)
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
