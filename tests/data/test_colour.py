"""Every kind of pixel a photo can be stored in, drawn so that its sRGB values are known."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreambooth_jax.data import images
from dreambooth_jax.data.colour import ImageError

RED, GREEN, BLUE, GREY = (220, 20, 30), (10, 190, 60), (30, 40, 210), (130, 130, 120)


def quadrants(height: int = 40, width: int = 60) -> np.ndarray:
    """Upright: red and green above, blue and grey below; no turn or mirror image equals it."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    picture[height // 2 :, width // 2 :] = GREY
    return picture


def write_png(path: Path, values: np.ndarray, *, color_type: int, **chunks: bytes) -> None:
    """A PNG by its specification: what Pillow cannot write (16-bit colour, tRNS with 16 bits)."""
    depth = values.dtype.itemsize * 8
    height, width = values.shape[:2]
    lines = values.astype(values.dtype.newbyteorder(">"))
    raw = b"".join(b"\0" + lines[row].tobytes() for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(raw), "IEND": b""}
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(body))
            + name.encode()
            + body
            + struct.pack(">I", zlib.crc32(name.encode() + body))
            for name, body in parts.items()
        )
    )


def found(path: Path) -> str:
    """All notes on a file, as one text."""
    return "; ".join(str(note) for note in images.decode(path)[1])


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_is_scaled_not_saturated(tmp_path: Path, suffix: str) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(levels * 257).save(path)  # 257 · 255 = 65535: white must be white
    np.testing.assert_array_equal(images.read(path), np.repeat(levels[..., None], 3, axis=-1))
    assert "16-bit grey: scaled to 8 bits" in found(path)


def test_16_bit_grey_rounds_to_the_nearest_level(tmp_path: Path) -> None:
    values = np.array([[128, 129, 385, 386]], np.uint16)  # 0.498, 0.502, 1.498, 1.502 levels
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert images.read(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 1, 1, 2]


def test_16_bit_grey_with_one_transparent_value(tmp_path: Path) -> None:
    values = np.array([[0, 257, 514]], np.uint16)
    write_png(tmp_path / "clear.png", values, color_type=0, tRNS=struct.pack(">H", 257))
    pixels = images.read(tmp_path / "clear.png", background=(9, 8, 7))
    assert pixels[0].tolist() == [[0, 0, 0], [9, 8, 7], [2, 2, 2]]


def test_16_bit_colour_is_read_with_8_bits(tmp_path: Path) -> None:
    levels = np.arange(48, dtype=np.uint16).reshape(4, 4, 3) * 5
    write_png(tmp_path / "deep.png", levels * 257, color_type=2)
    np.testing.assert_array_equal(images.read(tmp_path / "deep.png"), levels)
    assert "16-bit colour" in found(tmp_path / "deep.png")


def test_float_pixels_are_refused_with_what_to_do(tmp_path: Path) -> None:
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ImageError, match=r"no agreed white: save it with 8 or 16 bits"):
        images.read(tmp_path / "float.tiff")


def test_alpha_is_composited_exactly(tmp_path: Path) -> None:
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgba = np.empty((16, 16, 4), np.uint8)
    rgba[...] = (*RED, 0)
    rgba[..., 3] = alpha
    Image.fromarray(rgba).save(tmp_path / "clear.png")
    background = (250, 5, 100)

    pixels = images.read(tmp_path / "clear.png", background=background)

    opacity = alpha[..., None] / 255
    expected = opacity * np.array(RED) + (1 - opacity) * np.array(background)
    np.testing.assert_array_equal(pixels, np.rint(expected))
    assert "transparent: composited on white" in found(tmp_path / "clear.png")
    assert images.read(tmp_path / "clear.png")[0, 0].tolist() == [255, 255, 255]


def test_a_fully_opaque_alpha_channel_is_no_news(tmp_path: Path) -> None:
    Image.fromarray(quadrants()).convert("RGBA").save(tmp_path / "opaque.png")
    assert images.decode(tmp_path / "opaque.png")[1] == ()


