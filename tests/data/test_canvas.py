"""Masks, windows and pasting: what changes, what never does, whatever the size of the photo."""

import numpy as np
import pytest

from dreambooth_jax.data import canvas
from dreambooth_jax.data.canvas import Box, Canvas

RNG = np.random.default_rng(0)


def photo(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def marked(shape: tuple[int, int], box: Box) -> np.ndarray:
    inside = np.zeros(shape, bool)
    inside[box.top : box.top + box.height, box.left : box.left + box.width] = True
    return inside


@pytest.mark.parametrize("pixels", [0, 1, 3, 20])
def test_a_mask_grows_by_pixels_in_every_direction(pixels):
    inside = RNG.random((12, 9)) < 0.05
    places = np.argwhere(inside)
    for y, x in np.ndindex(inside.shape):
        near = np.abs(places - [y, x]).max(-1).min() <= pixels
        assert canvas.grown(inside, pixels)[y, x] == near


def test_an_edge_fades_within_the_mask_and_the_photo_s_border_is_no_edge():
    inside = marked((10, 6), Box(3, 0, 7, 6))  # to the bottom, from side to side
    weights = canvas.faded(inside, 3)
    expected = [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1, 1]
    np.testing.assert_allclose(weights, np.repeat(np.array(expected)[:, None], 6, 1), atol=1e-6)
    np.testing.assert_array_equal(canvas.faded(inside, 0), inside)


@pytest.mark.parametrize(
    ("size", "mask", "context", "expected"),
    [
        ((100, 100), Box(40, 40, 20, 20), 0.5, Box(30, 30, 40, 40)),  # twice the mask's side
        ((100, 100), Box(45, 45, 10, 4), 0.5, Box(34, 31, 32, 32)),  # at least the model's size
        ((100, 100), Box(0, 90, 20, 10), 0.5, Box(0, 60, 40, 40)),  # moved, not cut
        ((100, 100), Box(80, 0, 20, 20), 1.0, Box(40, 0, 60, 60)),
        ((50, 200), Box(10, 100, 30, 30), 2.0, Box(0, 90, 50, 50)),  # what surrounds it gives way
        ((16, 24), Box(4, 4, 6, 6), 0.5, Box(0, 0, 16, 16)),  # a photo smaller than the model
        ((20, 100), Box(0, 10, 20, 80), 0.0, Box(-30, 10, 80, 80)),  # a mask that does not fit
    ],
)
def test_the_window_has_the_model_s_shape_and_holds_the_mask(size, mask, context, expected):
    found = canvas.window(marked(size, mask), (32, 32), context=context)
    assert found == expected


def test_the_window_of_a_model_that_is_no_square():
    found = canvas.window(marked((100, 100), Box(40, 40, 20, 20)), (32, 64), context=0.5)
    assert found == Box(30, 10, 40, 80)


@pytest.mark.parametrize("box", [Box(0, 0, 7, 7), Box(13, 9, 7, 7), Box(-4, 3, 30, 30)])
def test_a_window_cut_and_pasted_is_the_photo_bit_for_bit(box):
    source = photo(20, 16)
    patch = canvas.cut(source, box)
    assert patch.shape == (box.height, box.width, 3)
    for weights in (np.ones((20, 16), np.float32), RNG.random((20, 16)).astype(np.float32)):
        np.testing.assert_array_equal(canvas.pasted(source, patch, weights, box), source)


def test_pasting_mixes_by_weight_and_leaves_weight_0_alone():
    source, patch = photo(20, 16), photo(8, 8)
    box = Box(6, 4, 8, 8)
    weights = np.zeros((20, 16), np.float32)
    weights[6:14, 4:8], weights[6:14, 8:10] = 1.0, 0.25
    found = canvas.pasted(source, patch, weights, box)
    np.testing.assert_array_equal(found[weights == 0], source[weights == 0])
    np.testing.assert_array_equal(found[6:14, 4:8], patch[:, :4])
    mixed = 0.25 * patch[:, 4:6] + 0.75 * source[6:14, 8:10].astype(float)
    assert np.abs(found[6:14, 8:10] - mixed).max() <= 0.5


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (16, 16)])
def test_a_cell_may_change_if_any_of_its_pixels_may(shape):
    """A stroke one pixel wide is not lost; a cell that only touches the mask is kept."""
    inside = np.zeros((16, 16), bool)
    inside[5, 2:14] = True
    found = canvas.cells(inside, shape)[..., 0]
    for y, x in np.ndindex(shape):
        rows = [n for n in range(16) if n + 1 > y * 16 / shape[0] and n < (y + 1) * 16 / shape[0]]
        columns = [
            n for n in range(16) if n + 1 > x * 16 / shape[1] and n < (x + 1) * 16 / shape[1]
        ]
        assert found[y, x] == inside[np.ix_(rows, columns)].any(), (y, x)


