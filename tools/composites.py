"""Captioned pictures for training the embedded base: emoji cut-outs over panorama views.

`python tools/composites.py CACHE --subject OUT` renders the shipped photos of the held-out
subject; `--sheet FILE` a contact sheet of 64 training pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from pathlib import Path

import numpy as np
from material import Material, load_panoramas, prepare, subject_cutout, view
from nouns import (
    BACKGROUNDS,
    PLACES,
    SUBJECT,
    SUBJECT_PLACES,
    WEIGHT,
    article,
    noun_phrase,
)
from PIL import Image, ImageDraw

COLOURED = 0.45  # share of a recolourable noun's pictures whose colour is changed and named
CROP = (0.8, 1.0)  # side of the part of a view that is shown
# caption kind -> probability; the first word of the background follows from it
CAPTIONS = {"place": 0.60, "bare": 0.12, "photo": 0.10, "bare photo": 0.04, "plain": 0.14}


@dataclasses.dataclass(frozen=True)
class Pose:
    """How an object stands in the frame: lengths in frame sides, angle in degrees."""

    side: float
    x: float
    y: float
    angle: float
    flip: bool
    gain: float = 1.0
    contrast: float = 1.0

    @classmethod
    def draw(cls, u: np.ndarray) -> Pose:
        """Return a pose from seven uniform numbers in [0,1)."""
        side = 0.55 + 0.35 * u[0]
        room = (1 - side) / 2 + 0.03  # a few percent may be cut off at the frame
        return cls(
            side=side,
            x=0.5 + room * (2 * u[1] - 1),
            y=0.5 + room * (1.7 * u[2] - 0.7),  # things stand rather below the middle
            angle=12 * (2 * u[3] - 1),
            flip=bool(u[4] < 0.5),
            gain=0.9 + 0.2 * u[5],
            contrast=0.92 + 0.16 * u[6],
        )


def pyramid(cutout: np.ndarray) -> list[Image.Image]:
    """Return a premultiplied cut-out uint8 [P,P,4] at P, 3P/4, P/2, ... down to 16 pixels."""
    pixels = cutout.shape[0]
    full = Image.frombytes("RGBa", (pixels, pixels), np.ascontiguousarray(cutout).tobytes())
    levels, side = [full], pixels
    while side > 20:
        side = round(side * 0.75)
        levels.append(full.resize((side, side), Image.Resampling.BOX, reducing_gap=None))
    return levels


def compose(
    levels: list[Image.Image],
    background: np.ndarray,
    pose: Pose,
    *,
    light: tuple[float, float, float] = (1.0, 1.0, 1.0),
    shadow: float = 0.45,
) -> np.ndarray:
    """Return uint8 [S,S,3]: the cut-out of `pyramid` over `background` uint8 [S,S,3].

    `light` multiplies the object's colours; `shadow` is how much light a soft ellipse under it
    takes from the background.
    """
    size = background.shape[0]
    scene = background.astype(np.float32)
    target = pose.side * size
    source = next((im for im in reversed(levels) if im.width >= target * 0.95), levels[0])
    turn, scale = np.deg2rad(pose.angle), source.width / target
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    cx, cy = pose.x * size, pose.y * size
    half = source.width / 2
    across = (cos, sin, half - cos * cx - sin * cy)
    if pose.flip:
        across = (-across[0], -across[1], source.width - across[2])
    down = (-sin, cos, half + sin * cx - cos * cy)
    layer = source.transform(
        (size, size), Image.Transform.AFFINE, (*across, *down), Image.Resampling.BICUBIC
    )
    object_ = np.asarray(layer).astype(np.float32)
    alpha = object_[..., 3:] * np.float32(1 / 255)
    if shadow:
        at = np.arange(size, dtype=np.float32) + 0.5
        foot = cy + 0.44 * target
        wide = np.exp(-(((at - cx) / (0.36 * target)) ** 2))
        flat = np.exp(-(((at - foot) / (0.09 * target)) ** 2))
        scene *= (1 - shadow * flat[:, None] * wide[None, :])[..., None]
    scene *= 1 - alpha
    scene += object_[..., :3] * np.float32(light)
    scene = (scene - 128) * np.float32(pose.contrast * pose.gain) + np.float32(128 * pose.gain)
    return np.clip(scene + 0.5, 0, 255).astype(np.uint8)


def crop_view(picture: np.ndarray, u: np.ndarray, size: int) -> np.ndarray:
    """Return a random part of a view uint8 [P,P,3] at [size,size,3], from four uniforms."""
    pixels = picture.shape[0]
    side = (CROP[0] + (CROP[1] - CROP[0]) * u[0]) * pixels
    left, top = u[1] * (pixels - side), u[2] * (pixels - side)
    image = Image.fromarray(picture)
    box = (left, top, left + side, top + side)
    out = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return out[:, ::-1] if u[3] < 0.5 else out


def plain(colour: tuple[int, int, int], u: np.ndarray, size: int) -> np.ndarray:
    """Return a plain background uint8 [size,size,3]: `colour` ± jitter with a slight gradient."""
    base = np.float32(colour) + 24 * (u[:3].astype(np.float32) - 0.5)
    slope = 60 * (u[3:5] - 0.5)
    ramp = np.arange(size, dtype=np.float32) / size - 0.5
    tilt = slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    return np.clip(base + tilt[..., None], 0, 255).astype(np.uint8)


class Composites:
    """An endless captioned set: picture and caption are a pure function of (seed, index).

    `size` is the side of the pictures; the same index shows the same scene at every size. `plain`
    is the share of pictures on a plain background, instead of that in `CAPTIONS`.
    """

    def __init__(
        self, material: Material, *, size: int = 64, seed: int = 0, plain: float | None = None
    ) -> None:
        self.material, self.size, self.seed = material, size, seed
        self.looks: dict[tuple[str, str], list[int]] = {}
        for row, key in enumerate(zip(material.nouns, material.colours, strict=True)):
            self.looks.setdefault(key, []).append(row)
        self.nouns = tuple(dict.fromkeys(material.nouns))
        self.colours = {
            noun: tuple(colour for n, colour in self.looks if n == noun and colour)
            for noun in self.nouns
        }
        weights = np.array([WEIGHT.get(noun, 1.0) for noun in self.nouns])
        self.edges = np.cumsum(weights / weights.sum())
        self.kinds, usual = zip(*CAPTIONS.items(), strict=True)
        is_plain = np.array([kind == "plain" for kind in self.kinds])
        chances = np.array(usual)
        if plain is not None:
            chances = np.where(is_plain, plain, chances / chances[~is_plain].sum() * (1 - plain))
        self.kind_edges = np.cumsum(chances)
        self.pyramids = [pyramid(cutout) for cutout in material.cutouts]

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """Return `render(index)`."""
        return self.render(index)

    def render(self, index: int) -> tuple[np.ndarray, str]:
        """Return picture uint8 [size,size,3] and caption number `index` (any non-negative int)."""
        u = np.random.default_rng((self.seed, index)).random(24)
        noun = self.nouns[_choose(self.edges, u[0])]
        kind = self.kinds[_choose(self.kind_edges, u[1])]
        colour = ""
        if (colours := self.colours[noun]) and u[2] < COLOURED:
            colour = colours[int(u[3] * len(colours))]
        rows = self.looks[noun, colour]
        row = rows[int(u[4] * len(rows))]
        phrase = noun_phrase(noun, colour)
        if kind == "plain":
            names = [name for name in BACKGROUNDS if name != colour]
            name = names[int(u[5] * len(names))]
            place = f"on {article(name)} background"
            background = plain(BACKGROUNDS[name], u[6:11], self.size)
            light, shadow = (1.0, 1.0, 1.0), 0.3
        else:
            number = int(u[5] * len(self.material.places))
            place = self.material.places[number]
            views = self.material.views[number]
            background = crop_view(views[int(u[6] * len(views))], u[7:11], self.size)
            light, shadow = _light(place)
        caption = phrase if kind in ("bare", "bare photo") else f"{phrase} {place}"
        if "photo" in kind or (kind == "plain" and u[11] < 0.2):
            caption = f"a photo of {caption}"
        pose = Pose.draw(u[12:19])
        return compose(self.pyramids[row], background, pose, light=light, shadow=shadow), caption

    def composite(
        self, noun: str | np.ndarray, place: str, rng: np.random.Generator, *, size: int = 64
    ) -> np.ndarray:
        """Return one random picture uint8 [size,size,3] of `noun` (or of a cut-out) in `place`.

        `noun` is a noun of the material, drawn in its own colours, or a premultiplied cut-out
        uint8 [P,P,4]; `place` a phrase of the material's places or of the plain backgrounds.
        """
        u = rng.random(16)
        if isinstance(noun, str):
            if noun not in self.nouns:
                raise ValueError(f"unknown noun {noun!r}; the nouns are {', '.join(self.nouns)}")
            rows = self.looks[noun, ""]
            levels = self.pyramids[rows[int(u[0] * len(rows))]]
        else:
            levels = pyramid(noun)
        pose = Pose.draw(u[1:8])
        plains = {f"on {article(name)} background": rgb for name, rgb in BACKGROUNDS.items()}
        if place in plains:
            return compose(levels, plain(plains[place], u[8:13], size), pose, shadow=0.3)
        if place not in self.material.places:
            known = ", ".join([*self.material.places, *plains])
            raise ValueError(f"unknown place {place!r}; the places are {known}")
        views = self.material.views[self.material.places.index(place)]
        background = crop_view(views[int(u[8] * len(views))], u[9:13], size)
        light, shadow = _light(place)
        return compose(levels, background, pose, light=light, shadow=shadow)


def _choose(edges: np.ndarray, u: float) -> int:
    return min(int(np.searchsorted(edges, u, side="right")), len(edges) - 1)


def _light(place: str) -> tuple[tuple[float, float, float], float]:
    return (PLACES[place].light, PLACES[place].shadow) if place in PLACES else ((1, 1, 1), 0.45)


def subject_photos(
    cache_dir: str | Path, *, size: int = 256, source: str = SUBJECT
) -> dict[str, np.ndarray]:
    """Return a photo uint8 [size,size,3] of a held-out subject in each of `SUBJECT_PLACES`."""
    lights = load_panoramas(cache_dir)
    levels = pyramid(subject_cutout(cache_dir, size, source=source))
    photos = {}
    for place, (yaw, pose) in SUBJECT_POSES.items():
        panorama = PLACES[place]
        pitch = sum(panorama.pitch) / 2
        background = view(lights[place], yaw=yaw, pitch=pitch, fov=80, pixels=size)
        photos[place] = compose(
            levels, background, pose, light=panorama.light, shadow=panorama.shadow
        )
    return photos


# Five photos as a person would take them: always the whole bird, from near and from less near.
SUBJECT_POSES = dict(
    zip(
        SUBJECT_PLACES,
        [
            (285.0, Pose(side=0.78, x=0.48, y=0.54, angle=-4, flip=False)),
            (200.0, Pose(side=0.66, x=0.56, y=0.60, angle=5, flip=True, gain=0.97)),
            (120.0, Pose(side=0.72, x=0.44, y=0.58, angle=0, flip=False, gain=1.03)),
            (60.0, Pose(side=0.84, x=0.52, y=0.53, angle=7, flip=False, contrast=0.96)),
            (230.0, Pose(side=0.62, x=0.42, y=0.60, angle=-7, flip=True, contrast=1.04)),
        ],
        strict=True,
    )
)


def sheet(images: np.ndarray, captions: list[str], *, columns: int = 8, scale: int = 2) -> Image:
    """Return a contact sheet of images uint8 [N,S,S,3], enlarged `scale` times, with captions."""
    size = images[0].shape[0] * scale
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (size + 4), rows * (size + 26)), "white")
    draw = ImageDraw.Draw(page)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = number % columns * (size + 4), number // columns * (size + 26)
        page.paste(Image.fromarray(image).resize((size, size), Image.Resampling.NEAREST), (x, y))
        draw.text((x + 1, y + size), textwrap.fill(caption, size // 6), fill="black", spacing=0)
    return page


def main() -> None:
    """Prepare the material; render the subject's photos or a contact sheet when asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cache", type=Path, help="folder for tarballs and the rendered material")
    parser.add_argument("--subject", type=Path, help="folder to write parrot_01.png … into")
    parser.add_argument("--sheet", type=Path, help="picture file to write 64 samples into")
    parser.add_argument("--size", type=int, default=64, help="side of the samples in pixels")
    args = parser.parse_args()
    material = prepare(args.cache)
    if args.subject:
        args.subject.mkdir(parents=True, exist_ok=True)
        for number, photo in enumerate(subject_photos(args.cache).values(), 1):
            path = args.subject / f"parrot_{number:02d}.png"
            Image.fromarray(photo).save(path, optimize=True)
    if args.sheet:
        samples = Composites(material, size=args.size)
        images, captions = zip(*(samples.render(index) for index in range(64)), strict=True)
        sheet(images, captions, scale=128 // args.size).save(args.sheet)


if __name__ == "__main__":
    main()
