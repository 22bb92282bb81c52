"""Changes of a cut-out's surface, and of a whole picture's style.

Cut-outs are premultiplied RGBA, uint8 `[P,P,4]`; pictures are RGB, uint8 `[S,S,3]`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from nouns import COLOURS
from PIL import Image
from scipy import ndimage

LUMINANCE = np.float32([0.3, 0.59, 0.11])


def straight(cutout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns colours float32 `[P,P,3]`, not premultiplied, and alpha `[P,P,1]`, both in [0, 1]."""
    alpha = cutout[..., 3:].astype(np.float32) / 255
    return np.clip(cutout[..., :3] / np.maximum(alpha, 1e-3) / 255, 0, 1), alpha


def premultiplied(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns the uint8 cut-out of colours and alpha in [0, 1]."""
    out = np.concatenate([np.clip(rgb, 0, 1) * alpha, alpha], -1)
    return np.round(out * 255).astype(np.uint8)


def main_hue(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns weights `[P,P]` in [0, 1]: saturated pixels within 75° of the commonest hue."""
    high, low = rgb.max(-1), rgb.min(-1)
    saturation = (high - low) / np.maximum(high, 1e-3)
    angle = np.arctan2(
        np.sqrt(3) * (rgb[..., 1] - rgb[..., 2]), 2 * rgb[..., 0] - rgb[..., 1] - rgb[..., 2]
    )
    histogram = np.zeros(36, np.float32)
    bins = (np.round(angle / (np.pi / 18)).astype(int)) % 36
    np.add.at(histogram, bins, saturation * high * alpha[..., 0])
    smooth = sum(np.roll(histogram, shift) for shift in (-2, -1, 0, 1, 2))
    main = np.argmax(smooth) * np.pi / 18
    away = np.abs((angle - main + np.pi) % (2 * np.pi) - np.pi)
    near = np.clip((np.deg2rad(75) - away) / np.deg2rad(20), 0, 1)
    return near * np.clip((saturation - 0.18) / 0.17, 0, 1)


def recolour(cutout: np.ndarray, colour: tuple[int, int, int], *, least: float = 0.5) -> np.ndarray:
    """Returns the cut-out in another colour, with its shading.

    The main hue is painted when it covers the share `least` of the cut-out; otherwise everything
    that is not nearly black is. Light pixels go towards white and dark ones towards black, measured
    from the median luminance of what is painted.
    """
    rgb, alpha = straight(cutout)
    solid = alpha[..., 0] > 0.5
    mask = main_hue(rgb, alpha)
    luminance = rgb @ LUMINANCE
    if mask[solid].mean() < least:
        mask = np.clip((luminance - 0.13) / 0.1, 0, 1)
    reference = np.median(luminance[(mask > 0.5) & solid])
    shade = (luminance / reference)[..., None]
    target = np.float32(colour) / 255
    bright = target + (1 - target) * np.clip((shade - 1) * 0.45, 0, 0.4)
    painted = np.where(shade <= 1, target * np.maximum(shade, 0) ** 0.8, bright)
    return premultiplied(rgb + mask[..., None] * (painted - rgb), alpha)


def _relief(cutout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns shading `[P,P]`, from 0 to 1 over the middle 90 % of the cut-out, and alpha."""
    rgb, alpha = straight(cutout)
    luminance = rgb @ LUMINANCE
    low, high = np.quantile(luminance[alpha[..., 0] > 0.5], [0.05, 0.95])
    return np.clip((luminance - low) / max(high - low, 0.15), 0, 1), alpha


def _ramp(at: np.ndarray, *colours: tuple[int, int, int]) -> np.ndarray:
    """Returns float32 `[...,3]`: the colours, evenly spaced over [0, 1], between them linear."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(at, stops, [c[i] / 255 for c in colours]) for i in range(3)]
    return np.stack(channels, -1).astype(np.float32)


def _noise(pixels: int, cells: int, seed: int) -> np.ndarray:
    """Returns smooth noise `[P,P]` in [0, 1] with about `cells` features a side."""
    drawn = np.random.default_rng(seed).random((cells, cells)).astype(np.float32)
    image = Image.fromarray(drawn).resize((pixels, pixels), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(image), 0, 1)


def gold(cutout: np.ndarray) -> np.ndarray:
    """Returns the cut-out as polished gold: few, contrasting tones."""
    relief, alpha = _relief(cutout)
    at = np.clip(0.5 + 0.62 * (relief - 0.5) + 0.16 * np.sin(9 * relief), 0, 1)
    tones = ((84, 48, 4), (176, 118, 14), (232, 180, 40), (250, 214, 92), (255, 246, 190))
    return premultiplied(_ramp(at, *tones), alpha)


def marble(cutout: np.ndarray) -> np.ndarray:
    """Returns the cut-out as white marble with grey veins."""
    relief, alpha = _relief(cutout)
    pixels = len(cutout)
    along = np.linspace(0, 1, pixels, dtype=np.float32)
    turbulence = _noise(pixels, 6, 1) + 0.5 * _noise(pixels, 12, 2)
    veins = np.abs(np.sin(9 * (along[:, None] + 0.7 * along + 0.9 * turbulence)))
    at = (0.35 + 0.65 * relief) * (0.55 + 0.45 * np.clip(veins / 0.35, 0, 1))
    tones = ((70, 74, 84), (160, 164, 172), (226, 228, 232), (250, 250, 250))
    return premultiplied(_ramp(at, *tones), alpha)


def wooden(cutout: np.ndarray) -> np.ndarray:
    """Returns the cut-out as carved wood with lengthwise grain."""
    relief, alpha = _relief(cutout)
    pixels = len(cutout)
    along = np.linspace(0, 1, pixels, dtype=np.float32)
    grain = np.sin(44 * (along[:, None] + 0.35 * _noise(pixels, 4, 3)) + 0 * along)
    at = np.clip(0.12 + 0.72 * relief + 0.16 * grain, 0, 1)
    tones = ((60, 30, 12), (122, 72, 34), (176, 116, 62), (222, 172, 112))
    return premultiplied(_ramp(at, *tones), alpha)


def glass(cutout: np.ndarray) -> np.ndarray:
    """Returns the cut-out as clear glass: transparent within, bright along rims and highlights."""
    relief, alpha = _relief(cutout)
    pixels = len(cutout)
    depth = ndimage.distance_transform_edt(np.pad(alpha[..., 0] > 0.5, 1))[1:-1, 1:-1] / pixels
    rim = np.exp(-((depth / 0.035) ** 2))
    inner = np.clip(np.hypot(*np.gradient(relief)) * pixels / 12, 0, 1)
    highlight = np.clip((relief - 0.8) / 0.2, 0, 1)
    cover = np.clip(0.24 + 0.6 * rim + 0.35 * inner + 0.3 * highlight, 0, 0.95)
    at = np.clip(0.35 + 0.35 * relief + 0.3 * highlight - 0.25 * rim, 0, 1)
    tones = ((40, 84, 104), (150, 206, 222), (236, 250, 252))
    return premultiplied(_ramp(at, *tones), alpha * cover[..., None].astype(np.float32))


SURFACES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **{name: lambda cutout, rgb=rgb: recolour(cutout, rgb) for name, rgb in COLOURS.items()},
    "gold": gold,
    "marble": marble,
    "wooden": wooden,
    "glass": glass,
}


def pencil(picture: np.ndarray) -> np.ndarray:
    """Returns a pencil drawing: grey, light paper, dark where the luminance drops quickly.

    The luminance is divided by its blurred self (a colour dodge), which leaves lines.
    """
    grey = picture.astype(np.float32) @ LUMINANCE
    around = ndimage.gaussian_filter(grey, len(grey) / 20, mode="nearest")
    lines = np.minimum(grey / np.maximum(around, 1), 1) ** 2
    tone = 190 + 55 * grey / 255
    return np.repeat((lines * tone)[..., None], 3, -1).astype(np.uint8)


def oil(picture: np.ndarray) -> np.ndarray:
    """Returns an oil painting: each pixel from the calmest of four windows around it.

    The filter of Kuwahara et al. (1976), with the colours' saturation raised.
    """
    x = picture.astype(np.float32)
    radius = max(len(x) // 16, 1)
    width = radius + 1
    mean = ndimage.uniform_filter(x, (width, width, 1), mode="nearest")
    square = ndimage.uniform_filter(x * x, (width, width, 1), mode="nearest")
    spread = (square - mean * mean).sum(-1)
    near = width // 2
    rows, columns = np.mgrid[: len(x), : len(x)]
    best, least = mean, np.full(spread.shape, np.inf, np.float32)
    for down in (-near, near):
        for right in (-near, near):
            at = np.clip(rows + down, 0, len(x) - 1), np.clip(columns + right, 0, len(x) - 1)
            better = spread[at] < least
            best = np.where(better[..., None], mean[at], best)
            least = np.where(better, spread[at], least)
    grey = best @ LUMINANCE
    return np.clip(grey[..., None] + 1.5 * (best - grey[..., None]), 0, 255).astype(np.uint8)


def pixels(picture: np.ndarray) -> np.ndarray:
    """Returns pixel art: 16 × 16 blocks, six levels of luminance."""
    size = len(picture)
    small = Image.fromarray(picture).resize((16, 16), Image.Resampling.BOX)
    blocks = np.asarray(small).astype(np.float32)
    grey = np.maximum(blocks @ LUMINANCE, 1)
    coarse = blocks * (np.round(grey / 51) * 51 / grey)[..., None]
    image = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    return np.asarray(image.resize((size, size), Image.Resampling.NEAREST))


def comic(picture: np.ndarray) -> np.ndarray:
    """Returns a comic: four levels a channel, ink where the luminance is steep."""
    x = ndimage.gaussian_filter(picture.astype(np.float32), (len(picture) / 64,) * 2 + (0,))
    grey = x @ LUMINANCE
    strong = grey[..., None] + 1.5 * (x - grey[..., None])
    flat = np.round(np.clip(strong, 0, 255) / 85) * 85
    steep = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1)) * len(picture) / 64
    ink = np.clip((steep - 140) / 80, 0, 1)[..., None]
    return (flat * (1 - ink)).astype(np.uint8)


STYLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pencil": pencil,
    "oil": oil,
    "pixels": pixels,
    "comic": comic,
}
