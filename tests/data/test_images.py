"""Photos whose pixels are known from how they were drawn, through every way files hide them."""

import io
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

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


def found(path: Path) -> str:
    """All notes on a file, as one text."""
    return "; ".join(str(note) for note in images.decode(path)[1])


# Exif 2.32, tag 0x0112: where the 0th stored row and the 0th stored column are in the scene.
# 1 top left, 2 top right, 3 bottom right, 4 bottom left, 5 left top, 6 right top, 7 right bottom,
# 8 left bottom. So stored[r, c] of, for instance, 6 is upright[c, W − 1 − r].
STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_comes_back_upright(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    upright = quadrants(32, 64)  # JPEG blocks of 8 pixels end where the quadrants do
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"phone.{suffix}"
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    options = {"webp": {"lossless": True}, "jpg": {"quality": 98, "subsampling": 0}}
    stored.save(path, exif=exif, **options.get(suffix, {}))

    pixels, notes, _ = images.decode(path)

    assert pixels.shape == upright.shape
    tolerance = 4 if suffix == "jpg" else 0
    assert np.abs(pixels.astype(int) - upright).max() <= tolerance
    told = "turned upright" in "; ".join(map(str, notes))
    assert told == (orientation != 1)


def test_orientation_outside_the_standard_is_taken_as_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 0
    Image.fromarray(quadrants()).save(tmp_path / "odd.png", exif=exif)
    np.testing.assert_array_equal(images.read(tmp_path / "odd.png"), quadrants())


def test_broken_exif_does_not_cost_the_photo(tmp_path: Path) -> None:
    path = tmp_path / "broken.png"
    Image.fromarray(quadrants()).save(path, exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(images.read(path), quadrants())
    assert "EXIF data unreadable: took it as upright" in found(path)


def test_first_picture_of_mpo_gif_webp_apng_and_tiff(tmp_path: Path) -> None:
    first, second = quadrants(), quadrants()[::-1].copy()
    for suffix, options in {
        "mpo": {"quality": 98},
        "gif": {},
        "webp": {"lossless": True},
        "png": {},
        "tiff": {},
    }.items():
        path = tmp_path / f"several.{suffix}"
        Image.fromarray(first).save(
            path, save_all=True, append_images=[Image.fromarray(second)], **options
        )
        pixels = images.read(path).astype(int)
        assert np.abs(pixels - first).mean() < 3, suffix
        assert "took the first" in found(path), suffix


def test_file_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "mine.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(quadrants()).save(path, exif=exif)
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    images.read(path)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_what_pillow_warns_of_and_reads_all_the_same_is_no_error(tmp_path: Path) -> None:
    short = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0"  # ends within its only entry
    Image.fromarray(quadrants()).save(tmp_path / "odd.png", exif=short)
    with (
        pytest.warns(UserWarning, match=r"EXIF|Truncated"),
        Image.open(tmp_path / "odd.png") as odd,
    ):
        odd.getexif()
    assert images.decode(tmp_path / "odd.png")[1] == ()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "tiff"])
def test_truncated_files_are_refused(tmp_path: Path, rng: np.random.Generator, suffix: str) -> None:
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=r"(truncated|damaged).*: copy it again"):
        images.read(path)


def test_truncated_jpeg_is_refused_where_other_code_made_pillow_lenient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(quadrants(200, 300)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="truncated"):
        images.read(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES  # and the other code's choice stands


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.jpg", b"", "empty file"),
        ("page.jpg", b"<html>404</html>", "not an image"),
        ("notes.txt", b"P is for photo", "not an image"),
        ("head.jpg", b"\xff\xd8\xff\xd9", "starts like JPEG"),
        ("film.mp4", b"\0\0\0\x18ftypmp42" + b"\0" * 40, "not an image"),
        ("figure.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        ("camera.NEF", b"II*\0" + b"\0" * 40, "camera raw file .*export it as JPEG"),
    ],
)
def test_what_is_no_photo_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match=message):
        images.read(tmp_path / name)


def test_missing_file_is_the_usual_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        images.read(tmp_path / "gone.jpg")


HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + b"\0" * 40


def test_heic_names_the_package_that_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # not installed
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "phone.heic").write_bytes(HEIC)
    with pytest.raises(ImageError, match=r"HEIC.*pip install pillow-heif.*export it as JPEG"):
        images.read(tmp_path / "phone.heic")


@pytest.mark.parametrize(
    ("able", "message"),
    [(False, r"AVIF.*pip install --upgrade pillow"), (True, "starts like AVIF")],
)
def test_avif_says_whether_pillow_or_the_file_is_at_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool, message: str
) -> None:
    monkeypatch.setattr(images.features, "check", lambda feature: able)
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    (tmp_path / "web.avif").write_bytes(HEIC.replace(b"heic", b"avif"))
    with pytest.raises(ImageError, match=message):
        images.read(tmp_path / "web.avif")