def test_grey_with_alpha(tmp_path: Path) -> None:
    values = np.array([[[100, 255], [100, 0], [40, 51]]], np.uint8)
    Image.fromarray(values).save(tmp_path / "la.png")
    pixels = images.read(tmp_path / "la.png", background=(0, 0, 250))
    assert pixels[0].tolist() == [[100, 100, 100], [0, 0, 250], [8, 8, 208]]  # 51/255 = 1/5


def test_palette_with_a_transparent_entry(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2, 1]], np.uint8)).convert("P")
    picture.putpalette([*RED, *GREEN, *BLUE])
    for suffix in ("png", "gif"):
        path = tmp_path / f"palette.{suffix}"
        picture.save(path, transparency=1)
        expected = [list(RED), [1, 2, 3], list(BLUE), [1, 2, 3]]
        assert images.read(path, background=(1, 2, 3))[0].tolist() == expected


def test_black_and_white_and_grey(tmp_path: Path) -> None:
    bits = np.array([[True, False], [False, True]])
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert images.read(tmp_path / "bits.png")[..., 2].tolist() == [[255, 0], [0, 255]]
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(images.read(tmp_path / "grey.png"), np.stack([grey] * 3, -1))
    assert "grey: copied" in found(tmp_path / "grey.png")


def test_cmyk_without_profile_uses_the_plain_formula(tmp_path: Path) -> None:
    # R = (255 − C)(255 − K)/255 and so on, from the definition of the ink densities.
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[:, :4] = (255, 0, 0, 0)
    inks[:, 4:] = (0, 0, 255, 128)
    Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).save(tmp_path / "ink.tiff")
    pixels = images.read(tmp_path / "ink.tiff").astype(int)
    assert np.abs(pixels[:, :4] - (0, 255, 255)).max() <= 1
    assert np.abs(pixels[:, 4:] - (127, 127, 0)).max() <= 1
    assert "CMYK without a colour profile" in found(tmp_path / "ink.tiff")


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    inks = np.zeros((32, 32, 4), np.uint8)  # no ink at all: white paper
    Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).save(tmp_path / "ink.jpg")
    assert images.read(tmp_path / "ink.jpg").min() >= 250


def icc_tag_table(profile: bytes) -> list[tuple[int, bytes]]:
    """Offset in the file and signature of each tag (ICC.1, tag table)."""
    count = struct.unpack(">I", profile[128:132])[0]
    return [(at, profile[at : at + 4]) for at in range(132, 132 + 12 * count, 12)]


