"""The part of a photo that an edit changes: masks, the window around one, and pasting it back.

Pixels outside a mask are copied from the photo, never computed: they stay as they are bit for bit.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from PIL import Image

from dreambooth_jax.data import images

_GREY = (32, 223)  # values of a mask between which a pixel is neither in nor out
_GREY_SHARE = 0.25  # of the pixels that are not black; the soft edges of a brush are fewer
_SEEN = 1e-6  # the least share of a cell that a mask covers, above the rounding of area means


class Box(NamedTuple):
    """A rectangle in pixels of a photo; parts of it may lie outside the photo."""

    top: int
    left: int
    height: int
    width: int


def is_grey(mask: np.ndarray) -> bool:
    """Returns True for a mask uint8 `[H,W]` with amounts, more than those of soft edges."""
    painted = int((mask > _GREY[0]).sum())
    between = int(((mask > _GREY[0]) & (mask < _GREY[1])).sum())
    return between > _GREY_SHARE * max(painted, 1)


def grown(inside: np.ndarray, pixels: int) -> np.ndarray:
    """A mask bool `[H,W]` grown by so many pixels in every direction (a square)."""
    for axis in (0, 1):
        counts = np.cumsum(np.insert(inside, 0, False, axis=axis), axis=axis, dtype=np.int64)
        places = np.arange(inside.shape[axis])
        after = np.minimum(places + pixels + 1, inside.shape[axis])
        before = np.maximum(places - pixels, 0)
        inside = counts.take(after, axis) > counts.take(before, axis)
    return inside


def faded(inside: np.ndarray, pixels: int) -> np.ndarray:
    """Weights float32 `[H,W]` of a mask whose edge fades within it; 0 outside, as before.

    They rise from 1/(pixels + 1) at the edge to 1. The border of the photo is no edge.
    """
    total = inside.astype(np.float32)
    for depth in range(1, pixels + 1):
        total += ~grown(~inside, depth)
    return total / (pixels + 1)


def bounds(inside: np.ndarray) -> Box:
    """The smallest rectangle around the pixels of a mask that is not empty."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    top, left = int(rows[0]), int(columns[0])
    return Box(top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left)


