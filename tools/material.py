"""Material for the composites, fetched from npm and rendered once into one .npz.

Nothing here is used at run time by the package. The material is pinned and checked: Fluent Emoji
3D (MIT), Noto Emoji by way of emoji-datasource-google 15.1.2 (images Apache-2.0), and eighteen
Poly Haven panoramas in @pmndrs/assets (CC0). Reading the panoramas needs `pip install OpenEXR`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import effects
import numpy as np
from effects import SURFACES
from nouns import ACCESSORIES, COLOURS, NOUNS, PLACES, SUBJECT, Panorama
from PIL import Image
from scipy import signal

RENDERING = 3  # raise when the rendering of the material changes, so that old caches are redone
PIXELS = 96  # side of the stored cut-outs and views: 64 px scenes are always scaled down
VIEWS = 48  # views per place
APERTURE = (0.035, 0.07)  # radius of the blur of a place, in sides of a view

# npm package -> version and sha256 of its tarball (as published; npm versions are immutable)
PACKAGES = {
    "@lobehub/fluent-emoji-3d": (
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "emoji-datasource-google": (
        "15.1.2",
        "d44462c604b8b8ddeea1bded87031fe73beadd92b9569d977dbd6224e45dc850",
    ),
    "@pmndrs/assets": (
        "1.7.0",
        "152bd218a3390703f184f0c6ce16e73c8f0a87f32d38530d418a09d33d8208dc",
    ),
    "emojilib": ("4.0.3", "7f9a6b43cff31d18985b7d65d11faba5bd971cbcc60020cf6d09322fbaaaf303"),
    "emojibase-data": (
        "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
}


def fetch(package: str, cache_dir: str | Path) -> Path:
    """Return the path of a pinned npm tarball in `cache_dir`, packing it first when it is absent.

    Raises ValueError when the file's sha256 is not the recorded one.
    """
    version, expected = PACKAGES[package]
    path = Path(cache_dir) / f"{package.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", f"{package}@{version}"]
        subprocess.run(
            [*command, "--pack-destination", str(path.parent)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise ValueError(
            f"{path}: sha256 {found}, expected {expected} for {package}@{version}; "
            "delete the file and run again"
        )
    return path


def members(tarball: str | Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return the named members of an npm tarball (names without the leading "package/")."""
    wanted, out = set(names), {}
    with tarfile.open(tarball) as tar:
        for info in tar:
            name = info.name.partition("/")[2]
            if name in wanted:
                out[name] = tar.extractfile(info).read()
    if missing := sorted(wanted - set(out)):
        raise ValueError(f"{tarball} lacks {', '.join(missing)}")
    return out


def _read_cutouts(sources: Iterable[str], cache_dir: str | Path) -> dict[str, Image.Image]:
    """Return the RGBA pictures of "f:<points>" and "n:<points>" sources."""
    layouts = {
        "f": ("@lobehub/fluent-emoji-3d", "assets/{}.webp"),
        "n": ("emoji-datasource-google", "img/google/64/{}.png"),
    }
    out = {}
    for look, (package, pattern) in layouts.items():
        files = {
            source: pattern.format(_with_selector(source[2:]))
            for source in sources
            if source.startswith(look)
        }
        data = members(fetch(package, cache_dir), files.values())
        for source, file in files.items():
            out[source] = Image.open(io.BytesIO(data[file])).convert("RGBA")
    return out


def _with_selector(points: str) -> str:
    # Characters that are text by default carry the emoji variation selector in both packages.
    return (
        f"{points}-fe0f"
        if points in {"2708", "2603", "2602", "2764", "1f54a", "1f570", "1f576"}
        else points
    )


def trimmed(image: Image.Image, pixels: int = PIXELS) -> np.ndarray:
    """Return RGBA as premultiplied uint8 [pixels, pixels, 4], cut to its alpha and centred."""
    box = image.getchannel("A").point(lambda a: 255 if a > 24 else 0).getbbox()
    image = image.crop(box).convert("RGBa")
    scale = (pixels - 4) / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    square = np.zeros((pixels, pixels, 4), np.uint8)
    top, left = (pixels - height) // 2, (pixels - width) // 2
    picture = np.asarray(image)
    # The filter overshoots at edges; more colour than coverage would shine.
    picture = np.minimum(picture, picture[..., 3:])
    square[top : top + height, left : left + width] = picture
    return square


