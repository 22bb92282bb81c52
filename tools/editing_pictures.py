"""The picture of docs/editing.md: the tuned bird in five photos, before other places, in scenes.

    python -m dreambooth_jax.main --config=configs/imagen_like.py --workdir=runs/bird
    python tools/editing_pictures.py PHOTOS runs/bird docs/editing.jpg

PHOTOS is a copy of the DreamBooth data set or of its folder `dataset/` (CC BY 4.0; `PLACES` names
five photos by Nataniel Ruiz). They are made small, as the embedded base's pictures are, and masks
are painted: an oval over a thing of each photo, the outline of the bird in its own photos. Of every
photo the first edit is shown, none is chosen. Printed are the scores of all, inside of the masks,
beside those of the untouched base, and the largest difference outside.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import dreambooth_jax
from dreambooth_jax import config
from dreambooth_jax.experiment.modes.edit import edit

# Photos of the data set, and the oval that is drawn anew: left, top, right, bottom, as shares.
PLACES = {
    "candle/00.jpg": (0.27, 0.10, 0.73, 0.60),
    "duck_toy/03.jpg": (0.21, 0.22, 0.79, 0.84),
    "grey_sloth_plushie/00.jpg": (0.08, 0.09, 0.68, 0.75),
    "colorful_sneaker/03.jpg": (0.22, 0.22, 0.82, 0.88),
    "bear_plushie/01.jpg": (0.16, 0.04, 0.86, 0.84),
}
# Outlines of the bird's two poses, facing left, as shares of the rectangle around it.
OUTLINES = (
    (
        (0.30, 0.0), (0.12, 0.08), (0.0, 0.20), (0.03, 0.32), (0.08, 0.37), (0.0, 0.55),
        (0.06, 0.72), (0.22, 0.86), (0.18, 1.0), (0.70, 1.0), (0.64, 0.89), (0.96, 0.86),
        (1.0, 0.63), (0.72, 0.65), (0.60, 0.44), (0.54, 0.20), (0.45, 0.03),
    ),
    (
        (0.37, 0.0), (0.16, 0.06), (0.04, 0.16), (0.05, 0.25), (0.11, 0.27), (0.05, 0.36),
        (0.0, 0.57), (0.05, 0.75), (0.22, 0.88), (0.09, 0.90), (0.09, 1.0), (0.58, 1.0),
        (0.60, 0.91), (0.83, 0.92), (0.99, 0.84), (1.0, 0.71), (0.67, 0.72), (0.64, 0.43),
        (0.59, 0.15), (0.48, 0.02),
    ),
)  # fmt: skip
# The bird in its own photos: the rectangle in pixels of 256², the way that it faces, its pose.
BIRDS = {
    "parrot_01.png": ((22, 25, 222, 248), "left", 0),
    "parrot_02.png": ((53, 51, 225, 244), "right", 0),
    "parrot_03.png": ((28, 38, 206, 245), "left", 0),
    "parrot_04.png": ((32, 14, 223, 244), "left", 1),
    "parrot_05.png": ((43, 52, 195, 237), "right", 1),
}
SIDE = 128  # pixels of a photo, and of a cell of the sheet
GAP, LEFT, LINE = 4, 92, 15
LARGEST = 120_000  # bytes of the sheet
INK, PAPER = (30, 30, 30), (255, 255, 255)
Rows = dict[str, list[np.ndarray]]


def oval(place: Sequence[float], side: int = SIDE) -> Image.Image:
    """The mask with an oval in a place given as shares."""
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).ellipse([share * side for share in place], fill=255)
    return mask


def outline(box: Sequence[int], faces: str, pose: int, side: int = SIDE) -> Image.Image:
    """The mask with the bird's outline in a rectangle of a photo of 256²."""
    left, top, right, bottom = (value * side / 256 for value in box)
    points = [
        (left + (x if faces == "left" else 1 - x) * (right - left), top + y * (bottom - top))
        for x, y in OUTLINES[pose]
    ]
    mask = Image.new("L", (side, side))
    ImageDraw.Draw(mask).polygon(points, fill=255)
    return mask


def prepared(folder: Path, photos: Mapping[str, tuple[Path, Image.Image]]) -> Path:
    """A folder of small photos with their masks, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (file, mask) in photos.items():
        with Image.open(file) as photo:
            small = photo.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(folder / f"{name}.png")
        mask.save(folder / f"{name}.mask.png")
    return folder


def edited(run: Path, name: str, **own: Any) -> tuple[Path, dict[str, Any]]:
    """The folder of edits with these settings, and its record; prints the command and scores."""
    c = config.of_run(str(run))
    c.update_from_flattened_dict({f"edit.{key}": value for key, value in own.items()})
    told = " ".join(f'--config.edit.{key}="{value}"' for key, value in own.items())
    print(f"{name}: --config=configs/of_run.py:{run} --mode=edit {told}", flush=True)
    folder = edit(c, run)
    record: dict[str, Any] = json.loads((folder / "edits.json").read_text())
    for score in record["scores"]:
        print(
            f"  {score['measure']} ({score['encoder']}), {score['pictures']}: {score['value']:.3f}"
            f" [{score['low']:.3f}, {score['high']:.3f}]"
        )
    if own.get("untouched"):
        print(f"  subject similarity, gain over the untouched base: {gain(record)}")
    outside = [photo["largest_difference_outside"] for photo in record["photos"]]
    print(f"  largest differences outside of the masks: {outside}", flush=True)
    return folder, record


def gain(record: Mapping[str, Any]) -> str:
    """The edits' subject similarity less that of the untouched base, by each judge."""
    found = {
        (score["encoder"], score["pictures"]): score["value"]
        for score in record["scores"]
        if score["measure"] == "subject_similarity"
    }
    judges = [judge for judge, pictures in found if pictures == "untouched"]
    told = [f"{found[one, 'edits'] - found[one, 'untouched']:+.3f} ({one})" for one in judges]
    return ", ".join(told) or "no judge is installed"


