"""Photos to edit: upright whatever the file, and refused with a remedy where they cannot be."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax.experiment.parts import scenes

SHAPE = (16, 16)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (40, 30, 3), np.uint8)
# How an upright picture is stored so that each EXIF orientation shows it upright again.
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


def plan_of(images: Path | str, **changed):
    c = configs.base_config()
    c.edit.images = str(images)
    c.update_from_flattened_dict({f"edit.{key}": value for key, value in changed.items()})
    return configs.resolve(c)


def save(folder: Path, mask: np.ndarray | None = None, *, name: str = "garden.png") -> Path:
    """The photo, and its mask where there is one."""
    Image.fromarray(PIXELS).save(folder / name)
    if mask is not None:
        Image.fromarray(mask).save(folder / f"{Path(name).stem}.mask.png")
    return folder / name


def painted() -> np.ndarray:
    mask = np.zeros((40, 30), np.uint8)
    mask[10:20, 5:12] = 255
    return mask


def test_a_photo_with_its_mask(tmp_path):
    path = save(tmp_path, painted())
    plan = plan_of(path, grow=2)
    (scene,) = scenes.found(plan, SHAPE)
    opened = scene.opened(plan, SHAPE)
    assert scene.name == "garden" and scene.box == opened.box
    np.testing.assert_array_equal(opened.photo, PIXELS)
    expected = np.zeros((40, 30), bool)
    expected[8:22, 3:14] = True
    np.testing.assert_array_equal(opened.inside, expected)
    folder = scenes.found(plan_of(tmp_path, grow=2), SHAPE)
    assert [each.sha256 for each in folder] == [scene.sha256]  # the mask is no photo


def test_outside_is_what_the_mask_does_not_show_and_does_not_grow(tmp_path):
    plan = plan_of(save(tmp_path, painted()), outside=True)
    (scene,) = scenes.found(plan, SHAPE)
    np.testing.assert_array_equal(scene.opened(plan, SHAPE).inside, painted() == 0)


def test_the_mask_may_be_the_photo_s_transparency(tmp_path):
    pixels = np.concatenate([PIXELS, painted()[..., None]], -1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    plan = plan_of(tmp_path / "a.png", masks="alpha", grow=0)
    (scene,) = scenes.found(plan, SHAPE)
    opened = scene.opened(plan, SHAPE)
    np.testing.assert_array_equal(opened.inside, painted() == 255)
    np.testing.assert_array_equal(opened.photo[opened.inside], PIXELS[opened.inside])


@pytest.mark.parametrize("orientation", sorted(STORED))
def test_a_turned_photo_is_edited_as_the_upright_one(tmp_path, orientation):
    stored = np.ascontiguousarray(STORED[orientation](PIXELS))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(painted()).save(tmp_path / "a.mask.png")
    plan = plan_of(tmp_path / "a.png")
    (scene,) = scenes.found(plan, SHAPE)
    opened = scene.opened(plan, SHAPE)
    np.testing.assert_array_equal(opened.photo, PIXELS)
    (upright,) = scenes.found(plan_of(save(tmp_path, painted(), name="b.png")), SHAPE)
    assert (scene.sha256, scene.mask_sha256, scene.box) == (
        upright.sha256,
        upright.mask_sha256,
        upright.box,
    )


def bomb(file: Path) -> None:
    """A PNG of a few bytes whose header announces 100,000 × 100,000 pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b""))
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def grey() -> np.ndarray:
    return np.tile(np.linspace(40, 220, 30).astype(np.uint8), (40, 1))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((20, 30), np.uint8), "mask garden.mask.png is 30×20, the photo 30×40"),
        (np.zeros((30, 40), np.uint8), "stored turned .EXIF orientation.: paint on the upright"),
        (np.zeros((40, 30), np.uint8), "black all over: make it white where the photo changes"),
        (np.full((40, 30), 255, np.uint8), "white all over"),
        ((painted() > 0).astype(np.uint8), "has values 0 and 1"),
        (grey(), "grey in most of what it shows: paint it in black and white"),
        (None, "mask garden.mask.png is missing: make it"),
    ],
)
def test_a_mask_that_cannot_be_used(tmp_path, mask, message):
    with pytest.raises(configs.ConfigError, match=message):
        scenes.found(plan_of(save(tmp_path, mask)), SHAPE)


def test_a_mask_of_another_name(tmp_path):
    path = save(tmp_path)
    Image.fromarray(painted()).save(tmp_path / "garden_mask.png")
    with pytest.raises(configs.ConfigError, match=r"rename garden_mask\.png to it"):
        scenes.found(plan_of(path), SHAPE)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "not a regular file"),
        (bomb, "too large"),
        (lambda file: file.write_bytes(b"\x89PNG broken"), "damaged"),
        (lambda file: file.write_bytes(b""), "empty file"),
        (lambda file: file.mkdir(), "not a regular file"),
    ],
)
def test_a_hostile_mask(tmp_path, make, message):
    path = save(tmp_path)
    make(tmp_path / "garden.mask.png")
    with pytest.raises(configs.ConfigError, match=f"garden.mask.png: {message}"):
        scenes.found(plan_of(path), SHAPE)


def test_all_photos_that_cannot_be_edited_are_named_at_once(tmp_path):
    save(tmp_path, painted())
    save(tmp_path, name="bare.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(configs.ConfigError, match="2 of 3 photos cannot be edited") as raised:
        scenes.found(plan_of(tmp_path), SHAPE)
    assert "broken.jpg" in str(raised.value) and "bare.png" in str(raised.value)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("", "expected a photo, or a folder of photos. Write --config.edit.images=PHOTO.jpg"),
        ("nowhere.jpg", "no such file or folder"),
        (".", "no photo in this folder"),
    ],
)
def test_nothing_to_edit(tmp_path, monkeypatch, images, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(configs.ConfigError, match=message):
        scenes.found(plan_of(images), SHAPE)


def test_photos_of_one_stem_have_names_of_their_own(tmp_path):
    save(tmp_path, name="a.png")
    save(tmp_path, name="a.webp")
    found = scenes.found(plan_of(tmp_path, masks="none"), SHAPE)
    assert [scene.name for scene in found] == ["a_png", "a_webp"]


@pytest.mark.parametrize(
    "names",
    [
        ("a.png", "a.webp", "a_png.png"),
        ("a.png", "a.webp", "a_png.png", "a_webp.png", "A_PNG.bmp", "a_png_2.png"),
        ("A.png", "a.png"),
        ("Straße.png", "STRASSE.png"),
        ("a_2.png", "a.png", "A.png", "A_png.png", "a_PNG.bmp"),
    ],
)
def test_no_two_photos_write_to_one_file(tmp_path, names):
    """Nor on a disk that ignores capitals."""
    for name in names:
        save(tmp_path, name=name)
    files = [name for name in names if (tmp_path / name).exists()]
    found = scenes.found(plan_of(tmp_path, masks="none"), SHAPE)
    assert len(found) == len({scene.name.casefold() for scene in found}) == len(files)
    assert {scene.path.name for scene in found} == set(files)
