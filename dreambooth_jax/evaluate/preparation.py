"""Pictures as each judge is shown them, pixel for pixel as its authors' code makes them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from dreambooth_jax import untrusted

_BICUBIC = 3  # Pillow's number for it, in `preprocessor_config.json`


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Shorter side to `resize` by a bicubic filter, the middle `crop` square, colours normalised.

    halves: where the middle is when an odd number of pixels is cut off: "even" rounds half to even,
      as torchvision's CenterCrop, "down" as the image processors of transformers.
    """

    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    halves: Literal["even", "down"] = "even"

    def __call__(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """N uint8 pictures `[H,W,3]` of any sizes to float32 `[N,crop,crop,3]`."""
        cut = np.stack([self._cut(picture) for picture in pictures])
        unit = cut.astype(np.float32) / np.float32(255)
        return (unit - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def _cut(self, picture: np.ndarray) -> np.ndarray:
        height, width = picture.shape[:2]
        short, long = sorted((height, width))
        other = int(self.resize * long / short)
        size = (self.resize, other) if width <= height else (other, self.resize)
        image = Image.fromarray(picture)
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = (self._offset(side) for side in image.size)
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))

    def _offset(self, side: int) -> int:
        spare = side - self.crop
        return spare // 2 if self.halves == "down" else round(spare / 2)


# [-1, 1], the network does the rest. LPIPS depends on the size, so that is always the same.
LPIPS = Preparation(256, 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def dino(size: int) -> Preparation:
    """DINO's for pictures of `size` pixels: at 224, Resize(256) and CenterCrop(224).

    Ruiz et al. 2022 leave it open; this gives the values of their figure 11, and the processor that
    lies beside the published weights does not (github.com/google/dreambooth, issue 3).
    """
    return Preparation(size * 8 // 7, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def of_processor(folder: Path, *, size: int) -> Preparation:
    """Reads `preprocessor_config.json` of a CLIP, with its defaults for missing keys.

    size: of the pictures that the network takes.

    Raises:
      ValueError: it asks for something else than resizing, cropping and normalising.
    """
    file = folder / "preprocessor_config.json"
    raw: dict[str, Any] = untrusted.json_object(file) if file.is_file() else {}
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    problems = [f"{key} = {raw[key]!r}" for key in steps if raw.get(key, True) is not True]
    if raw.get("resample", _BICUBIC) != _BICUBIC:
        problems.append(f"resample = {raw['resample']!r}")
    resize, crop = _side(raw.get("size", size)), _side(raw.get("crop_size", size))
    if crop != size or resize is None or resize < size:
        problems.append(f"size = {raw.get('size')!r}, crop_size = {raw.get('crop_size')!r}")
    if problems or resize is None or crop is None:
        raise ValueError(
            f"{file}: {', '.join(problems)}; expected bicubic resizing of the shorter side, a "
            f"centre crop to {size} and normalised colours."
        )
    mean, std = raw.get("image_mean", _CLIP_MEAN), raw.get("image_std", _CLIP_STD)
    return Preparation(resize, crop, tuple(mean), tuple(std), halves="down")


def _side(said: int | Mapping[str, int]) -> int | None:
    """A side in pixels, as files old and new write it."""
    if isinstance(said, int):
        return said
    if "shortest_edge" in said:
        return said["shortest_edge"]
    sides = {said.get("height"), said.get("width")}
    return sides.pop() if len(sides) == 1 else None
