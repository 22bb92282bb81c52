"""The place of a crop in its photo: the centre, where the settings say, or around the subject."""

import numpy as np

from dreambooth_jax.data import images
from dreambooth_jax.data.images import Size

Place = tuple[float, float]  # (fy, fx) in [0, 1]: (0, 0) is the top left window
CENTRE: Place = (0.5, 0.5)
_AS_GOOD = 1 - 1e-9  # share of the largest sum


def placed(crop: tuple[float, ...], mask: np.ndarray | None, size: int | Size) -> Place:
    """Returns the place of a photo's first crop.

    crop: (fy, fx) of the settings; () is around the mask, where there is one, else the centre.
    """
    if crop:
        return float(crop[0]), float(crop[1])
    return CENTRE if mask is None else around(mask, size)


def around(mask: np.ndarray, size: int | Size) -> Place:
    """Returns the place of the window that shows most of a mask uint8 `[H,W]`.

    Of several it is the one nearest to the centre, so a subject that is whole in the centre crop
    keeps that.

    size: a side, or height and width, whose shape the window has.
    """
    rows, columns = mask.shape
    (left, top, right, bottom), _ = images.window(rows, columns, *images.sides(size))
    found = []
    for axis, extent in enumerate((bottom - top, right - left)):
        free = mask.shape[axis] - extent
        if free < 1:
            found.append(0.5)
            continue
        # The sum up to any place between two borders of pixels is linear in it.
        sums = np.concatenate([[0.0], mask.astype(np.float64).sum(1 - axis).cumsum()])
        borders = np.arange(len(sums))
        starts = np.append(np.arange(int(free) + 1), free / 2)
        inside = np.interp(starts + extent, borders, sums) - np.interp(starts, borders, sums)
        best = starts[inside >= inside.max() * _AS_GOOD]
        found.append(float(best[np.abs(best - free / 2).argmin()] / free))
    return found[0], found[1]


def within(
    shape: tuple[int, int], size: int | Size, place: Place, draw: tuple[float, ...]
) -> Place:
    """Returns the place of a smaller window somewhere in the one at `place`.

    Args:
      shape: height and width of the photo.
      draw: of two numbers in [0, 1], where it is in that window, and its zoom.
    """
    (left, top, right, bottom), _ = images.window(*shape, *images.sides(size), crop=place)
    *where, zoom = draw
    found = []
    for length, start, extent, part in zip(
        shape, (top, left), (bottom - top, right - left), where, strict=True
    ):
        free = length - extent / zoom
        begin = start + part * (extent - extent / zoom)
        found.append(min(max(begin / free, 0.0), 1.0) if free > 0 else 0.5)
    return found[0], found[1]
