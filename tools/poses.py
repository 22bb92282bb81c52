"""Cut-outs in a picture: their pose, what they wear, and their shadow."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from nouns import Head
from PIL import Image
from scipy import ndimage

SIDES = {"": (0.66, 0.9), "small": (0.36, 0.48), "big": (0.95, 1.05)}  # of a frame's side


class Pose(NamedTuple):
    """How an object stands in the frame: lengths in frame sides, angle in degrees.

    `stretch` multiplies the width; `gain` and `contrast` are the exposure's.
    """

    side: float
    x: float
    y: float
    angle: float
    flip: bool
    gain: float = 1.0
    contrast: float = 1.0
    stretch: float = 1.0

    @classmethod
    def draw(cls, u: np.ndarray, size: str = "") -> Pose:
        """Returns a pose from eight uniform numbers in [0,1), for "", "small" or "big"."""
        least, most = SIDES[size]
        side = least + (most - least) * u[0]
        room = max(1 - side, 0) / 2 + 0.01
        return cls(
            side=side,
            x=0.5 + 0.7 * room * (2 * u[1] - 1),
            y=0.5 + room * (u[2] - 0.2),  # things stand rather below the middle
            angle=8 * (2 * u[3] - 1),
            flip=bool(u[4] < 0.5),
            gain=0.95 + 0.1 * u[5],
            contrast=0.95 + 0.1 * u[6],
            stretch=0.94 + 0.12 * u[7],
        )


def pyramid(cutout: np.ndarray) -> list[Image.Image]:
    """Returns a premultiplied cut-out uint8 [P,P,4] at P, 3P/4, P/2, ... down to 16 pixels."""
    pixels = cutout.shape[0]
    full = Image.frombytes("RGBa", (pixels, pixels), np.ascontiguousarray(cutout).tobytes())
    levels, side = [full], pixels
    while side > 20:
        side = round(side * 0.75)
        levels.append(full.resize((side, side), Image.Resampling.BOX, reducing_gap=None))
    return levels


def _placed(source: Image.Image, pose: Pose, size: int) -> np.ndarray:
    """Returns the posed cut-out float32 [size,size,4], premultiplied, from a level's picture."""
    turn, scale = np.deg2rad(pose.angle), source.width / (pose.side * size)
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    cx, cy = pose.x * size, pose.y * size
    half = source.width / 2
    wide = 1 / pose.stretch
    across = (wide * cos, wide * sin, half - wide * (cos * cx + sin * cy))
    if pose.flip:
        across = (-across[0], -across[1], source.width - across[2])
    down = (-sin, cos, half + sin * cx - cos * cy)
    layer = source.transform(
        (size, size), Image.Transform.AFFINE, (*across, *down), Image.Resampling.BICUBIC
    )
    return np.asarray(layer).astype(np.float32)


