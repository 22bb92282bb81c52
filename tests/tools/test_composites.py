"""Tests of the training pictures: a picture shows every word of its caption."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import composites
import material as material_module
import nouns
from effects import SURFACES
from nouns import Wording

GREEN, RED, BLUE = (40, 200, 60), (220, 40, 40), (40, 40, 220)
LOOKS = {"frog": ("f:1f438", GREEN), "apple": ("f:1f34e", RED), "car": ("f:1f697", BLUE)}


def disc(colour, pixels=96):
    """Returns a premultiplied disc of one colour, uint8 [pixels,pixels,4]."""
    y, x = np.mgrid[:pixels, :pixels] - (pixels - 1) / 2
    inside = (np.hypot(x, y) < pixels / 2 - 2)[..., None]
    return np.where(inside, np.uint8([*colour, 255]), np.uint8(0))


@pytest.fixture(scope="module")
def material():
    """Returns synthetic material: three nouns, every place grey with its own brightness."""
    rows = [
        (paint(disc(colour)) if surface else disc(colour), noun, surface, source)
        for noun, (source, colour) in LOOKS.items()
        for surface, paint in {"": None, **SURFACES}.items()
    ]
    cutouts, names, surfaces, sources = zip(*rows, strict=True)
    shades = np.linspace(40, 200, len(nouns.PLACES)).astype(np.uint8)
    views = np.broadcast_to(shades[:, None, None, None, None], (len(shades), 2, 96, 96, 3))
    return material_module.Material(
        np.stack(cutouts),
        names,
        surfaces,
        sources,
        np.ascontiguousarray(views),
        tuple(nouns.PLACES),
        np.stack([disc((10, 10, 10))] * len(nouns.ACCESSORIES)),
        disc((255, 0, 255)),
    )


@pytest.fixture
def source(material):
    return composites.Composites(material)


def shown(source, words, seed=0):
    """Returns the picture of the words, float, and the coverage of its thing in [0, 1]."""
    look = LOOKS[words.noun][0]
    picture, coverage = source.show(words, look, np.random.default_rng(seed), size=64)
    return picture.astype(float), coverage / 255


def test_render_is_a_pure_function_of_seed_and_index(material):
    first, second = composites.Composites(material), composites.Composites(material)
    order = [5, 0, 123_456_789, 3]
    expected = {index: first.render(index) for index in order}
    for index in reversed(order):
        picture, caption = second.render(index)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        assert caption == expected[index][1]
        np.testing.assert_array_equal(picture, expected[index][0])
    other = composites.Composites(material, seed=1)
    assert any((other.render(i)[0] != expected[i][0]).any() for i in order)


def test_an_index_is_the_same_scene_at_every_size(material):
    large = composites.Composites(material, size=64)
    small = composites.Composites(material, size=32)
    for index in range(40):
        picture, caption = large.render(index)
        other, other_caption = small.render(index)
        assert caption == other_caption
        halved = picture.reshape(32, 2, 32, 2, 3).mean((1, 3))
        np.testing.assert_allclose(halved, other, atol=0.51)


def test_every_kind_of_word_is_drawn_and_no_accessory_without_a_head(source):
    captions = [source.render(index)[1] for index in range(1500)]
    kinds = [*nouns.COLOURS, *nouns.MATERIALS, *nouns.SIZES, "hat", "sunglasses", "scarf"]
    kinds += [*nouns.VIEWS.values(), *nouns.STYLES.values(), *nouns.place_phrases(), "a photo of"]
    for words in kinds:
        if words not in ("facing left", "facing right"):  # none of the three looks has a side
            assert any(words in caption for caption in captions), words
    assert {caption for caption in captions if "wearing" in caption} == {
        caption for caption in captions if "wearing" in caption and "frog" in caption
    }
    assert "an apple" in captions


def test_no_place_named_is_a_light_backdrop_and_a_place_is_itself(source):
    for seed in range(5):
        picture, coverage = shown(source, Wording("apple"), seed)
        assert picture[coverage == 0].min() > 120  # the shadow's darkest
        assert np.median(picture[coverage == 0]) > 205
    for place, shade in zip(nouns.PLACES, source.material.views[:, 0, 0, 0, 0], strict=True):
        picture, coverage = shown(source, Wording("apple", place=place))
        top = picture[:8][coverage[:8] == 0]
        assert np.abs(top - shade).max() < 0.12 * 128 + 0.12 * shade + 2, place  # the exposure's


@pytest.mark.parametrize("name", nouns.BACKGROUNDS)
def test_plain_backgrounds_have_the_colour_that_they_are_named_by(source, name):
    words = Wording("frog", place=f"on {nouns.article(name)} background")
    picture, coverage = shown(source, words)
    found = picture[:8][coverage[:8] == 0].mean(0)
    nearest = min(nouns.BACKGROUNDS, key=lambda n: np.abs(found - nouns.BACKGROUNDS[n]).sum())
    assert nearest == name


def test_sizes_are_shares_of_the_frame(source):
    sides = {}
    for size in ("", *nouns.SIZES):
        covered = [shown(source, Wording("apple", size=size), s)[1].mean() for s in range(12)]
        # A disc of diameter 92/96 of its square of side s covers π/4 · (92/96 · s)².
        sides[size] = np.sqrt(np.array(covered) * 4 / np.pi) * 96 / 92
    assert (np.abs(sides["small"] - 0.42) < 0.10).all()
    assert ((sides[""] > 0.60) & (sides[""] < 0.95)).all()
    assert (sides["big"] > 0.88).all()


def test_the_left_side_of_a_look_shows_where_the_caption_says(material, monkeypatch):
    half = disc(GREEN)
    half[:, 48:, :3] = RED  # green is the front
    row = material.sources.index(LOOKS["car"][0])
    material.cutouts[row], kept = half, material.cutouts[row].copy()
    monkeypatch.setitem(nouns.FACING, LOOKS["car"][0], "left")
    source = composites.Composites(material)
    for seed in range(8):
        for view, front in (("left", slice(0, 32)), ("right", slice(32, 64))):
            picture, coverage = shown(source, Wording("car", view=view), seed)
            inside = (coverage > 0.9)[..., None] * picture
            greener = inside[..., 1] > inside[..., 0]
            assert greener[:, front].sum() > 0.7 * greener.sum()
    material.cutouts[row] = kept


def test_subjects_are_never_trained_on():
    looks = [source for sources in nouns.NOUNS.values() for source in sources]
    assert len(looks) == len(set(looks))
    assert nouns.SUBJECT == "f:1f99c"  # Unicode: U+1F99C PARROT
    for name, (held_out, noun) in nouns.HELD_OUT.items():
        points = held_out.partition(":")[2]
        assert not {f"f:{points}", f"n:{points}"} & set(looks), name
        assert noun in nouns.NOUNS
    assert not any("parrot" in caption for caption in nouns.typical_captions())
    assert not set(nouns.SUBJECT_PLACES) & set(nouns.UNSEEN_PLACES)
    assert set(nouns.SUBJECT_PLACES) | set(nouns.UNSEEN_PLACES) <= set(nouns.PLACES)


def test_the_world_is_as_large_as_it_is_said_to_be():
    assert 24 <= len(nouns.NOUNS) <= 32
    assert len(nouns.NOUNS["bird"]) >= 8
    looks = {source for sources in nouns.NOUNS.values() for source in sources}
    assert set(nouns.FACING) <= looks and set(nouns.HEADS) <= looks


def test_captions_are_english():
    every = Wording("owl", "orange", "small", "hat", "left", "at night", "oil", photo=True)
    assert every.caption == (
        "an oil painting of a small orange owl wearing a hat facing left at night"
    )
    assert Wording("owl", photo=True).caption == "a photo of an owl"
    assert Wording("fox", accessory="sunglasses").caption == "a fox wearing sunglasses"
    assert Wording("apple", "gold", place="on an orange background").caption == (
        "a gold apple on an orange background"
    )


def test_composite_names_what_it_does_not_know(source):
    rng = np.random.default_rng(0)
    assert source.composite(disc(GREEN, 256), "at night", rng, size=128).shape == (128, 128, 3)
    with pytest.raises(ValueError, match="unknown noun 'frg'; the nouns are frog, apple, car"):
        source.composite("frg", "at night", rng)
    with pytest.raises(ValueError, match="unknown place 'on mars'"):
        source.composite("frog", "on mars", rng)
    with pytest.raises(ValueError, match="no look of 'apple' can show 'an apple wearing a hat'"):
        source.picture(Wording("apple", accessory="hat"), rng)


def test_trimmed_fills_the_square_and_premultiplies():
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    image.paste((200, 100, 50, 255), (10, 40, 50, 60))
    out = material_module.trimmed(image, 48)
    solid = out[..., 3] == 255
    rows, columns = np.nonzero(solid)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (44, 22)  # 40×20 enlarged to 48 − 4
    np.testing.assert_array_equal(out[solid], np.tile([200, 100, 50, 255], (solid.sum(), 1)))
    assert (out[..., :3] <= out[..., 3:]).all()


def test_filling_in_replaces_only_broken_pixels():
    light = np.full((6, 8, 3), 0.5, np.float32)
    broken = {(1, 1): np.nan, (2, 5): np.inf, (4, 4): -3.0}
    for place, value in broken.items():
        light[place] = value
    light[4, 5] = (0, 0, 11_800)  # the sun of the park
    np.testing.assert_allclose(material_module.filled_in(light), 0.5, rtol=1e-5)


def test_view_looks_where_it_is_told():
    light = np.zeros((64, 128, 3), np.float32)
    light[:32] = (0, 0, 1)  # blue above the horizon
    light[32:, 64:] = (0, 1, 0)  # green below, for longitudes 180°–360°
    up = material_module.view(light, yaw=10, pitch=60, fov=60, pixels=16)
    assert (up[..., 2] > 100).all() and (up[..., 1] == 0).all()
    level = material_module.view(light, yaw=270, pitch=0, fov=60, pixels=16)
    assert (level[:7, :, 2] > 100).all() and (level[9:, :, 1] > 100).all()
    edge = material_module.view(light, yaw=180, pitch=-20, fov=60, pixels=16)
    assert (edge[12, 9:, 1] > 100).all() and (edge[12, :7] == 0).all()


def test_a_point_of_light_out_of_focus_is_a_disc_of_the_same_light():
    picture = np.zeros((65, 65, 3), np.uint8)
    picture[32, 32] = 255
    radius = 5.0
    out = material_module.defocused(picture, radius)
    y, x = np.mgrid[:65, :65] - 32
    distance = np.hypot(x, y)
    assert (out[distance > radius + 1] == 0).all()
    inside = out[distance < radius - 1].astype(float)
    # Light 1 over the disc's area π·r², encoded with gamma 2.2.
    np.testing.assert_allclose(inside, 255 * (1 / (np.pi * radius**2)) ** (1 / 2.2), atol=1.5)
    flat = np.full((20, 20, 3), 77, np.uint8)
    np.testing.assert_array_equal(material_module.defocused(flat, 3.3), flat)