def filled_in(light: np.ndarray) -> np.ndarray:
    """Return linear light float32 [H,W,3] with broken pixels filled in from their neighbours.

    Around lamps and suns the panoramas hold NaN, infinite, negative (ringing of a resampling
    filter) and, in the suns' middles, bright values in a single channel.
    """
    finite = np.where(np.isfinite(light), light, 0)
    high, low = finite.max(-1), finite.min(-1)
    good = np.isfinite(light).all(-1) & (low > -1e-3) & ((high < 2) | (low > 1e-3 * high))
    # Means of logarithms: a lamp of 20,000 beside a wall must not turn the wall into a lamp.
    level = np.log(np.maximum(finite, 1e-4))
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    for _ in range(sum(light.shape[:2])):
        if good.all() or not good.any():
            break
        count = sum(np.roll(good, step, (0, 1)).astype(np.float32) for step in steps)
        total = sum(np.roll(level * good[..., None], step, (0, 1)) for step in steps)
        ready = ~good & (count > 0)
        level[ready] = total[ready] / count[ready][:, None]
        good |= ready
    return np.exp(level)


def read_panorama(data: bytes, panorama: Panorama) -> np.ndarray:
    """Return a panorama's linear light as float32 [256, 512, 3], exposed; 1 is about white."""
    import OpenEXR  # only whoever renders the material anew needs it

    encoded = re.search(rb"base64,([A-Za-z0-9+/=]+)", data).group(1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "panorama.exr"
        file.write_bytes(base64.b64decode(encoded))
        with OpenEXR.File(str(file)) as exr:
            light = np.array(exr.channels()["RGB"].pixels, np.float32)
    light = filled_in(light)
    band = light[64:192].mean(-1)  # ±45° around the horizon: the rest is hardly ever seen
    exposure = 0.22 / np.exp(np.log(np.clip(band, 1e-4, None)).mean())
    return light * np.float32(exposure * panorama.exposure) * np.float32(panorama.tint)


def view(
    light: np.ndarray, *, yaw: float, pitch: float, fov: float, pixels: int = PIXELS
) -> np.ndarray:
    """Return a square perspective view uint8 [pixels, pixels, 3] of an equirectangular panorama.

    Angles in degrees; `fov` is horizontal. Light is tone-mapped by Reinhard's curve with white
    at 4 (Reinhard et al. 2002, eq. 4), then encoded with the sRGB curve's gamma, about 1/2.2.
    """
    mapped = light * (1 + light / 16) / (1 + light)
    encoded = np.clip(mapped * 1.6, 0, 1) ** (1 / 2.2)
    # Twice the resolution, averaged down: a view can be coarser than the panorama at its edges.
    n = 2 * pixels
    u = (np.arange(n, dtype=np.float32) + 0.5) / n * 2 - 1
    reach = np.tan(np.deg2rad(fov) / 2)
    x, y = np.meshgrid(u * reach, -u * reach)
    tilt = np.deg2rad(pitch)
    up = y * np.cos(tilt) + np.sin(tilt)
    ahead = np.cos(tilt) - y * np.sin(tilt)
    longitude = np.arctan2(x, ahead) + np.deg2rad(yaw)
    latitude = np.arctan2(up, np.hypot(x, ahead))
    height, width = encoded.shape[:2]
    column = (longitude / (2 * np.pi)) % 1 * width - 0.5
    row = np.clip((0.5 - latitude / np.pi) * height - 0.5, 0, height - 1.001)
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    fx, fy = (column - left)[..., None], (row - top)[..., None]
    right = (left + 1) % width
    left = left % width
    upper = encoded[top, left] * (1 - fx) + encoded[top, right] * fx
    lower = encoded[top + 1, left] * (1 - fx) + encoded[top + 1, right] * fx
    full = upper * (1 - fy) + lower * fy
    return np.round(full.reshape(pixels, 2, pixels, 2, 3).mean((1, 3)) * 255).astype(np.uint8)


def defocused(picture: np.ndarray, radius: float) -> np.ndarray:
    """Returns a picture uint8 [H,W,3] as a lens shows what lies far behind its focus.

    Every point of light becomes a disc of `radius` pixels, so the mean is taken over a disc, of
    light rather than of its encoding (gamma 2.2). Beyond the edge the picture is mirrored.
    """
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)[..., None].astype(np.float32)
    light = (picture.astype(np.float32) / 255) ** 2.2
    light = np.pad(light, ((reach, reach), (reach, reach), (0, 0)), mode="reflect")
    mean = signal.fftconvolve(light, disc / disc.sum(), mode="valid", axes=(0, 1))
    return np.round(np.clip(mean, 0, 1) ** (1 / 2.2) * 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Material:
    """Everything a composite is made of.

    `cutouts` uint8 [N,P,P,4] premultiplied, with each one's `nouns`, `surfaces` ("" as it is) and
    `sources`; `views` uint8 [places,views,P,P,3], out of focus, in the order of `places`;
    `accessories` uint8 [3,P,P,4] in the order of `ACCESSORIES`; `subject` uint8 [P,P,4] is the
    held-out cut-out and not among `cutouts`.
    """

    cutouts: np.ndarray
    nouns: tuple[str, ...]
    surfaces: tuple[str, ...]
    sources: tuple[str, ...]
    views: np.ndarray
    places: tuple[str, ...]
    accessories: np.ndarray
    subject: np.ndarray


def load_panoramas(cache_dir: str | Path) -> dict[str, np.ndarray]:
    """Return the linear light float32 [256,512,3] of every place in `PLACES`."""
    files = {place: f"hdri/{panorama.name}.exr.js" for place, panorama in PLACES.items()}
    data = members(fetch("@pmndrs/assets", cache_dir), files.values())
    return {place: read_panorama(data[files[place]], PLACES[place]) for place in PLACES}


def render_views(light: np.ndarray, panorama: Panorama, *, seed: int) -> np.ndarray:
    """Return `VIEWS` views uint8 [VIEWS,P,P,3]: even yaws with jitter, random pitch and blur."""
    rng = np.random.default_rng(seed)
    start, end = panorama.yaw
    yaws = start + (end - start) * (np.arange(VIEWS) + rng.uniform(0, 1, VIEWS)) / VIEWS
    pitches, fovs = rng.uniform(*panorama.pitch, VIEWS), rng.uniform(62, 92, VIEWS)
    radii = PIXELS * rng.uniform(*APERTURE, VIEWS)
    views = [
        defocused(view(light, yaw=yaw, pitch=pitch, fov=fov), radius)
        for yaw, pitch, fov, radius in zip(yaws, pitches, fovs, radii, strict=True)
    ]
    return np.stack(views)


def prepare(cache_dir: str | Path) -> Material:
    """Return the material, from `cache_dir`/composites.npz when it is there and up to date.

    Otherwise fetches the tarballs (105 MB, once) and renders it in under a minute.
    """
    path = Path(cache_dir) / "composites.npz"
    settings = repr(
        (RENDERING, PIXELS, VIEWS, APERTURE, NOUNS, PLACES, COLOURS, ACCESSORIES, SUBJECT)
    )
    settings += Path(effects.__file__).read_text(encoding="utf-8")
    version = hashlib.sha256(settings.encode()).hexdigest()
    if path.exists():
        with np.load(path) as file:
            if str(file["version"]) == version:
                arrays = {field.name: file[field.name] for field in dataclasses.fields(Material)}
                for name in ("nouns", "surfaces", "sources", "places"):
                    arrays[name] = tuple(arrays[name].tolist())
                return Material(**arrays)
    material = _render(cache_dir)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, version=version, **vars(material))
    partial.replace(path)
    return material


