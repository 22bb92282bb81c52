"""Scenes on disk: the same as rendered, rendered once, and batches that a step understands."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import recorded
from composites import Scene


class Numbers:
    """Scenes that tell their number: every pixel of number n is n, the left half is the thing."""

    def __init__(self, material, *, size, seed):
        self.size = size
        self.asked = []

    def scene(self, index):
        self.asked.append(index)
        picture = np.full((self.size, self.size, 3), index, np.uint8)
        coverage = np.zeros((self.size, self.size), np.uint8)
        coverage[:, : self.size // 2] = 255
        return Scene(picture, f"number {index}", coverage)


@pytest.fixture
def scenes(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "SHARD", 8)
    monkeypatch.setattr(recorded, "Composites", Numbers)
    return recorded.Recorded(lambda: None, tmp_path / "scenes", size=8, shards=3)


def stage(kind="base"):
    """A stage whose one token of a caption is its number, and 99 for the empty one."""

    def tokens(captions):
        ids = [[int(caption.split()[-1]) if caption else 99] for caption in captions]
        return {"ids": np.array(ids), "mask": np.ones((len(ids), 1), int)}

    return types.SimpleNamespace(kind=kind, tokens=tokens)


def test_scenes_come_by_number_are_rendered_once_and_begin_again(scenes):
    pictures, _, captions = scenes.rows(5, 6)
    assert pictures[:, 0, 0, 0].tolist() == [5, 6, 7, 8, 9, 10]
    assert captions == [f"number {n}" for n in range(5, 11)]
    assert scenes.composites.asked == list(range(16))
    again = recorded.Recorded(None, scenes.folder, size=8, shards=3)  # needs no material
    np.testing.assert_array_equal(again.rows(5, 6)[0], pictures)
    assert scenes.rows(23, 2)[2] == ["number 23", "number 0"]


def test_parts_that_are_absent_are_rendered_ahead(scenes):
    scenes.rows(8, 1)
    scenes.ahead(1)
    assert scenes.composites.asked == [*range(8, 16), *range(8), *range(16, 24)]


def test_a_part_that_was_not_finished_is_rendered_again(scenes):
    scenes.rows(0, 1)
    (scenes.folder / "0000.captions.json").unlink()
    again = recorded.Recorded(lambda: None, scenes.folder, size=8, shards=3)
    assert again.rows(3, 1)[2] == ["number 3"] and again.composites.asked == list(range(8))


def test_batches_are_pure_halved_exactly_and_drop_a_tenth_of_the_captions(scenes):
    batches = recorded.Batches(scenes, stage(), thing=3.0)
    batch = batches.batch(7, first=2, count=4, size=4)
    assert batch["mean"].shape == (4, 4, 4, 3)
    np.testing.assert_allclose(batch["mean"][:, 0, 0, 0], np.arange(2, 6) / 127.5 - 1, atol=1e-6)
    # The thing's pixels weigh three times the others'.
    np.testing.assert_allclose(batch["pixel_weights"][0, 0, :, 0], [3, 3, 1, 1])
    same = batches.batch(7, first=2, count=4, size=4)
    assert all((batch[name] == same[name]).all() for name in batch)
    ids = [batches.batch(step, first=0, count=24, size=8)["ids"] for step in range(100)]
    share = np.mean([rows == 99 for rows in ids])
    assert abs(share - 0.1) < 0.02  # 2400 draws: three standard deviations
    assert "pixel_weights" not in recorded.Batches(scenes, stage()).batch(
        0, first=0, count=2, size=8
    )


def test_an_upscaler_gets_the_mean_of_each_four_pixels_beside_the_picture(scenes):
    batches = recorded.Batches(scenes, stage("upscaler"))
    batch = batches.batch(0, first=0, count=3, size=8)
    assert batch["low_res"].shape == (3, 4, 4, 3)
    np.testing.assert_allclose(batch["low_res"][:, 0, 0], batch["mean"][:, 0, 0])