def window(inside: np.ndarray, shape: tuple[int, int], *, context: float) -> Box:
    """The part of a photo that is drawn anew: the mask, its surroundings, in the model's shape.

    At least `shape` where the photo has so many pixels, moved rather than cut at its borders. The
    surroundings give way where the photo is too small for them; where the mask itself does not fit,
    parts of the box lie outside the photo.

    Args:
      inside: the mask, bool `[H,W]`, not empty.
      shape: height and width of the model's pictures.
      context: surroundings on each side of the mask, as a share of its own side.
    """
    around = bounds(inside)
    needed = max(around.height / shape[0], around.width / shape[1])
    most = min(inside.shape[0] / shape[0], inside.shape[1] / shape[1])
    scale = max(min(max(needed * (1 + 2 * context), 1.0), most), needed)
    places = []
    for start, length, side, whole in zip(around[:2], around[2:], shape, inside.shape, strict=True):
        size = max(round(scale * side), length)
        first = start + length // 2 - size // 2
        room = whole - size  # negative: the box is longer than the photo, which lies in its middle
        places.append((min(max(first, 0), room) if room >= 0 else room // 2, size))
    (top, height), (left, width) = places
    return Box(top, left, height, width)


def cut(pixels: np.ndarray, box: Box) -> np.ndarray:
    """The pixels `[H,W]` or `[H,W,3]` of a box; beyond the photo's border they are mirrored."""
    inner = within(box, pixels.shape)
    margins = [
        (inner.top - box.top, box.top + box.height - inner.top - inner.height),
        (inner.left - box.left, box.left + box.width - inner.left - inner.width),
    ]
    part = pixels[inner.top : inner.top + inner.height, inner.left : inner.left + inner.width]
    return np.pad(part, [*margins, *[(0, 0)] * (pixels.ndim - 2)], mode="symmetric")


def within(box: Box, shape: tuple[int, ...]) -> Box:
    """The part of a box that lies in a photo of this shape."""
    top, left = max(box.top, 0), max(box.left, 0)
    bottom = min(box.top + box.height, shape[0])
    right = min(box.left + box.width, shape[1])
    return Box(top, left, bottom - top, right - left)


def scaled(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 `[h,w,3]` resampled to height and width; the same pixels where it has them already."""
    if pixels.shape[:2] == shape:
        return pixels.copy()
    smaller = pixels.shape[0] > shape[0]
    method = Image.Resampling.LANCZOS if smaller else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(pixels).resize(shape[::-1], method))


def cells(inside: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The cells of a sample that may change: those with any pixel of the mask in them.

    A mean with a threshold would lose thin strokes.

    Args:
      inside: the mask in the window, bool `[h,w]`.
      shape: rows and columns of the sample.

    Returns:
      float32 `[rows,columns,1]`, 0 or 1.
    """
    return (shares(inside.astype(np.float64), shape) > _SEEN).astype(np.float32)[..., None]


def shares(amounts: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Means float64 `[rows,columns]` of amounts `[h,w]` over the area of each cell."""
    found = amounts
    for axis, count in enumerate(shape):
        sums = np.concatenate([np.zeros_like(found.take([0], axis)), found.cumsum(axis)], axis)
        edges = np.linspace(0, amounts.shape[axis], count + 1)
        # The integral up to any place between two pixels' borders is linear in it.
        before = np.minimum(edges.astype(int), amounts.shape[axis] - 1)
        part = np.expand_dims(edges - before, 1 - axis)
        upto = sums.take(before, axis) * (1 - part) + sums.take(before + 1, axis) * part
        found = np.diff(upto, axis=axis) * count / amounts.shape[axis]
    return found


def pasted(photo: np.ndarray, patch: np.ndarray, weights: np.ndarray, box: Box) -> np.ndarray:
    """The photo with a patch in its box, mixed by weights; where they are 0 it is the photo.

    Args:
      photo: uint8 `[H,W,3]`.
      patch: uint8 `[h,w,3]`, of any resolution; of a part outside the photo nothing is taken.
      weights: float32 `[H,W]`, the share of the patch.
    """
    inner = within(box, photo.shape)
    large = scaled(patch, (box.height, box.width))
    rows = slice(inner.top - box.top, inner.top - box.top + inner.height)
    columns = slice(inner.left - box.left, inner.left - box.left + inner.width)
    there = (
        slice(inner.top, inner.top + inner.height),
        slice(inner.left, inner.left + inner.width),
    )
    share = weights[there][..., None].astype(np.float64)
    mixed = np.rint(share * large[rows, columns] + (1 - share) * photo[there])
    result = photo.copy()
    result[there] = np.where(share > 0, mixed.astype(np.uint8), photo[there])
    return result


def uncropped(inside: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A mask of what `images.cover` shows, as a mask of the whole photo; nothing of the rest.

    Args:
      inside: bool `[h,w]`.
      shape: rows and columns of the photo.
    """
    scale = max(inside.shape[0] / shape[0], inside.shape[1] / shape[1])
    rows, columns = (
        min(round(side / scale), whole) for side, whole in zip(inside.shape, shape, strict=True)
    )
    amounts = Image.fromarray(inside.astype(np.float32))
    large = np.asarray(amounts.resize((columns, rows), Image.Resampling.BILINEAR)) > 0.5
    top, left = (shape[0] - rows) // 2, (shape[1] - columns) // 2
    found = np.zeros(shape, bool)
    found[top : top + rows, left : left + columns] = large
    return found


def with_cutout(
    photo: np.ndarray, inside: np.ndarray, subject: np.ndarray, mask: np.ndarray
) -> np.ndarray:
    """The photo with a cut-out pasted into its mask, as large as fits, in the middle, at the foot.

    Args:
      photo: uint8 `[H,W,3]`; inside: its mask, bool `[H,W]`.
      subject: uint8 `[h,w,3]`, of which `mask` uint8 `[h,w]` shows the cut-out.
    """
    place, own = bounds(inside), bounds(mask >= 128)
    part = (slice(own.top, own.top + own.height), slice(own.left, own.left + own.width))
    scale = min(place.height / own.height, place.width / own.width)
    height, width = max(round(own.height * scale), 1), max(round(own.width * scale), 1)
    pixels = scaled(subject[part], (height, width))
    share = scaled(np.repeat(mask[part][..., None], 3, -1), (height, width)) / 255
    top = place.top + place.height - height
    left = place.left + (place.width - width) // 2
    result = photo.copy()
    there = result[top : top + height, left : left + width]
    there[:] = np.rint(share * pixels + (1 - share) * there).astype(np.uint8)
    return np.where(inside[..., None], result, photo)


def outlined(picture: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The picture with the mask's outline in magenta, two pixels wide, and its outside dimmed."""
    shown = np.where(inside[..., None], picture, picture // 2 + 64)
    edge = grown(inside, 1) & ~inside | grown(~inside, 1) & inside
    return np.where(edge[..., None], np.array([255, 0, 255], np.uint8), shown).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Canvas:
    """A photo and the part of it that is drawn anew; without a mask the whole, cropped to fit.

    photo: uint8 `[H,W,3]`, upright.
    inside: the mask, bool `[H,W]`, or None.
    weights: float32 `[H,W]`, the share of the drawn picture in each pixel.
    box: the window around the mask.
    amounts: of the edit, float32 `[H,W]` in [0, 1], 0 outside the mask; None: 1 inside.
    """

    photo: np.ndarray
    inside: np.ndarray | None = None
    weights: np.ndarray | None = None
    box: Box | None = None
    amounts: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        photo: np.ndarray,
        inside: np.ndarray | None,
        shape: tuple[int, int],
        *,
        context: float,
        feather: int,
        amounts: np.ndarray | None = None,
    ) -> "Canvas":
        """The canvas of a photo whose window is drawn with height and width `shape`."""
        if inside is None:
            return cls(photo)
        around = bounds(inside)
        edge = feather + 1
        top, left = max(around.top - edge, 0), max(around.left - edge, 0)
        part = (
            slice(top, around.top + around.height + edge),
            slice(left, around.left + around.width + edge),
        )
        weights = np.zeros(inside.shape, np.float32)
        weights[part] = faded(inside[part], feather)
        return cls(photo, inside, weights, window(inside, shape, context=context), amounts)

    def patch(self, shape: tuple[int, int], photo: np.ndarray | None = None) -> np.ndarray:
        """The window uint8 `[h,w,3]` at height and width `shape`, of the photo or of its edit."""
        photo = self.photo if photo is None else photo
        if self.box is None:
            return photo if photo.shape[:2] == shape else images.cover(photo, shape)
        return scaled(cut(photo, self.box), shape)

    def cells(self, shape: tuple[int, int]) -> np.ndarray:
        """The cells float32 `[rows,columns,1]` of a sample that may change; ones without a mask."""
        if self.inside is None or self.box is None:
            return np.ones((*shape, 1), np.float32)
        return cells(cut(self.inside, self.box), shape)

    def shares(self, shape: tuple[int, int]) -> np.ndarray:
        """The amount of the edit in each cell of a sample, float32 `[rows,columns,1]`."""
        assert self.amounts is not None and self.box is not None
        found = shares(cut(self.amounts, self.box).astype(np.float64), shape)
        return np.clip(found, 0, 1).astype(np.float32)[..., None]

    def finished(self, picture: np.ndarray) -> np.ndarray:
        """The photo with the drawn window uint8 `[h,w,3]` in it; without a mask the window."""
        if self.weights is None or self.box is None:
            return picture
        return pasted(self.photo, picture, self.weights, self.box)

    def shown(self, shape: tuple[int, int]) -> np.ndarray:
        """The window uint8 `[h,w,3]` with the mask's outline."""
        if self.inside is None or self.box is None:
            return self.patch(shape)
        inside = shares(cut(self.inside, self.box).astype(np.float64), shape) >= 0.5
        return outlined(self.patch(shape), inside)

    def around(self, photo: np.ndarray | None = None) -> np.ndarray:
        """The square around the mask, of the photo or of its edit: what subjects are compared by.

        Without a mask the whole of it.
        """
        photo = self.photo if photo is None else photo
        if self.inside is None:
            return photo
        close = bounds(self.inside)
        side = max(close.height, close.width)
        top = min(max(close.top + close.height // 2 - side // 2, 0), max(photo.shape[0] - side, 0))
        left = min(max(close.left + close.width // 2 - side // 2, 0), max(photo.shape[1] - side, 0))
        return photo[top : top + side, left : left + side]