def compose(
    levels: list[Image.Image],
    background: np.ndarray,
    pose: Pose,
    *,
    light: tuple[float, float, float] = (1.0, 1.0, 1.0),
    shadow: float = 0.45,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture uint8 [S,S,3] and its coverage uint8 [S,S] by the cut-out of `pyramid`.

    background: uint8 [S,S,3]. `light` multiplies the object's colours; `shadow` is how much light
    a soft ellipse at the foot of the object takes from the background.
    """
    size = background.shape[0]
    scene = background.astype(np.float32)
    target = pose.side * size
    source = next((im for im in reversed(levels) if im.width >= target * 0.95), levels[0])
    object_ = _placed(source, pose, size)
    alpha = object_[..., 3:] * np.float32(1 / 255)
    rows = np.flatnonzero(alpha[..., 0].max(1) > 0.3)
    if shadow and len(rows):
        at = np.arange(size, dtype=np.float32) + 0.5
        foot = rows[-1] + 0.5 - 0.02 * target
        wide = np.exp(-(((at - pose.x * size) / (0.40 * target * pose.stretch)) ** 2))
        flat = np.exp(-(((at - foot) / (0.08 * target)) ** 2))
        scene *= (1 - shadow * flat[:, None] * wide[None, :])[..., None]
    scene *= 1 - alpha
    scene += object_[..., :3] * np.float32(light)
    scene = (scene - 128) * np.float32(pose.contrast * pose.gain) + np.float32(128 * pose.gain)
    picture = np.clip(scene + 0.5, 0, 255).astype(np.uint8)
    return picture, np.clip(object_[..., 3] + 0.5, 0, 255).astype(np.uint8)


def squared(cutout: np.ndarray, pixels: int) -> np.ndarray:
    """Returns a premultiplied cut-out at [pixels,pixels,4], cut to its alpha and centred."""
    rows, columns = (np.flatnonzero((cutout[..., 3] > 24).any(axis)) for axis in (1, 0))
    cut = cutout[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.frombytes("RGBa", cut.shape[1::-1], np.ascontiguousarray(cut).tobytes())
    scale = (pixels - 4) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    picture = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
    square = np.zeros((pixels, pixels, 4), np.uint8)
    top, left = (pixels - height) // 2, (pixels - width) // 2
    # The filter overshoots at edges; more colour than coverage would shine.
    square[top : top + height, left : left + width] = np.minimum(picture, picture[..., 3:])
    return square


def dressed(cutout: np.ndarray, worn: np.ndarray, head: Head, *, accessory: str) -> np.ndarray:
    """Returns the cut-out [P,P,4] with `worn` [P,P,4] on its head, scaled to the square again."""
    pixels = len(cutout)
    rows = np.flatnonzero((worn[..., 3] > 24).any(1))
    first, last = rows[0] / pixels, (rows[-1] + 1) / pixels
    middle = (first + last) / 2
    # Width in sides of the square; height of the accessory's square's middle.
    width, y = {
        "hat": (w := 1.02 * head.width, head.top + 0.07 * head.width + w * (0.5 - last)),
        "sunglasses": (w := 1.12 * head.width, (head.eyes or 0) + w * (0.5 - middle)),
        "scarf": (w := 0.9 * head.width, head.neck + 0.15 * w + w * (0.5 - middle)),
    }[accessory]
    canvas = np.zeros((3 * pixels, 3 * pixels, 4), np.float32)
    edge = pixels
    canvas[edge : edge + pixels, edge : edge + pixels] = cutout
    side = max(round(width * pixels), 1)
    image = Image.frombytes("RGBa", (pixels, pixels), np.ascontiguousarray(worn).tobytes())
    layer = np.asarray(image.resize((side, side), Image.Resampling.BOX)).astype(np.float32)
    top, left = (round(edge + v * pixels - side / 2) for v in (y, head.x))
    part = canvas[top : top + side, left : left + side]
    part *= 1 - layer[..., 3:] / 255
    part += layer
    return squared(np.round(np.clip(canvas, 0, 255)).astype(np.uint8), pixels)


def from_above(cutout: np.ndarray) -> np.ndarray:
    """Returns the cut-out [P,P,4] as seen from above: lower, and narrower towards its foot."""
    pixels = len(cutout)
    image = Image.frombytes("RGBa", (pixels, pixels), np.ascontiguousarray(cutout).tobytes())
    height = round(0.68 * pixels)
    # Row v of the result is as wide as 1 … 0.62 of the square: a projective map with w = 1 + k·v.
    k = (1 / 0.62 - 1) / height
    centre = pixels / 2
    # x' = centre + (x − centre)·(1 + k·y); y' reaches `pixels` at y = height.
    stretch = (1 + k * height) * pixels / height
    near = np.zeros((pixels, pixels, 4), np.uint8)
    rows = np.arange(height) + 0.5
    source_rows = stretch * rows / (1 + k * rows)
    columns = np.arange(pixels) + 0.5
    picture = np.asarray(image).astype(np.float32)
    x = centre + (columns[None] - centre) * (1 + k * rows[:, None]) - 0.5
    y = np.broadcast_to(source_rows[:, None] - 0.5, x.shape)
    for channel in range(4):
        near[:height, :, channel] = ndimage.map_coordinates(
            picture[..., channel], (y, x), order=1, mode="constant"
        )
    return squared(near, pixels)
