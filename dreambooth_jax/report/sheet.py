"""One picture of many: a row for each prompt, with the prompt above it."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_GAP = 8  # pixels between pictures
_MOST_LINES = 8  # of a caption; the whole prompt is in the text of each picture's file
_SMALLEST = 128  # pixels along a side: smaller pictures are shown enlarged, pixel by pixel
_INK, _PAPER = (32, 32, 36), (252, 252, 250)


def sheet(rows: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """uint8 pictures `[H,W,3]` of one size by caption -> one uint8 picture."""
    side = max(picture.shape[1] for pictures in rows.values() for picture in pictures)
    zoom = max(-(-_SMALLEST // side), 1)
    font = ImageFont.load_default(size=15)
    columns = max(len(pictures) for pictures in rows.values())
    width = _GAP + columns * (side * zoom + _GAP)
    letters = max(int((width - 2 * _GAP) / font.getlength("n")), 8)
    lines = {
        caption: textwrap.wrap(
            caption[: letters * _MOST_LINES], letters, max_lines=_MOST_LINES, placeholder=" …"
        )
        or [""]
        for caption in rows
    }
    line_height = 20
    heights = [
        len(lines[caption]) * line_height + _GAP + pictures[0].shape[0] * zoom + _GAP
        for caption, pictures in rows.items()
    ]
    page = Image.new("RGB", (width, sum(heights) + _GAP), _PAPER)
    pen, top = ImageDraw.Draw(page), _GAP
    for (caption, pictures), height in zip(rows.items(), heights, strict=True):
        for number, line in enumerate(lines[caption]):
            pen.text((_GAP, top + number * line_height), line, fill=_INK, font=font)
        below = top + len(lines[caption]) * line_height + _GAP // 2
        for column, picture in enumerate(pictures):
            image = Image.fromarray(picture)
            large = image.resize(
                (image.width * zoom, image.height * zoom), Image.Resampling.NEAREST
            )
            page.paste(large, (_GAP + column * (side * zoom + _GAP), below))
        top += height
    return np.asarray(page)