def test_masks_with_soft_edges_are_binary_and_masks_of_amounts_are_not():
    mask = np.zeros((40, 40), np.uint8)
    mask[10:30, 10:30] = 255
    mask[9], mask[30] = mask[9] // 2 + 60, mask[30] // 2 + 60
    assert not canvas.is_grey(mask * (mask > 100) + 0)
    assert canvas.is_grey(np.full((40, 40), 128, np.uint8))


def test_a_canvas_changes_nothing_outside_its_mask():
    source = photo(60, 50)
    inside = marked((60, 50), Box(20, 30, 12, 20))
    opened = Canvas.of(source, inside, (16, 16), context=0.5, feather=2)
    made = opened.finished(photo(16, 16))
    np.testing.assert_array_equal(made[~inside], source[~inside])
    assert (made[inside] != source[inside]).any(-1).mean() > 0.9
    assert opened.patch((16, 16)).shape == opened.shown((16, 16)).shape == (16, 16, 3)
    np.testing.assert_array_equal(opened.around(), source[16:36, 30:50])


def test_a_canvas_without_a_mask_is_the_photo_cropped_as_in_training():
    source, drawn = photo(60, 50), photo(16, 16)
    opened = Canvas.of(source, None, (16, 16), context=0.5, feather=2)
    np.testing.assert_array_equal(opened.finished(drawn), drawn)
    assert opened.patch((16, 16)).shape == (16, 16, 3)
    assert (opened.cells((4, 4)) == 1).all()
    square = photo(16, 16)
    whole = Canvas.of(square, None, (16, 16), context=0.5, feather=2)
    np.testing.assert_array_equal(whole.patch((16, 16)), square)
    np.testing.assert_array_equal(whole.patch((16, 16), drawn), drawn)


def test_a_mask_of_the_crop_becomes_one_of_the_photo():
    small = marked((20, 20), Box(4, 6, 8, 10))
    found = canvas.uncropped(small, (40, 60))  # the crop is 40 × 40, from column 10
    np.testing.assert_array_equal(found, marked((40, 60), Box(8, 22, 16, 20)))
    np.testing.assert_array_equal(canvas.uncropped(small, (20, 20)), small)
    assert canvas.uncropped(np.ones((20, 20), bool), (60, 40)).sum() == 40 * 40


def test_amounts_of_cells_are_means_over_their_area():
    amounts = np.zeros((8, 8), np.float32)
    amounts[:4, :2], amounts[:4, 2:4] = 1.0, 0.5
    inside = amounts > 0
    opened = Canvas.of(photo(8, 8), inside, (8, 8), context=8.0, feather=0, amounts=amounts)
    assert opened.box == Box(0, 0, 8, 8)
    expected = [[0.75, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(opened.shares((2, 2))[..., 0], expected, atol=1e-6)


def test_a_cut_out_is_pasted_into_the_mask_alone():
    source, subject = photo(40, 40), np.full((30, 20, 3), 200, np.uint8)
    mask = np.zeros((30, 20), np.uint8)
    mask[5:25, 4:14] = 255  # 20 × 10 pixels
    place = marked((40, 40), Box(10, 6, 10, 20))
    found = canvas.with_cutout(source, place, subject, mask)
    shown = marked((40, 40), Box(10, 13, 10, 5))  # half as large, in the middle, at the foot
    assert (found[shown] == 200).all()
    np.testing.assert_array_equal(found[~shown], source[~shown])
