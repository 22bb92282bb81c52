"""Captioned pictures for training the embedded base: portraits of emoji cut-outs.

`python tools/composites.py CACHE --subject OUT` renders the shipped photos of the held-out
subject; `--sheet FILE` a contact sheet of 64 training pictures.
"""

from __future__ import annotations

import argparse
import functools
import textwrap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from effects import STYLES
from material import Material, defocused, load_panoramas, prepare, subject_cutout, view
from nouns import (
    ACCESSORIES,
    BACKGROUNDS,
    COLOURS,
    FACING,
    HEADS,
    MATERIALS,
    PLACES,
    SIZES,
    SUBJECT,
    SUBJECT_PLACES,
    VIEWS,
    WEIGHT,
    Wording,
    article,
    backgrounds,
)
from PIL import Image, ImageDraw
from poses import Pose, compose, dressed, from_above, pyramid

CROP = (0.8, 1.0)  # side of the part of a view that is shown
# Share of the pictures that have a word of each kind; accessories and sides are said only of looks
# that have a known head or front.
PLACED, ON_PLAIN = 0.45, 0.2  # the others stand before the studio's backdrop, and name no place
COLOURED, MADE_OF = 0.3, 0.12
WORN, VIEWED, SIZED, STYLED, PHOTO = 0.14, 0.12, 0.1, 0.14, 0.2


class Scene(NamedTuple):
    """A rendered picture uint8 `[S,S,3]`, its caption, and its thing's coverage uint8 `[S,S]`."""

    picture: np.ndarray
    caption: str
    coverage: np.ndarray


def crop_view(picture: np.ndarray, u: np.ndarray, size: int) -> np.ndarray:
    """Returns a random part of a view uint8 [P,P,3] at [size,size,3], from four uniforms."""
    pixels = picture.shape[0]
    side = (CROP[0] + (CROP[1] - CROP[0]) * u[0]) * pixels
    left, top = u[1] * (pixels - side), u[2] * (pixels - side)
    image = Image.fromarray(picture)
    box = (left, top, left + side, top + side)
    out = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    return out[:, ::-1] if u[3] < 0.5 else out


def plain(colour: tuple[int, int, int], u: np.ndarray, size: int) -> np.ndarray:
    """Returns a plain background uint8 [size,size,3]: `colour` ± jitter with a slight gradient."""
    base = np.float32(colour) + 12 * (u[:3].astype(np.float32) - 0.5)
    slope = 40 * (u[3:5] - 0.5)
    ramp = np.arange(size, dtype=np.float32) / size - 0.5
    tilt = slope[0] * ramp[:, None] + slope[1] * ramp[None, :]
    return np.clip(base + tilt[..., None], 0, 255).astype(np.uint8)


def studio(u: np.ndarray, size: int) -> np.ndarray:
    """Returns a light backdrop uint8 [size,size,3] that falls off softly below and at the sides."""
    base = np.float32((238, 238, 240)) + np.float32((6, 0, -6)) * np.float32(2 * u[0] - 1)
    ramp = (np.arange(size, dtype=np.float32) + 0.5) / size
    floor = 14 / (1 + np.exp(-(ramp - 0.78) / 0.05))
    sides = 10 * (2 * ramp - 1) ** 2
    shade = floor[:, None] + sides[None, :] + 8 * (u[1] - 0.5)
    return np.clip(base - shade[..., None], 0, 255).astype(np.uint8)


