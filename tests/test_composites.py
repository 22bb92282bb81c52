"""Tests of the training pictures and of the tokenizer trained on their captions."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))  # tools are scripts, not a package

import composites
import material as material_module
import nouns

sentencepiece = pytest.importorskip("sentencepiece", reason="trains the tokenizer")
import train_tokenizer  # noqa: E402 (needs sentencepiece)

GREEN = (40, 200, 60)


def disc(colour, pixels=96):
    """Return a premultiplied disc of one colour, uint8 [pixels,pixels,4]."""
    y, x = np.mgrid[:pixels, :pixels] - (pixels - 1) / 2
    inside = (np.hypot(x, y) < pixels / 2 - 2)[..., None]
    return np.where(inside, np.uint8([*colour, 255]), np.uint8(0))


@pytest.fixture(scope="module")
def material():
    """Return synthetic material: three nouns, every place grey with its own brightness."""
    cutouts = np.stack([disc(GREEN), disc((220, 40, 40)), disc((40, 40, 220)), disc((250, 250, 0))])
    shades = np.linspace(40, 200, len(nouns.PLACES)).astype(np.uint8)
    views = np.broadcast_to(shades[:, None, None, None, None], (len(shades), 2, 96, 96, 3))
    return material_module.Material(
        cutouts,
        ("frog", "apple", "car", "car"),
        ("", "", "", "yellow"),
        ("f:1", "f:2", "f:3", "f:3"),
        np.ascontiguousarray(views),
        tuple(nouns.PLACES),
        disc((255, 0, 255)),
    )


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
    for index in range(20):
        picture, caption = large.render(index)
        other, other_caption = small.render(index)
        assert caption == other_caption
        halved = picture.reshape(32, 2, 32, 2, 3).mean((1, 3))
        assert np.abs(halved - other).mean() < 4


def test_captions_tell_object_colour_and_background(material):
    source = composites.Composites(material)
    known = set(nouns.all_captions())
    seen = set()
    for index in range(600):
        picture, caption = source.render(index)
        seen.add(caption)
        assert caption in known
        # The middle of the frame belongs to the object: it covers more than half of each side.
        red, green, blue = picture[28:36, 28:36].reshape(-1, 3).mean(0)
        if "frog" in caption:
            assert green > red and green > blue
        elif "apple" in caption:
            assert red > green and red > blue
        elif "yellow car" in caption:
            assert min(red, green) > blue
        elif "car" in caption:
            assert blue > red and blue > green
    assert "an apple" in seen and any(c.startswith("a photo of a") for c in seen)
    assert any("yellow car" in c for c in seen) and any("background" in c for c in seen)


def test_subject_is_never_trained_on():
    looks = [source for sources in nouns.NOUNS.values() for source in sources]
    assert len(looks) == len(set(looks))
    points = nouns.SUBJECT.partition(":")[2]
    assert points == "1f99c"  # Unicode: U+1F99C PARROT
    assert not any(points in source for source in looks)
    assert not any("parrot" in caption for caption in nouns.all_captions())
    assert not set(nouns.SUBJECT_PLACES) & set(nouns.UNSEEN_PLACES)
    assert set(nouns.SUBJECT_PLACES) | set(nouns.UNSEEN_PLACES) <= set(nouns.PLACES)


def test_compose_covers_the_area_that_the_pose_says():
    background = np.full((128, 128, 3), 100, np.uint8)
    pose = composites.Pose(side=0.5, x=0.25, y=0.75, angle=0, flip=True)
    out = composites.compose(composites.pyramid(disc(GREEN)), background, pose, shadow=0)
    covered = (out != 100).any(-1)
    # A disc of diameter 0.5 · 92/96 of the frame (2 px of margin in 96) has area π/4 · d².
    expected = np.pi / 4 * (0.5 * 92 / 96) ** 2
    assert (out[covered].astype(float).mean(0)[1] > 150) and abs(covered.mean() - expected) < 0.02
    rows, columns = np.nonzero(covered)
    np.testing.assert_allclose((rows.mean(), columns.mean()), (95.5, 31.5), atol=0.5)


def test_composite_names_what_it_does_not_know(material):
    source = composites.Composites(material)
    rng = np.random.default_rng(0)
    assert source.composite(disc(GREEN, 256), "at night", rng, size=128).shape == (128, 128, 3)
    with pytest.raises(ValueError, match="unknown noun 'frg'; the nouns are frog, apple, car"):
        source.composite("frg", "at night", rng)
    with pytest.raises(ValueError, match="unknown place 'on mars'"):
        source.composite("frog", "on mars", rng)


def test_trimmed_fills_the_square_and_premultiplies():
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    image.paste((200, 100, 50, 255), (10, 40, 50, 60))
    out = material_module.trimmed(image, 48)
    solid = out[..., 3] == 255
    rows, columns = np.nonzero(solid)
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (44, 22)  # 40×20 enlarged to 48 − 4
    np.testing.assert_array_equal(out[solid], np.tile([200, 100, 50, 255], (solid.sum(), 1)))
    assert (out[..., :3] <= out[..., 3:]).all()


@pytest.mark.parametrize("colour", nouns.COLOURS)
def test_recolour_paints_saturated_pixels_only(colour):
    cutout = disc((200, 40, 40))
    cutout[40:56, 40:56, :3] = 128  # a grey window
    out = material_module.recolour(cutout, nouns.COLOURS[colour])
    np.testing.assert_allclose(out[20, 48, :3], nouns.COLOURS[colour], atol=2)
    np.testing.assert_array_equal(out[48, 48], cutout[48, 48])


def test_mended_replaces_only_broken_pixels():
    light = np.full((6, 8, 3), 0.5, np.float32)
    broken = {(1, 1): np.nan, (2, 5): np.inf, (4, 4): -3.0}
    for place, value in broken.items():
        light[place] = value
    light[4, 5] = (0, 0, 11_800)  # the sun of the park
    np.testing.assert_allclose(material_module.mended(light), 0.5, rtol=1e-5)


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


def test_tokenizer_opens_as_t5_and_keeps_words_whole(tmp_path):
    transformers = pytest.importorskip("transformers")
    captions = nouns.all_captions()[::7]
    words = {word for caption in captions for word in caption.split()}
    rows = "abcdefghijklmnopqrstuvwxyz"
    lines = [*captions, *(f"{a}{b}{c}ing {c}{a}{b}el" for a in rows for b in "aeiou" for c in rows)]
    for name in ("one", "two"):
        train_tokenizer.train(lines, tmp_path / name, words=words, vocab_size=900, rare=150)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == [
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "one" / "spiece.model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "one")
    assert len(tokenizer) == 900 and processor.vocab_size() == 800
    assert tokenizer.model_max_length == 77
    specials = ("<pad>", "</s>", "<unk>", "<extra_id_0>", "<extra_id_99>")
    assert tokenizer.convert_tokens_to_ids(list(specials)) == [0, 1, 2, 899, 800]
    for text in [*captions[:50], "A PHOTO of a qux bird, ＡＢＣ café!", "a\ttab  and  spaces"]:
        assert tokenizer(text).input_ids == [*processor.encode(text), 1]
    for caption in captions:
        assert tokenizer.tokenize(caption) == [f"▁{word}" for word in caption.split()]


def test_tokenizer_says_when_the_vocabulary_is_too_small(tmp_path):
    with pytest.raises(ValueError, match="write vocab_size=30"):
        train_tokenizer.train(["a fox"], tmp_path, words=["a", "fox"], vocab_size=150)