def test_heic_is_read_where_that_package_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.init()
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))

    def open_as_png(file: io.BytesIO, name: str) -> Image.Image:
        png = io.BytesIO()
        Image.fromarray(quadrants()).save(png, "PNG")
        return Image.open(png)

    stand_in = types.ModuleType("pillow_heif")
    stand_in.register_heif_opener = lambda: Image.register_open(
        "HEIF", open_as_png, lambda head: head[4:12] == b"ftypheic"
    )
    monkeypatch.setitem(sys.modules, "pillow_heif", stand_in)
    (tmp_path / "phone.heic").write_bytes(HEIC)
    np.testing.assert_array_equal(images.read(tmp_path / "phone.heic"), quadrants())

    stand_in.register_heif_opener = lambda: Image.OPEN.pop("HEIF", None)  # it cannot, after all
    with pytest.raises(ImageError, match="damaged: it starts like HEIC"):
        images.read(tmp_path / "phone.heic")


@pytest.mark.parametrize("limit", [2000, 1000])  # Pillow warns above it, and raises above twice it
def test_decompression_bomb_is_a_problem_with_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    Image.fromarray(quadrants(40, 60)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match=r"2400 pixels.*limit of 2000.*save a smaller copy"):
        images.read(tmp_path / "bomb.png")


def moments(darkness: np.ndarray) -> tuple[float, float, float, float, float]:
    """Centroid (y, x) and central second moments (yy, xx, xy) of a non-negative [H, W]."""
    y, x = np.mgrid[: darkness.shape[0], : darkness.shape[1]] + 0.5
    weight = darkness / darkness.sum()
    cy, cx = (weight * y).sum(), (weight * x).sum()
    return (
        cy,
        cx,
        (weight * (y - cy) ** 2).sum(),
        (weight * (x - cx) ** 2).sum(),
        (weight * (y - cy) * (x - cx)).sum(),
    )


@pytest.mark.parametrize(("height", "width"), [(100, 200), (200, 100), (100, 100)])
@pytest.mark.parametrize("size", [64, 160])
def test_a_circle_stays_round(height: int, width: int, size: int) -> None:
    radius = 30
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(y - height / 2, x - width / 2) < radius
    picture = np.where(inside[..., None], 0, 255).astype(np.uint8).repeat(3, axis=-1)

    cut = images.cover(picture, size)

    assert cut.shape == (size, size, 3)
    assert cut.dtype == np.uint8
    cy, cx, yy, xx, xy = moments(255.0 - cut[..., 0])
    assert (cy, cx) == pytest.approx((size / 2, size / 2), abs=0.1)
    # A disc of radius r has second moments r²/4 both ways and no mixed one.
    expected = (radius * size / 100) ** 2 / 4
    assert (yy, xx) == pytest.approx((expected, expected), rel=0.02)
    assert abs(xy) < 0.01 * expected


@given(
    height=st.integers(40, 150),
    width=st.integers(40, 150),
    target=st.tuples(st.integers(8, 90), st.integers(8, 90)),
    crop=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    zoom=st.floats(1, 1.5),
)
def test_cover_takes_the_named_window_and_scales_both_ways_alike(
    height: int, width: int, target: tuple[int, int], crop: tuple[float, float], zoom: float
) -> None:
    y, x = np.mgrid[:height, :width]
    picture = np.stack([y, x, 0 * x], axis=-1).astype(np.uint8)  # each pixel says where it is

    cut = images.cover(picture, target, crop=crop, zoom=zoom).astype(float)

    assert cut.shape == (*target, 3)
    step = min(height / target[0], width / target[1]) / zoom  # photo pixels per pixel of the crop
    for axis, extent in ((0, height), (1, width)):
        window = target[axis] * step
        start = crop[axis] * (extent - window)
        places = start + (np.arange(target[axis]) + 0.5) * step - 0.5
        along = cut[..., axis].mean(axis=1 - axis)
        # Away from the border, where the filter has nothing to look at, the ramp is reproduced.
        inner = (places > 4 * step + 4) & (places < extent - 4 * step - 5)
        np.testing.assert_allclose(along[inner], places[inner], atol=0.75)
        assert along.mean() == pytest.approx(start + window / 2 - 0.5, abs=1.0)


def test_cover_at_its_own_size_is_the_same_picture() -> None:
    np.testing.assert_array_equal(images.cover(quadrants(40, 40), 40), quadrants(40, 40))


def test_cover_of_a_size_crops_only() -> None:
    picture = quadrants(40, 60)
    for fx, start in ((0.0, 0), (0.5, 10), (1.0, 20)):
        cut = images.cover(picture, 40, crop=(0.3, fx))
        np.testing.assert_array_equal(cut, picture[:, start : start + 40])