def read(file: Path) -> np.ndarray:
    """A picture uint8 `[H,W,3]`."""
    return np.asarray(Image.open(file).convert("RGB"))


def marked(folder: Path, name: str) -> np.ndarray:
    """A photo with the outline of its mask."""
    photo, inside = read(folder / f"{name}.source.png"), read(folder / f"{name}.mask.png") > 0
    edge = inside[..., 0] & ~(
        np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1)
        & np.roll(inside, -1, 1)
    )[..., 0]  # fmt: skip
    return np.where(edge[..., None], np.array([255, 0, 255], np.uint8), photo)


def sheet(rows: Mapping[str, Sequence[np.ndarray]]) -> Image.Image:
    """The rows of pictures with their captions to the left."""
    count = max(len(pictures) for pictures in rows.values())
    size = LEFT + count * (SIDE + GAP), len(rows) * (SIDE + GAP)
    page = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for number, (caption, pictures) in enumerate(rows.items()):
        top = number * (SIDE + GAP)
        for line, text in enumerate(caption.split("\n")):
            draw.text((2, top + 4 + line * LINE), text, INK, font=font)
        for k, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            page.paste(large, (LEFT + k * (SIDE + GAP), top))
    return page


def of_photos(run: Path, dataset: Path, work: Path) -> Rows:
    """The bird in photos, where things were."""
    photos = {
        name.replace("/", "_").removesuffix(".jpg"): (dataset / name, oval(place))
        for name, place in PLACES.items()
    }
    folder, record = edited(
        run,
        "photos",
        images=str(prepared(work / "photos", photos)),
        prompts=("a {subject}",),
        context=0.2,
        grow=2,
        feather=3,
        untouched=True,
    )
    names, prompt = sorted(photos), record["photos"][0]["edits"][0]["prompt"]
    return {
        "photo, mask": [marked(folder, name) for name in names],
        f"{prompt}\n(tuned)": [read(folder / f"{name}_00_00.png") for name in names],
        "a bird\n(untouched)": [read(folder / f"untouched/{name}_00_00.png") for name in names],
    }


def of_backgrounds(run: Path, work: Path) -> Rows:
    """The bird's own photos, in other places."""
    own = Path(dreambooth_jax.__file__).parent / "assets" / "subject"
    birds = {
        name.removesuffix(".png"): (own / name, outline(*place)) for name, place in BIRDS.items()
    }
    places = ("in the desert", "at sunset")
    folder, _ = edited(
        run,
        "backgrounds",
        images=str(prepared(work / "birds", birds)),
        # Of the class: a prompt that names the subject draws a second one beside it.
        prompts=tuple(f"a {{class_noun}} {place}" for place in places),
        outside=True,
        feather=2,
    )
    names = sorted(birds)
    rows = {"own photo, mask": [marked(folder, name) for name in names]}
    for p, place in enumerate(places):
        rows[f"background:\n{place}"] = [read(folder / f"{n}_{p:02d}_00.png") for n in names]
    return rows


def of_scenes(run: Path) -> Rows:
    """A blue bird in drawn scenes, then the subject in its place, without and with local blend."""
    rows = {}
    for blend in ("none", "difference"):
        folder, record = edited(
            run,
            f"scenes, local_blend={blend}",
            images="",
            method="prompt_to_prompt",
            source_prompt="a blue {class_noun} in the desert",
            prompts=("a {subject} in the desert",),
            local_blend=blend,
            num_images=5,
            untouched=True,
        )
        names = [f"scene_{k:02d}" for k in range(5)]
        prompt = record["photos"][0]["edits"][0]["prompt"].replace(" in the", "\nin the")
        rows["drawn:\na blue bird\nin the desert"] = [
            read(folder / f"{n}.source.png") for n in names
        ]
        rows[f"{prompt},\nlocal blend:\n{blend}"] = [
            read(folder / f"{n}_00_{n[-2:]}.png") for n in names
        ]
    return rows


def written(page: Image.Image, out: Path) -> int:
    """Writes the sheet at the best quality that stays below `LARGEST`; returns its bytes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(92, 40, -4):
        page.save(out, quality=quality, optimize=True)
        if out.stat().st_size < LARGEST:
            break
    return out.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", type=Path, help="copy of the DreamBooth data set")
    parser.add_argument("run", type=Path, help="folder of a finished run of the embedded base")
    parser.add_argument("out", type=Path, help="picture to write")
    given = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    dataset = given.photos / "dataset" if (given.photos / "dataset").is_dir() else given.photos
    work = given.run / "editing_pictures"
    rows = of_photos(given.run, dataset, work) | of_backgrounds(given.run, work)
    size = written(sheet(rows | of_scenes(given.run)), given.out)
    print(json.dumps({"written": str(given.out), "bytes": size}))


if __name__ == "__main__":
    main()
