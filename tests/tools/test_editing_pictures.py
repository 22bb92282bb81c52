"""The picture of docs/editing.md: its masks, its numbers, its size."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import dreambooth_jax

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

from editing_pictures import BIRDS, LARGEST, PLACES, gain, outline, oval, sheet, written

SUBJECT = Path(dreambooth_jax.__file__).parent / "assets" / "subject"


def test_outlines_hold_the_bird_and_little_else():
    for name, (box, faces, pose) in BIRDS.items():
        pixels = np.asarray(Image.open(SUBJECT / name).convert("RGB")).astype(int)
        red, green, blue = np.moveaxis(pixels, -1, 0)
        magenta = (red - green > 90) & (blue - green > 20)
        inside = np.asarray(outline(box, faces, pose, side=256)) > 0
        assert magenta.mean() > 0.08
        assert inside[magenta].mean() > 0.9, name
        left, top, right, bottom = box
        assert inside.sum() < 0.7 * (right - left) * (bottom - top)
        assert not inside[:top].any() and not inside[:, :left].any()


def test_ovals_lie_in_their_photos():
    for left, top, right, bottom in PLACES.values():
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        area = (np.asarray(oval((left, top, right, bottom), side=200)) > 0).mean()
        assert abs(area - np.pi / 4 * (right - left) * (bottom - top)) < 0.02


def test_the_gain_is_over_the_untouched_base_by_each_judge():
    def score(pictures: str, value: float, **changed: str) -> dict[str, object]:
        of = {"measure": "subject_similarity", "encoder": "a", "pictures": pictures}
        return of | {"value": value} | changed

    other = score("edits", 9.0, measure="prompt_similarity")
    found = [score("edits", 0.5), score("untouched", 0.25), score("before", 0.75), other]
    found += [score("edits", 0.25, encoder="b"), score("untouched", 0.5, encoder="b")]
    assert gain({"scores": found}) == "+0.250 (a), -0.250 (b)"
    assert gain({"scores": []}) == "no judge is installed"


def test_a_sheet_of_noise_is_not_too_large(tmp_path):
    rng = np.random.default_rng(0)
    rows = {f"row\n{k}": [rng.integers(0, 256, (128, 128, 3), np.uint8)] * 2 for k in range(3)}
    page = sheet(rows)
    assert written(page, tmp_path / "new" / "sheet.jpg") < LARGEST
    with Image.open(tmp_path / "new" / "sheet.jpg") as read:
        assert read.size == page.size
