"""The picture of the README: photos, then the same prompts before and after a run.

    python -m dreambooth_jax.main --config=configs/imagen_like.py --workdir=runs/bird
    python tools/picture_strip.py runs/bird docs/strip.png

Of every prompt the first picture (seed 0 of the grid) is shown, none is chosen.
"""

import argparse
import json
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import dreambooth_jax
from dreambooth_jax import config
from dreambooth_jax.experiment.parts.grids import read_picture

Row = list[tuple[str, Image.Image]]  # pictures with their prompts
SIDE, GAP, LINE = 112, 6, 16  # pixels: a picture, between two, a line of text
LETTER, LINES = 6, 3  # pixels of a letter, at most; lines of a prompt
INK, PAPER = (30, 30, 30), (255, 255, 255)


def column(folder: Path, count: int) -> Row:
    """The first picture of each prompt of a grid, with its prompt."""
    files = sorted(folder.glob("*_00.png"))[:count]
    found = []
    for file in files:
        pixels, about = read_picture(file)
        found.append((str(about["prompt"]), Image.fromarray(pixels)))
    return found


def strip(
    photos: list[Image.Image], grids: dict[str, list[tuple[str, Image.Image]]]
) -> Image.Image:
    """Rows "photos", "before" and "after", prompts above the last two."""
    count = max(len(photos), *(len(row) for row in grids.values()))
    left = 64
    width = left + count * (SIDE + GAP)
    height = (1 + len(grids)) * (SIDE + GAP) + LINE * LINES
    page = Image.new("RGB", (width, height), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)

    def put(name: str, pictures: list[Image.Image], top: int) -> None:
        draw.text((2, top + SIDE // 2 - 8), name, INK, font=font)
        for k, picture in enumerate(pictures):
            place = (left + k * (SIDE + GAP), top)
            page.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST), place)

    put("photos", photos, 0)
    top = SIDE + GAP + LINES * LINE
    prompts = [prompt for prompt, _ in next(iter(grids.values()))]
    for k, prompt in enumerate(prompts):
        for row, line in enumerate(textwrap.wrap(prompt, SIDE // LETTER)[:LINES]):
            place = (left + k * (SIDE + GAP), SIDE + GAP + row * LINE)
            draw.text(place, line, INK, font=font)
    for name, row in grids.items():
        put(name, [picture for _, picture in row], top)
        top += SIDE + GAP
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("out", type=Path, help="picture to write")
    parser.add_argument("--count", type=int, default=6, help="photos, and prompts of the grid")
    given = parser.parse_args()
    saved = config.from_json((given.run / "config.json").read_text())
    images = saved.subject.images
    folder = Path(dreambooth_jax.__file__).parent / "assets" / "subject"
    folder = folder if images == "embedded" else Path(images)
    endings = Image.registered_extensions()
    photos = sorted(each for each in folder.iterdir() if each.suffix.lower() in endings)
    samples = given.run / "samples"
    grids = {name: column(samples / name, given.count) for name in ("before", "after")}
    if not all(grids.values()):
        raise SystemExit(f"{given.run}: no pictures in samples/before and samples/after")
    page = strip([Image.open(file) for file in photos[: given.count]], grids)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(256).save(given.out, optimize=True)
    print(json.dumps({"written": str(given.out), "bytes": given.out.stat().st_size}))


if __name__ == "__main__":
    main()