def grb_profile() -> bytes:
    """sRGB with the red and green primaries exchanged: its (255, 0, 0) is green."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    exchange = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    for at, signature in icc_tag_table(bytes(profile)):
        profile[at : at + 4] = exchange.get(signature, signature)
    return bytes(profile)


def test_rgb_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.fromarray(quadrants()).save(path, icc_profile=grb_profile())
    pixels = images.read(path)
    assert np.abs(pixels.astype(int) - quadrants()[..., [1, 0, 2]]).max() <= 2
    assert "RGB colour profile: converted to sRGB" in found(path)


def test_profile_of_a_transparent_picture_is_applied_before_compositing(tmp_path: Path) -> None:
    rgba = np.dstack([quadrants(), np.zeros((40, 60), np.uint8)])
    rgba[:, 30:, 3] = 255
    path = tmp_path / "wide.png"
    Image.fromarray(rgba).save(path, icc_profile=grb_profile())
    pixels = images.read(path, background=(200, 10, 10)).astype(int)
    assert (pixels[:, :30] == (200, 10, 10)).all()  # the background is sRGB already
    assert np.abs(pixels[:, 30:] - quadrants()[:, 30:, [1, 0, 2]]).max() <= 2


def test_srgb_profile_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "srgb.png"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(quadrants()).save(path, icc_profile=profile)
    pixels, notes, _ = images.decode(path)
    np.testing.assert_array_equal(pixels, quadrants())
    assert notes == ()


@pytest.mark.parametrize("profile", [b"no profile at all", b"\0" * 200])
def test_broken_profile_is_ignored_and_told(tmp_path: Path, profile: bytes) -> None:
    path = tmp_path / "broken.png"
    Image.fromarray(quadrants()).save(path, icc_profile=profile)
    np.testing.assert_array_equal(images.read(path), quadrants())
    assert "unusable colour profile" in found(path)


def test_profile_of_another_colour_space_is_ignored_and_told(tmp_path: Path) -> None:
    path = tmp_path / "mixed.png"
    Image.fromarray(quadrants()).convert("L").save(path, icc_profile=grb_profile())
    expected = np.asarray(Image.fromarray(quadrants()).convert("L"))
    np.testing.assert_array_equal(images.read(path)[..., 0], expected)
    assert "colour profile for RGB, pixels in L" in found(path)


def icc_profile(kind: bytes, tags: dict[bytes, bytes]) -> bytes:
    """A version 2 profile (ICC.1): `kind` is device class + colour space + PCS."""
    white = struct.pack(">3i", 63190, 65536, 54061)  # D50
    tags = tags | {b"wtpt": b"XYZ \0\0\0\0" + white, b"cprt": b"text\0\0\0\0no rights reserved\0"}
    at = 132 + 12 * len(tags)
    directory, body = struct.pack(">I", len(tags)), b""
    for signature, data in tags.items():
        directory += signature + struct.pack(">II", at + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header = bytearray(128)
    header[0:4] = struct.pack(">I", at + len(body))
    header[8:12] = b"\x02\x40\0\0"
    header[12:24] = kind
    header[36:40] = b"acsp"
    header[68:80] = white
    return bytes(header) + directory + body


def test_grey_profile_is_used_with_and_without_alpha(tmp_path: Path) -> None:
    linear = icc_profile(b"mntrGRAYXYZ ", {b"kTRC": b"curv\0\0\0\0\0\0\0\0"})  # gamma 1
    grey = np.full((8, 8), 55, np.uint8)
    Image.fromarray(grey).save(tmp_path / "l.png", icc_profile=linear)
    opaque = np.dstack([grey, np.full_like(grey, 255)])
    Image.fromarray(opaque).save(tmp_path / "la.png", icc_profile=linear)
    for name in ("l.png", "la.png"):
        # Y = 55/255 → sRGB 1.055·Y^(1/2.4) − 0.055 = 0.502 → 128.
        assert np.abs(images.read(tmp_path / name).astype(int) - 128).max() <= 1, name
        assert "GRAY colour profile: converted to sRGB" in found(tmp_path / name)


def cyan_is_black_profile() -> bytes:
    """A CMYK profile of one table (ICC.1, lut8Type): L* = 100·(1 − C), no other ink."""
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    ramp = bytes(range(256))
    # The 16 corners of the ink cube, the first ink varying slowest; Lab as 8 bits is L·255/100,
    # a + 128, b + 128.
    corners = b"".join(bytes([0 if corner & 8 else 255, 128, 128]) for corner in range(16))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + identity + ramp * 4 + corners + ramp * 3
    return icc_profile(b"prtrCMYKLab ", {b"A2B0": table})


def test_cmyk_profile_is_used(tmp_path: Path) -> None:
    inks = np.zeros((8, 12, 4), np.uint8)
    inks[:, 4:8, 0], inks[:, 8:, 0] = 102, 255
    path = tmp_path / "ink.tiff"
    Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).save(
        path, icc_profile=cyan_is_black_profile()
    )
    pixels = images.read(path).astype(int)
    # L* = 60 → Y = ((60 + 16)/116)³ = 0.2812 → sRGB 1.055·Y^(1/2.4) − 0.055 = 0.567 → 145.
    for columns, grey in ((slice(0, 4), 255), (slice(4, 8), 145), (slice(8, 12), 0)):
        assert np.abs(pixels[:, columns] - grey).max() <= 3
    assert "CMYK colour profile: converted to sRGB" in found(path)
