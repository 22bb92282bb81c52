"""The study's pictures on one page: a row for each arm, the same prompts and noise in columns.

Not a command: `study.py --figures FOLDER` writes what is made here.
"""

from collections.abc import Mapping

import numpy as np
import trials
from nouns import UNSEEN_PLACES
from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LABEL, HEAD = 72, 4, 190, 22  # pixels: a picture, between two, left column, top row
PAPER, INK = (252, 252, 250), (32, 32, 36)
COLUMNS = ("", *UNSEEN_PLACES)


def page(of_subject: Mapping[str, tuple[np.ndarray, Mapping[str, trials.Trial]]]) -> np.ndarray:
    """One uint8 page of (photos, trials by arm) of subjects.

    Each has its photos, the untouched model's pictures, and those of every arm.
    """
    rows = [row for name, (photos, arms) in of_subject.items() for row in _rows(name, photos, arms)]
    width = LABEL + (len(COLUMNS) + 1) * (SIDE + GAP)
    paper = Image.new("RGB", (width, HEAD + len(rows) * (SIDE + GAP)), PAPER)
    pen, font = ImageDraw.Draw(paper), ImageFont.load_default(size=12)
    for column, title in enumerate((*COLUMNS, "the class")):
        pen.text((LABEL + column * (SIDE + GAP), 4), title, fill=INK, font=font)
    for number, (label, row) in enumerate(rows):
        top = HEAD + number * (SIDE + GAP)
        pen.text((GAP, top + SIDE // 2 - 8), label, fill=INK, font=font)
        for column, picture in enumerate(row):
            large = Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            paper.paste(large, (LABEL + column * (SIDE + GAP), top))
    return np.asarray(paper)


def _rows(
    subject: str, photos: np.ndarray, arms: Mapping[str, trials.Trial]
) -> list[tuple[str, list[np.ndarray]]]:
    """(label, pictures): the first of each prompt."""
    rows = [(f"photos: {subject}", list(photos))]
    untouched = next(iter(arms.values()))
    for label, trial in {"untouched": untouched, **arms}.items():
        drawn = trial.pictures("before" if label == "untouched" else "after")
        own = [prompt for prompt in drawn if trial.identifier in prompt.split()]
        alone = [prompt for prompt in drawn if prompt not in own]
        chosen = [next(p for p in own if p.endswith(place)) for place in COLUMNS]
        rows.append((label, [drawn[prompt][0] for prompt in (*chosen, alone[0])]))
    return rows
