"""Surfaces and styles, on cut-outs and pictures whose right colours are known."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import effects
import nouns


def shaded_disc(colour, pixels=96):
    """Returns a premultiplied disc that is dark at the left and full `colour` at the right."""
    y, x = np.mgrid[:pixels, :pixels] - (pixels - 1) / 2
    inside = (np.hypot(x, y) < pixels / 2 - 2)[..., None]
    shade = np.linspace(0.5, 1, pixels)[None, :, None]
    rgb = np.broadcast_to(np.float32(colour) * shade, (pixels, pixels, 3))
    out = np.concatenate([rgb, np.full((pixels, pixels, 1), 255)], -1)
    return np.where(inside, out, 0).astype(np.uint8)


def hue(rgb):
    """Returns the hue of a colour in degrees; Python's colorsys knows the formula."""
    import colorsys

    return 360 * colorsys.rgb_to_hsv(*(np.asarray(rgb, float) / 255))[0]


@pytest.mark.parametrize("colour", nouns.COLOURS)
def test_recolour_paints_the_main_hue_alone_when_it_covers_most(colour):
    cutout = np.where(shaded_disc((255, 255, 255))[..., 3:] > 0, np.uint8([200, 40, 40, 255]), 0)
    cutout = cutout.astype(np.uint8)
    cutout[40:56, 40:56, :3] = 128  # a grey window
    out = effects.recolour(cutout, nouns.COLOURS[colour])
    np.testing.assert_allclose(out[20, 48, :3], nouns.COLOURS[colour], atol=2)
    np.testing.assert_array_equal(out[48, 48], cutout[48, 48])


@pytest.mark.parametrize("colour", nouns.COLOURS)
@pytest.mark.parametrize("was", [(230, 230, 230), (150, 140, 130), (60, 110, 220)])
def test_any_thing_gets_the_colour_keeps_its_shading_and_its_black_eyes(colour, was):
    cutout = shaded_disc(was)
    cutout[44:52, 44:52, :3] = 10
    out = effects.SURFACES[colour](cutout)
    np.testing.assert_array_equal(out[..., 3], cutout[..., 3])
    assert out[48, 48, :3].max() < 40
    away = abs(hue(out[20, 60, :3]) - hue(nouns.COLOURS[colour]))
    assert min(away, 360 - away) < 8
    assert out[70, 25, :3].sum() < out[70, 70, :3].sum()  # darker where it was darker


def test_gold_is_yellow_wood_is_brown_marble_is_grey_and_glass_lets_through():
    cutout = shaded_disc((90, 120, 200))
    inside = cutout[..., 3] == 255
    gold = effects.gold(cutout)[inside][:, :3].astype(float)
    assert 30 < hue(gold.mean(0)) < 55 and np.ptp(gold.mean(1)) > 100  # contrast: it shines
    wood = effects.wooden(cutout)[inside][:, :3].astype(float)
    assert 15 < hue(wood.mean(0)) < 35 and wood.mean() < gold.mean()
    marble = effects.marble(cutout)[inside][:, :3].astype(float)
    assert np.ptp(marble, axis=1).max() <= 16 and marble.mean() > 150  # nearly grey, and light
    for opaque in (effects.gold, effects.wooden, effects.marble):
        np.testing.assert_array_equal(opaque(cutout)[..., 3], cutout[..., 3])
    glass = effects.glass(cutout)
    assert (glass[..., 3] <= cutout[..., 3]).all()
    assert glass[48, 48, 3] < 0.6 * 255 < glass[48, 3, 3]  # the rim is seen, the middle is not


@pytest.fixture(scope="module")
def picture():
    """A red square on a light ground, with noise."""
    out = np.full((64, 64, 3), 225.0)
    out[16:48, 16:48] = (210, 40, 40)
    out += np.random.default_rng(0).normal(0, 6, out.shape)
    return np.clip(out, 0, 255).astype(np.uint8)


def test_a_pencil_drawing_is_grey_light_and_has_lines_at_edges(picture):
    out = effects.pencil(picture)
    assert (out == out[..., :1]).all()
    assert np.median(out) > 180
    assert out[16:18, 20:44].mean() < out[28:36, 28:36].mean() - 40


def test_an_oil_painting_is_calmer_and_keeps_edges_and_colours(picture):
    out = effects.oil(picture).astype(float)
    for part in (np.s_[24:40, 24:40], np.s_[2:12, 2:62]):
        assert out[part].std((0, 1)).mean() < 0.7 * picture[part].std((0, 1)).mean()
    assert np.abs(out[32, 17] - out[32, 14]).max() > 100
    assert out[32, 32, 0] > out[32, 32, 1] + 150


def test_pixel_art_has_blocks_of_few_tones(picture):
    out = effects.pixels(picture)
    blocks = out.reshape(16, 4, 16, 4, 3)
    assert (blocks == blocks[:, :1, :, :1]).all()
    grey = np.unique(np.round(out @ effects.LUMINANCE / 51, 1))
    assert len(grey) <= 6
    small = effects.pixels(picture[::2, ::2])
    assert small.shape == (32, 32, 3) and (small[::2] == small[1::2]).all()


def test_a_comic_has_four_levels_and_ink(picture):
    out = effects.comic(picture)
    flat = out[24:40, 24:40]
    assert set(np.unique(flat)) <= {0, 85, 170, 255}
    assert out[15:18, 24:40].min() < 30  # a black line around the square
    assert (out[2:10, 2:60] == 255).mean() > 0.9
