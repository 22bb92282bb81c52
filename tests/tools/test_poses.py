"""Cut-outs in the frame: area, place, clothes, and foreshortening, of shapes of known size."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import poses
from nouns import Head

GREEN = (40, 200, 60)


def square(colour, low, high, pixels=96):
    """Returns a premultiplied cut-out uint8 [pixels,pixels,4], solid in rows and columns."""
    out = np.zeros((pixels, pixels, 4), np.uint8)
    out[low:high, low:high] = (*colour, 255)
    return out


def disc(colour, pixels=96):
    y, x = np.mgrid[:pixels, :pixels] - (pixels - 1) / 2
    inside = (np.hypot(x, y) < pixels / 2 - 2)[..., None]
    return np.where(inside, np.uint8([*colour, 255]), np.uint8(0))


@pytest.mark.parametrize("stretch", [1.0, 0.8])
def test_compose_covers_the_area_that_the_pose_says(stretch):
    background = np.full((128, 128, 3), 100, np.uint8)
    pose = poses.Pose(side=0.5, x=0.3, y=0.7, angle=0, flip=True, stretch=stretch)
    out, coverage = poses.compose(poses.pyramid(disc(GREEN)), background, pose, shadow=0)
    covered = (out != 100).any(-1)
    # A disc of diameter 0.5 · 92/96 of the frame (2 px of margin in 96) has area π/4 · d².
    expected = np.pi / 4 * (0.5 * 92 / 96) ** 2 * stretch
    assert (out[covered].astype(float).mean(0)[1] > 150) and abs(covered.mean() - expected) < 0.02
    assert coverage.mean() / 255 == pytest.approx(expected, abs=0.01)
    rows, columns = np.nonzero(covered)
    np.testing.assert_allclose((rows.mean(), columns.mean()), (89.1, 37.9), atol=0.5)


def test_the_shadow_lies_at_the_foot_and_takes_the_light_that_it_says():
    background = np.full((128, 128, 3), 200, np.uint8)
    pose = poses.Pose(side=0.5, x=0.5, y=0.5, angle=0, flip=False)
    levels = poses.pyramid(square(GREEN, 2, 94))
    out, coverage = poses.compose(levels, background, pose, shadow=0.4)
    free = np.where(coverage[..., None] == 0, out, 255)[..., 0]
    row, column = np.unravel_index(free.argmin(), free.shape)
    # The square ends at 0.5 + 0.25 · 92/96 of the frame.
    assert abs(row - 128 * (0.5 + 0.25 * 92 / 96)) < 3 and abs(column - 64) < 20
    # Just below the foot, within 4 of the ellipse's 5 pixels (0.08 · 64) from its middle.
    assert 200 * (1 - 0.4) - 1 <= free.min() <= 200 * (1 - 0.4 * np.exp(-((4 / 5.12) ** 2))) + 1
    assert free[:40].min() > 197


def test_what_is_worn_sits_where_the_head_is():
    thing, worn = square(GREEN, 2, 94), square((255, 0, 0), 2, 94)
    head = Head(x=0.25, top=0.1, width=0.3, neck=0.7, eyes=0.4)
    centres, tops = {}, {}
    for accessory in ("hat", "sunglasses", "scarf"):
        out = poses.dressed(thing, worn, head, accessory=accessory)
        rows, columns = np.nonzero((out[..., 0] > 128) & (out[..., 3] > 128))
        green = np.nonzero((out[..., 1] > 150) & (out[..., 3] > 128))
        assert abs(columns.mean() / 96 - 0.25) < 0.06  # the head is left of the middle
        tops[accessory] = rows.min() - green[0].min()
        centres[accessory] = rows.mean() / 96
    assert tops["hat"] < -5  # above everything else
    assert abs(centres["sunglasses"] - 0.4) < 0.03
    assert 0.65 < centres["scarf"] < 0.85


def test_from_above_a_square_is_lower_than_wide_and_narrows_towards_its_foot():
    out = poses.from_above(square(GREEN, 2, 94))
    solid = out[..., 3] > 128
    rows, columns = np.nonzero(solid.any(1))[0], np.nonzero(solid.any(0))[0]
    assert (np.ptp(rows) + 1) / (np.ptp(columns) + 1) == pytest.approx(0.68, abs=0.05)
    widths = solid[rows].sum(1)
    assert (np.diff(widths) <= 0).all() and 0.58 < widths[-1] / widths[0] < 0.72
