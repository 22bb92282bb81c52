"""Looks of photos: too small or narrow, of one colour, like another one once more, or a mask."""

import collections
import pathlib
from collections.abc import Iterable

import numpy as np

from dreambooth_jax.data import annotations, cropping, images
from dreambooth_jax.data.annotations import Wanted
from dreambooth_jax.data.colour import RGB, WHITE, ImageError, Note
from dreambooth_jax.data.images import Decoded, Size

BLANK, TWICE = "one colour", "kept; is it a copy?"  # notes that are warned of

_SIDE = 16  # of the small copy by which pictures are compared
# Root mean square of the grey levels between two copies, at most. JPEG at quality 60 and copies of
# half the size stay below; a coloured scene that is moved by a fiftieth of its side does not.
_SAME = 3.0
_PLAIN = 4.0  # standard deviation below which a picture shows too little to be told from others
_FLAT = 2.0  # standard deviation in grey levels, below which a picture shows nothing


class Known:
    """The photos seen so far, by their names."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, np.ndarray]] = {}

    def like(self, name: str, pixels: np.ndarray) -> str | None:
        """The name of an earlier photo of the same picture, None where there is none.

        pixels: uint8 `[H,W,3]`, upright; from now on it is among those that are known.
        """
        small = images.cover(pixels, (_SIDE, _SIDE)).astype(np.float32)
        ratio = pixels.shape[1] / pixels.shape[0]
        found = None
        if small.std(axis=(0, 1)).max() >= _PLAIN:
            for other, (shape, levels) in self._found.items():
                alike = abs(ratio / shape - 1) < 0.02
                if alike and np.sqrt(np.mean((small - levels) ** 2)) < _SAME:
                    found = other
                    break
        self._found[name] = ratio, small
        return found


def notes(pixels: np.ndarray, *, size: Size, wanted: Wanted) -> list[Note]:
    """Returns notes on a photo that is used in spite of its shape.

    Of photos with masks the crop is around the mask, and is checked with it.
    """
    found, crop = [], annotations.shape(size)
    (rows, columns), (height, width) = size, pixels.shape[:2]
    scale = max(rows / height, columns / width)
    if scale > 1:
        told = f"{rows}" if rows == columns else images.told(size)
        found.append(Note(f"smaller than {told} px", f"enlarged ×{scale:.2g}"))
    less, more = sorted((rows * width, columns * height))
    if 2 * less < more:
        named = "a square crop" if crop == "square" else f"a {crop}"
        found.append(Note("long and narrow", f"{named} shows {less / more:.0%} of it"))
    if (pixels == pixels[0, 0]).all():
        found.append(Note(f"{BLANK} all over", "kept; is it the right file?"))
    elif wanted.masks == "none":
        place = cropping.placed(wanted.crop, None, size)
        shown = images.cover(pixels, images.thumbnail(size, 32), crop=place)
        # Without the rim, into which what lies beside the crop reaches.
        inner = tuple(slice(side // 16, side - side // 16) for side in shown.shape[:2])
        if shown[inner].std(axis=(0, 1)).max() < _FLAT:
            done = "kept; the subject may lie outside: write --config.subject.crop='(fy, fx)'"
            where = f"at subject.crop = {wanted.crop}" if wanted.crop else "in the middle"
            found.append(Note(f"the {crop} {where} is of {BLANK}", done))
    return found


class Masks:
    """The pictures in black and white alone beside a photo of their stem and size."""

    def __init__(self, paths: Iterable[pathlib.Path], *, background: RGB = WHITE) -> None:
        self._background = background
        self._stems = collections.defaultdict(list)
        for path in paths:
            if path.suffix.lower() in images.SUFFIXES:
                self._stems[path.stem].append(path)
        self._found: dict[str, set[pathlib.Path]] = {}
        self._ahead: dict[pathlib.Path, Decoded] = {}

    def __contains__(self, path: pathlib.Path) -> bool:
        """Returns True for a mask; all pictures of a stem are decoded for the first of them."""
        same = self._stems.get(path.stem, [])
        if path not in same or len(same) < 2:
            return False
        if path.stem not in self._found:
            stark = {one for one in same if self._is_stark(one)}
            shapes = {one: self._ahead[one].pixels.shape for one in same if one in self._ahead}
            photos = {shape for one, shape in shapes.items() if one not in stark}
            found = {one for one in stark if shapes[one] in photos}
            self._found[path.stem] = found
            for one in found:
                del self._ahead[one]
        return path in self._found[path.stem]

    def decode(self, path: pathlib.Path) -> Decoded:
        """A picture that is no mask, as `images.decode` does; one decoded before is not again."""
        known = self._ahead.pop(path, None)
        return images.decode(path, background=self._background) if known is None else known

    def _is_stark(self, path: pathlib.Path) -> bool:
        """Returns True if all of a picture is black or white; keeps what it decodes."""
        try:
            self._ahead[path] = images.decode(path, background=self._background)
        except (ImageError, OSError, MemoryError):
            return False
        # 0 and 255 become 0 or 1 of 8 bits, everything else is larger.
        return bool((self._ahead[path].pixels + np.uint8(1)).max() <= 1)