class Composites:
    """An endless captioned set: picture and caption are a pure function of (seed, index).

    `size` is the side of the pictures. Scenes are drawn at 64 pixels or `size`, what is larger, and
    averaged down, so that the same index shows the same scene at every size.
    """

    def __init__(self, material: Material, *, size: int = 64, seed: int = 0) -> None:
        self.material, self.size, self.seed = material, size, seed
        self.rows: dict[tuple[str, str], int] = {}
        self.sources: dict[str, list[str]] = {}
        named = zip(material.nouns, material.surfaces, material.sources, strict=True)
        for row, (noun, surface, source) in enumerate(named):
            self.rows[source, surface] = row
            known = self.sources.setdefault(noun, [])
            known += [source] if source not in known else []
        self.nouns = tuple(self.sources)
        weights = np.array([WEIGHT.get(noun, 1.0) for noun in self.nouns])
        self.edges = np.cumsum(weights / weights.sum())
        self.pyramid_of = functools.lru_cache(maxsize=4096)(self._pyramid_of)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        """Returns `render(index)`."""
        return self.render(index)

    def render(self, index: int) -> tuple[np.ndarray, str]:
        """Returns picture uint8 [size,size,3] and caption number `index` (a non-negative int)."""
        return self.scene(index)[:2]

    def scene(self, index: int) -> Scene:
        """Returns scene number `index`, a non-negative int."""
        rng = np.random.default_rng((self.seed, index))
        words, source = self.draw_words(rng)
        picture, coverage = self.show(words, source, rng, size=self.size)
        return Scene(picture, words.caption, coverage)

    def draw_words(self, rng: np.random.Generator) -> tuple[Wording, str]:
        """Returns the words of a random scene, and the look that shows its noun."""
        u = rng.random(20)
        noun = self.nouns[_choose(self.edges, u[0])]
        source = _one(self.sources[noun], u[1])
        surface = view = accessory = place = ""
        if u[2] < COLOURED:
            surface = _one(tuple(COLOURS), u[3])
        elif u[2] < COLOURED + MADE_OF:
            surface = _one(MATERIALS, u[3])
        if u[4] < PLACED:
            place = _one(self.material.places, u[5])
        elif u[4] < PLACED + ON_PLAIN:
            place = f"on {article(_one([name for name in BACKGROUNDS if name != surface], u[5]))} "
            place += "background"
        if u[6] < WORN and (fitting := _fitting(source)):
            accessory = _one(fitting, u[7])
        elif u[6] > 1 - VIEWED:
            view = _one(tuple(VIEWS) if source in FACING else ("above",), u[7])
        words = Wording(
            noun,
            surface=surface,
            size=_one(SIZES, u[9]) if u[8] < SIZED else "",
            accessory=accessory,
            view=view,
            place=place,
            style=_one(tuple(STYLES), u[11]) if u[10] < STYLED else "",
            photo=u[12] < PHOTO,
        )
        return words, source

    def show(
        self, words: Wording, source: str | np.ndarray, rng: np.random.Generator, *, size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns picture uint8 [size,size,3] and coverage uint8 [size,size] of the words.

        source: a look of the material, or a premultiplied cut-out uint8 [P,P,4].
        """
        drawn = size * -(-64 // size)
        pose = Pose.draw(rng.random(8), words.size)
        if words.view in ("left", "right"):
            pose = pose._replace(flip=FACING[source] != words.view)
        if isinstance(source, str):
            row = self.rows[source, words.surface]
            levels = self.pyramid_of(row, words.accessory, words.view == "above")
        else:
            levels = pyramid(source)
        background, light, shadow = self.background(words.place, rng.random(6), drawn)
        picture, coverage = compose(levels, background, pose, light=light, shadow=shadow)
        if words.style:
            picture = STYLES[words.style](picture)
        return _reduced(picture, size), _reduced(coverage, size)

    def background(
        self, place: str, u: np.ndarray, size: int
    ) -> tuple[np.ndarray, tuple[float, float, float], float]:
        """Returns a background uint8 [size,size,3], its light on a thing, the depth of shadows."""
        if not place:
            return studio(u, size), (1.0, 1.0, 1.0), 0.35
        if place in (known := backgrounds()):
            return plain(known[place], u, size), (1.0, 1.0, 1.0), 0.3
        if place not in self.material.places:
            names = ", ".join([*self.material.places, *known])
            raise ValueError(f"unknown place {place!r}; the places are {names}")
        views = self.material.views[self.material.places.index(place)]
        panorama = PLACES[place]
        return crop_view(_one(views, u[0]), u[1:5], size), panorama.light, panorama.shadow

    def composite(
        self, noun: str | np.ndarray, place: str, rng: np.random.Generator, *, size: int = 64
    ) -> np.ndarray:
        """Returns one random picture uint8 [size,size,3] of `noun` (or of a cut-out) in `place`.

        `noun` is a noun of the material, drawn in its own colours, or a premultiplied cut-out
        uint8 [P,P,4]; `place` a phrase of the material's places, of the plain backgrounds, or "".
        """
        if not isinstance(noun, str):
            return self.show(Wording("thing", place=place), noun, rng, size=size)[0]
        return self.picture(Wording(noun, place=place), rng, size=size)

    def picture(self, words: Wording, rng: np.random.Generator, *, size: int = 64) -> np.ndarray:
        """Returns one random picture uint8 [size,size,3] of the words; raises on unknown ones."""
        if words.noun not in self.nouns:
            known = ", ".join(self.nouns)
            raise ValueError(f"unknown noun {words.noun!r}; the nouns are {known}")
        looks = [source for source in self.sources[words.noun] if _shows(source, words)]
        if not looks:
            raise ValueError(f"no look of {words.noun!r} can show {words.caption!r}")
        return self.show(words, _one(looks, rng.random()), rng, size=size)[0]

    def _pyramid_of(self, row: int, accessory: str, above: bool) -> list[Image.Image]:
        cutout = self.material.cutouts[row]
        if accessory:
            worn = self.material.accessories[tuple(ACCESSORIES).index(accessory)]
            head = HEADS[self.material.sources[row]]
            cutout = dressed(cutout, worn, head, accessory=accessory)
        return pyramid(from_above(cutout) if above else cutout)


def _choose(edges: np.ndarray, u: float) -> int:
    return min(int(np.searchsorted(edges, u, side="right")), len(edges) - 1)


def _one(choices, u: float):
    return choices[int(u * len(choices))]


def _fitting(source: str) -> tuple[str, ...]:
    """Accessories that a look can wear: sunglasses need both eyes."""
    if source not in HEADS:
        return ()
    return tuple(a for a in ACCESSORIES if a != "sunglasses" or HEADS[source].eyes is not None)


def _shows(source: str, words: Wording) -> bool:
    if words.accessory and words.accessory not in _fitting(source):
        return False
    return words.view not in ("left", "right") or source in FACING


def _reduced(picture: np.ndarray, size: int) -> np.ndarray:
    factor = len(picture) // size
    if factor == 1:
        return picture
    blocks = picture.reshape(size, factor, size, factor, -1).mean((1, 3))
    return np.round(blocks).astype(np.uint8).reshape(size, size, *picture.shape[2:])


def subject_photos(
    cache_dir: str | Path, *, size: int = 256, source: str = SUBJECT
) -> dict[str, np.ndarray]:
    """Returns a photo uint8 [size,size,3] of a held-out subject in each of `SUBJECT_PLACES`."""
    lights = load_panoramas(cache_dir)
    levels = pyramid(subject_cutout(cache_dir, size, source=source))
    photos = {}
    for place, (yaw, pose) in SUBJECT_POSES.items():
        panorama = PLACES[place]
        pitch = sum(panorama.pitch) / 2
        background = view(lights[place], yaw=yaw, pitch=pitch, fov=80, pixels=size)
        background = defocused(background, 0.045 * size)
        photos[place] = compose(
            levels, background, pose, light=panorama.light, shadow=panorama.shadow
        )[0]
    return photos


# Five photos as a person would take them: always the whole bird, from near and from less near.
SUBJECT_POSES = dict(
    zip(
        SUBJECT_PLACES,
        [
            (285.0, Pose(side=0.88, x=0.48, y=0.52, angle=-4, flip=False)),
            (200.0, Pose(side=0.76, x=0.54, y=0.56, angle=5, flip=True, gain=0.97)),
            (120.0, Pose(side=0.82, x=0.46, y=0.55, angle=0, flip=False, gain=1.03)),
            (60.0, Pose(side=0.90, x=0.51, y=0.51, angle=6, flip=False, contrast=0.96)),
            (230.0, Pose(side=0.72, x=0.45, y=0.57, angle=-6, flip=True, contrast=1.04)),
        ],
        strict=True,
    )
)


def sheet(images: np.ndarray, captions: list[str], *, columns: int = 8, scale: int = 2) -> Image:
    """Returns a contact sheet of images uint8 [N,S,S,3], enlarged `scale` times, with captions."""
    size = images[0].shape[0] * scale
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (size + 4), rows * (size + 38)), "white")
    draw = ImageDraw.Draw(page)
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x, y = number % columns * (size + 4), number // columns * (size + 38)
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
