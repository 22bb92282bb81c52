import io

import numpy as np
import pytest
from PIL import Image
from studios import client, photo, studio

from dreambooth_jax.data import annotations, images
from dreambooth_jax.studio import photos
from dreambooth_jax.studio.places import RefusedError

PLACE = 0x8825  # EXIF tag of the place where a photo was taken


def with_place(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    exif.get_ifd(PLACE)[1] = "N"
    return photo(exif=exif)


def test_a_photo_is_written_anew_upright_and_without_its_place(tmp_path):
    sent = with_place(orientation=6)
    assert b"a camera" in sent
    assert photos.take(tmp_path, sent, called="IMG_1.JPG") == "photo_01.jpg"
    with Image.open(tmp_path / "photo_01.jpg") as found:
        assert found.size == (64, 96) and not dict(found.getexif())
    assert b"a camera" not in (tmp_path / "photo_01.jpg").read_bytes()


def test_a_small_picture_without_loss_keeps_its_pixels(tmp_path):
    sent = photo(kind="PNG")
    assert photos.take(tmp_path, sent, called="a.png") == "photo_01.png"
    before = np.asarray(Image.open(io.BytesIO(sent)))
    np.testing.assert_array_equal(images.read(tmp_path / "photo_01.png"), before)
    assert photos.take(tmp_path, photo(), called="../../b") == "photo_02.jpg"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photo_01.png", "photo_02.jpg"]


def test_transparency_becomes_the_mask(tmp_path):
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[10:30, 10:30] = (200, 30, 30, 255)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, format="PNG")
    name = photos.take(tmp_path, buffer.getvalue(), called="cut.png")
    mask = np.asarray(Image.open(photos.mask_of(tmp_path / name)))
    assert mask[20, 20] == 255 and mask[2, 2] == 0 and mask.sum() == 255 * 400