def _render(cache_dir: str | Path) -> Material:
    sources = [source for looks in NOUNS.values() for source in looks]
    pictures = _read_cutouts([*sources, *ACCESSORIES.values(), SUBJECT], cache_dir)
    rows = []
    for noun, looks in NOUNS.items():
        for source in looks:
            cutout = trimmed(pictures[source])
            rows.append((cutout, noun, "", source))
            rows += [(paint(cutout), noun, name, source) for name, paint in SURFACES.items()]
    lights = load_panoramas(cache_dir)
    views = [render_views(lights[p], PLACES[p], seed=i) for i, p in enumerate(PLACES)]
    cutouts, nouns, surfaces, names = zip(*rows, strict=True)
    return Material(
        cutouts=np.stack(cutouts),
        nouns=nouns,
        surfaces=surfaces,
        sources=names,
        views=np.stack(views),
        places=tuple(PLACES),
        accessories=np.stack([trimmed(pictures[source]) for source in ACCESSORIES.values()]),
        subject=trimmed(pictures[SUBJECT]),
    )


def subject_cutout(
    cache_dir: str | Path, pixels: int = 256, *, source: str = SUBJECT
) -> np.ndarray:
    """Return a held-out subject premultiplied uint8 [pixels,pixels,4], from its 256 px file."""
    return trimmed(_read_cutouts([source], cache_dir)[source], pixels)


def keywords(cache_dir: str | Path) -> list[str]:
    """Return the English names and keywords of all emoji (emojilib, emojibase), for a tokenizer."""
    lines = []
    data = members(fetch("emojilib", cache_dir), ["dist/emoji-en-US.json"])
    for words in json.loads(data["dist/emoji-en-US.json"]).values():
        lines += [word.replace("_", " ") for word in words]
    data = members(fetch("emojibase-data", cache_dir), ["en/data.json"])
    for entry in json.loads(data["en/data.json"]):
        lines += [entry["label"], *entry.get("tags", ())]
    return [line.lower() for line in lines]