def test_cover_does_not_alias_fine_stripes() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255  # far above what 32 pixels can show: the mean must remain
    cut = images.cover(stripes, 32)[:, 2:-2].astype(float)
    np.testing.assert_allclose(cut, 127.5, atol=3)


def test_cover_says_what_is_wrong_with_its_arguments() -> None:
    picture = quadrants()
    with pytest.raises(ValueError, match=r"got float32 \[40, 60, 3\]; expected uint8"):
        images.cover(picture.astype(np.float32), 8)
    with pytest.raises(ValueError, match="Did you mean 'center'"):
        images.cover(picture, 8, crop="centre")
    with pytest.raises(ValueError, match=r"expected 'center' or \(fy, fx\) in \[0, 1\]"):
        images.cover(picture, 8, crop=(0.5, 1.2))
    with pytest.raises(ValueError, match=r"zoom is 0\.5; expected 1"):
        images.cover(picture, 8, zoom=0.5)
    with pytest.raises(ValueError, match="at least 1 pixel"):
        images.cover(picture, 0)


def test_to_float_and_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    floats = images.to_float(levels)
    assert floats.dtype == np.float32
    assert (floats[0], floats[255]) == (-1, 1)
    assert floats[51] == pytest.approx(-0.6)  # 51/127.5 − 1
    assert (np.diff(floats) > 0).all()
    np.testing.assert_array_equal(images.to_uint8(floats), levels)


def test_to_uint8_rounds_and_clips() -> None:
    one = 1 / 127.5  # one level
    values = np.array([-7, -1 + 0.4 * one, -1 + 0.6 * one, 1 - 0.6 * one, 3, np.inf], np.float32)
    assert images.to_uint8(values).tolist() == [0, 0, 1, 254, 255, 255]


def test_conversions_refuse_what_hides_a_mistake() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        images.to_float(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="is it done already"):
        images.to_uint8(np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match="1 of 3 values are NaN"):
        images.to_uint8(np.array([0, np.nan, 1], np.float32))


def test_a_mask_is_averaged_over_the_area_of_each_pixel():
    # White from column 4 on; of four pixels each covers two and a half columns.
    mask = np.zeros((10, 10), np.uint8)
    mask[:, 4:] = 255
    np.testing.assert_allclose(images.cover_mask(mask, 5)[2], [0, 0, 1, 1, 1])
    np.testing.assert_allclose(images.cover_mask(mask, 4)[0], [0, 0.4, 1, 1], atol=1e-6)
    np.testing.assert_allclose(images.cover_mask(mask, 20)[7], [0] * 8 + [1] * 12, atol=1e-6)
    # Half as large from the left border on: columns 0 to 4, of which the last one is white.
    found = images.cover_mask(mask, 2, crop=(0.5, 0.0), zoom=2)
    np.testing.assert_allclose(found, [[0, 0.4]] * 2, atol=1e-6)
    # A landscape of 5 × 10: rows 2.5 to 7.5, of which each pixel has 2.5 and as many columns.
    mask[:6] = 0
    found = images.cover_mask(mask, (2, 4))
    np.testing.assert_allclose(found, np.outer([0, 1.5 / 2.5], [0, 0.4, 1, 1]), atol=1e-6)
    # A portrait at the right border: columns 5 to 9, all rows, white below row 6.
    found = images.cover_mask(mask, (10, 5), crop=(0.5, 1.0))
    np.testing.assert_array_equal(found, np.repeat([0.0] * 6 + [1.0] * 4, 5).reshape(10, 5))


def test_shapes_of_sizes():
    assert images.sides(64) == (64, 64) and images.sides((96, 64)) == (96, 64)
    assert images.told((96, 64)) == "64×96"
    assert images.thumbnail(512, 64) == (64, 64)
    assert images.thumbnail((1024, 768), 64) == (64, 48)
    assert images.thumbnail((2, 999), 64) == (1, 64)


@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    size=st.integers(1, 12),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    zoom=st.floats(1, 2),
)
def test_a_mask_shows_what_its_photo_shows(rows, columns, size, place, zoom):
    white = images.cover_mask(np.full((rows, columns), 255, np.uint8), size, crop=place, zoom=zoom)
    np.testing.assert_allclose(white, 1, atol=1e-5)
    # A mask that grows linearly is the coordinate itself: its middle is the window's.
    ramp = np.arange(columns, dtype=np.float64) * 20
    mask = np.broadcast_to(ramp, (rows, columns)).astype(np.uint8)
    side = min(rows, columns) / zoom
    left = place[1] * (columns - side)
    edges = left + np.arange(size + 1) * side / size
    at = np.arange(columns + 1.0)
    integral = np.interp(edges, at, np.concatenate([[0], np.cumsum(ramp / 255)]))
    expected = np.diff(integral) / (side / size)
    found = images.cover_mask(mask, size, crop=place, zoom=zoom)
    np.testing.assert_allclose(found, np.broadcast_to(expected, (size, size)), atol=1e-5)