def bomb(side: int) -> bytes:
    """A PNG of side² black pixels in a few bytes."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("sent", "called", "told"),
    [
        (b"", "a.jpg", "empty"),
        (b"hello", "a.jpg", "not an image"),
        (b"<svg onload='x'/>", "a.svg", "not an image"),
        (photo()[:300], "a.jpg", "copy it again"),
        (photo(), "a.cr2", "raw"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a.eps", "not an image"),
    ],
)
def test_what_is_no_photo_is_refused_with_its_reason(tmp_path, sent, called, told):
    with pytest.raises(RefusedError, match=told):
        photos.take(tmp_path, sent, called=called)
    assert list(tmp_path.iterdir()) == []


def test_a_bomb_of_pixels_is_refused_before_it_is_decoded(tmp_path):
    sent = bomb(14_000)
    assert len(sent) < 100_000
    with pytest.raises(RefusedError, match="too large"):
        photos.take(tmp_path, sent, called="a.png")
    own = studio(tmp_path / "runs")
    own.places.new_subject("duck")
    answer = client(own).post("/new/duck/photos", files={"photo": ("a.png", sent, "image/png")})
    assert answer.status_code == 400 and "too large" in answer.text


def test_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MOST", 1)
    photos.take(tmp_path, photo(), called="a.jpg")
    with pytest.raises(RefusedError, match="1 photos are there"):
        photos.take(tmp_path, photo(), called="b.jpg")
    monkeypatch.setattr(photos, "LARGEST", 100)
    with pytest.raises(RefusedError, match="larger than"):
        photos.take(tmp_path, photo(), called="c.jpg")


def painted(height: int, width: int) -> bytes:
    mask = np.zeros((height, width, 3), np.uint8)
    mask[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG")
    return buffer.getvalue()


def test_a_mask_is_scaled_to_its_photo_and_keeps_the_caption(tmp_path):
    file = tmp_path / photos.take(tmp_path, photo(96, 64), called="a.jpg")
    photos.caption(file, "  a {subject}\n on grass ")
    photos.paint(file, painted(128, 192))
    wanted = annotations.Wanted(captions="files", masks="files")
    mask = annotations.read_mask(file, wanted)
    assert mask is not None and mask.shape == (64, 96)
    assert 0.2 < mask.mean() / 255 < 0.3 and set(np.unique(mask)) == {0, 255}
    assert annotations.read_caption(file, wanted) == "a {subject} on grass"
    photos.caption(file, "")
    assert photos.mask_of(file).is_file() and annotations.caption_file(file) is None
    photos.remove(file)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sent", [b"", b"x", painted(100, 100), photo()[:99]])
def test_what_is_no_mask_of_the_photo_is_refused(tmp_path, sent):
    file = tmp_path / photos.take(tmp_path, photo(96, 64), called="a.jpg")
    with pytest.raises(RefusedError, match="mask"):
        photos.paint(file, sent)
    assert not photos.mask_of(file).exists()


def test_an_empty_mask_is_none(tmp_path):
    file = tmp_path / photos.take(tmp_path, photo(96, 64), called="a.jpg")
    photos.paint(file, painted(64, 96))
    buffer = io.BytesIO()
    Image.new("RGB", (96, 64)).save(buffer, format="PNG")
    photos.paint(file, buffer.getvalue())
    assert not photos.mask_of(file).exists()


def test_the_audit_of_the_page_is_that_of_the_run(tmp_path):
    for _ in range(2):
        photos.take(tmp_path, photo(), called="same.jpg")
    photos.take(tmp_path, photo(20, 20), called="small.jpg")
    shown, general = photos.looked_at(tmp_path, size=64)
    assert [each.usable for each in shown] == [True, False, False]
    assert "same picture as photo_01.jpg" in shown[1].findings[0]
    assert "too small (20×20" in shown[2].findings[0]
    assert any("3 to 5 teach a subject" in text for text in general)
    masked, _ = photos.looked_at(tmp_path, size=64, masks="files")
    assert not masked[0].usable and "photo_01.mask.png is missing" in masked[0].findings[-1]


def test_the_crop_is_the_square_of_the_model(tmp_path):
    file = tmp_path / photos.take(tmp_path, photo(96, 64, kind="PNG"), called="a.png")
    found = np.asarray(Image.open(io.BytesIO(photos.crop(file, size=32))))
    np.testing.assert_array_equal(found, images.cover(images.read(file), 32))


@pytest.mark.parametrize(
    "there",
    [
        ("photo_01.webp", "photo_01.mask.png", "photo_01.txt"),
        ("photo_01.JPEG",),
        ("PHOTO_01.png",),
        ("photo_01.txt",),  # left behind by a photo that is gone
        ("photo_01.jpg.txt",),
        ("photo_01_mask.jpg",),
    ],
)
def test_an_upload_takes_no_name_that_something_there_belongs_to(tmp_path, there):
    for name in there:
        (tmp_path / name).write_bytes(name.encode())
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[10:30, 10:30] = (200, 30, 30, 255)
    buffer = io.BytesIO()
    Image.fromarray(rgba).save(buffer, format="PNG")
    assert photos.take(tmp_path, buffer.getvalue(), called="cut.png") == "photo_02.png"
    for name in there:
        assert (tmp_path / name).read_bytes() == name.encode()
    assert annotations.caption_file(tmp_path / "photo_02.png") is None


def test_a_removed_photo_leaves_what_another_of_its_stem_has(tmp_path):
    for name in ("IMG_1.JPG", "IMG_1.HEIC", "IMG_1.txt", "IMG_1.mask.png", "IMG_1.JPG.txt"):
        (tmp_path / name).write_bytes(b"")
    photos.remove(tmp_path / "IMG_1.JPG")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"IMG_1.HEIC", "IMG_1.txt", "IMG_1.mask.png"}
    photos.remove(tmp_path / "IMG_1.HEIC")
    assert list(tmp_path.iterdir()) == []
