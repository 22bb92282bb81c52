"""Photos at the sizes of the stages: the same window at every size, with its prompt and mask."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from dreambooth_jax import rng
from dreambooth_jax.data import annotations, cropping, images
from dreambooth_jax.data.audit import Audit
from dreambooth_jax.data.images import Size, sides
from dreambooth_jax.data.inspection import Finding, Photo

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

    def sizes(self, size: int | Size, *, mirrored: bool = False) -> np.ndarray:
        """SDXL's size conditioning of each row of `pixels[h, w]`, float32 [N·K, 6].

        Height and width of the photo; rows and columns cropped off at the top and at the left once
        the photo is scaled; height and width of the row.

        mirrored: of the rows mirrored left to right: what lay right of them lies left of them.
        """
        photos = {photo.path.name: photo for photo in self.audit.kept}
        (rows, columns), told = sides(size), []
        for window in self.windows:
            height, width = photos[window.photo].height, photos[window.photo].width
            scale = window.zoom * max(rows / height, columns / width)
            top, left = window.fy * (height * scale - rows), window.fx * (width * scale - columns)
            cut = round(left)
            if mirrored:
                cut = max(round(width * scale) - columns - cut, 0)
            told.append([height, width, round(top), cut, rows, columns])
        return np.array(told, np.float32)


class Cuts:
    """Cuts photos at each of some sizes while an audit has them decoded: `add` is its `take`.

    Crops after the first are at a random place and zoom that depend on (seed, photo name, k) alone;
    one that would show nothing of the photo's mask is the first instead.
    """

    def __init__(
        self,
        sizes: Sequence[int | Size] | None,
        *,
        crops: int = 1,
        seed: int = 0,
        crop: tuple[float, ...] = (),
        max_photos: int | None = None,
    ) -> None:
        """Takes what decides the windows; ValueError for numbers that make no sense.

        sizes: sides, or heights and widths of one shape; None is the shape that the audit gave a
          photo, the nearest of several.
        crop: the place of the first crop (`cropping.placed`).
        max_photos: how many are cut at most, the first ones.
        """
        if sizes is not None and (not sizes or min(min(sides(size)) for size in sizes) < 1):
            raise ValueError(
                f"sizes is {sizes!r}; expected one or more sides in pixels, such as [64]"
            )
        if crops < 1:
            raise ValueError(f"crops is {crops}; expected 1 (the centre) or more per photo")
        if max_photos is not None and max_photos < 1:
            raise ValueError(f"max_photos is {max_photos}; expected at least 1, or None for all")
        self.sizes = None if sizes is None else [sides(size) for size in sizes]
        self.max_photos = max_photos
        self._how: dict[str, Any] = {"crops": crops, "seed": seed, "crop": crop}
        self._windows: list[list[Window]] = []  # of each photo
        self._pixels: dict[Size, list[np.ndarray]] = {}
        self._masks: dict[Size, list[np.ndarray]] = {}

    def add(self, photo: Photo, pixels: np.ndarray, mask: np.ndarray | None) -> None:
        """Cuts a photo, uint8 [H, W, 3], and its mask, uint8 [H, W]."""
        if len(self._windows) == self.max_photos:
            return
        own = [photo.shape] if self.sizes is None and photo.shape else self.sizes or []
        shape = images.thumbnail(own[0], 64)
        self._windows.append(_windows(photo, mask, shape=shape, **self._how))
        for window in self._windows[-1]:
            where: dict[str, Any] = {"crop": (window.fy, window.fx), "zoom": window.zoom}
            for size in own:
                self._pixels.setdefault(size, []).append(images.cover(pixels, size, **where))
                if mask is not None:
                    shown = images.cover_mask(mask, size, **where)
                    self._masks.setdefault(size, []).append(shown)

    @functools.cached_property
    def _rows(self) -> list[dict[Size, np.ndarray]]:
        """Pixels and masks by size, each in one array; lists of them are not held besides."""
        lists = (self._pixels, self._masks)
        return [{size: np.stack(each.pop(size)) for size in [*each]} for each in lists]

    def photos(self, report: Audit, *, prompt: str, words: Mapping[str, str]) -> Photos:
        """Returns the photos of the audit in which they were cut.

        A photo's prompt is its caption, with `words` (`annotations.FIELDS`) put in, or `prompt`.
        """
        report = _first(report, self.max_photos)
        pixels, masks = self._rows
        return Photos(
            photos=tuple(photo.path.name for photo in report.kept),
            pixels=pixels,
            windows=tuple(itertools.chain.from_iterable(self._windows)),
            audit=report,
            prompts={photo.path.name: _prompt(photo, prompt, words) for photo in report.kept},
            masks=masks,
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
    beyond = report.kept[max_photos:]
    why = f"beyond max_photos={max_photos}"
    extra = [Finding(photo.path, why, "not used", "ignored") for photo in beyond]
    dropped = {photo.path for photo in beyond}
    findings = [finding for finding in report.findings if finding.path not in dropped]
    return dataclasses.replace(report, kept=report.kept[:max_photos], findings=(*findings, *extra))
