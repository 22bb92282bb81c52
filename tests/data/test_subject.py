"""The subject's photos at every size of a cascade, and its prompts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data import annotations, subject
from dreambooth_jax.data.audit import AuditError
from dreambooth_jax.data.photos import MAX_ZOOM
from dreambooth_jax.data.subject import article, prompts, read

HEIGHT, WIDTH = 120, 200


def map_of_itself(blue: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Each pixel says where it is: red is the row, green the column; blue tells photos apart."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y, x, np.full_like(x, blue)], axis=-1).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n, name in enumerate(("b.png", "a.png", "c.png")):
        map_of_itself(blue=60 * n).save(tmp_path / name)
    return tmp_path


def owl(folder: Path, **options: object) -> subject.Subject:
    settings = {"class_noun": "owl", "identifier": "zib", "sizes": [64]} | options
    return read(folder, **settings)


def test_one_centre_crop_of_each_photo_in_the_order_of_names(folder: Path) -> None:
    result = owl(folder, sizes=[32, 64])
    assert result.photos == ("a.png", "b.png", "c.png")
    assert [window.photo for window in result.windows] == ["a.png", "b.png", "c.png"]
    assert set(result.pixels) == {(32, 32), (64, 64)}
    for (size, _), pixels in result.pixels.items():
        assert pixels.shape == (3, size, size, 3)
        assert pixels.dtype == np.uint8
        assert pixels[:, 0, 0, 2].tolist() == [60, 0, 120]
        # The centre of the photo: rows 0 to 119 and columns 40 to 159, each as many above as below.
        middle = pixels[:, size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1].mean(
            (1, 2)
        )
        np.testing.assert_allclose(middle[:, :2], [[59.5, 99.5]] * 3, atol=1)
        np.testing.assert_allclose(pixels[:, size // 2, 0, 1], 40, atol=4)
        np.testing.assert_allclose(pixels[:, size // 2, -1, 1], 159, atol=4)
    assert len(result.audit.kept) == 3
    assert (result.identifier, result.class_noun) == ("zib", "owl")
    assert (result.instance_prompt, result.class_prompt) == ("a zib owl", "an owl")


def test_every_size_shows_the_same_window_of_the_photo(folder: Path) -> None:
    crops = 5
    result = owl(folder, sizes=[24, 60, 96], crops=crops)
    assert len(result.windows) == 3 * crops
    for row, window in enumerate(result.windows):
        side = HEIGHT / window.zoom  # photos are wider than high: the height limits the square
        for (size, _), pixels in result.pixels.items():
            inner = slice(size // 4, size - size // 4)  # off the border, where filters have no data
            centre = pixels[row, inner, inner].mean((0, 1))
            expected = (
                window.fy * (HEIGHT - side) + side / 2 - 0.5,
                window.fx * (WIDTH - side) + side / 2 - 0.5,
            )
            assert centre[:2] == pytest.approx(expected, abs=0.75), (row, size)
    for pixels in result.pixels.values():
        assert pixels[:, 0, 0, 2].tolist() == [60] * crops + [0] * crops + [120] * crops


@pytest.mark.parametrize("size", [(48, 24), (24, 72)])
def test_portrait_and_landscape_show_the_largest_window_of_their_shape(
    folder: Path, size: tuple[int, int]
) -> None:
    height, width = size
    result = owl(folder, sizes=[(height // 2, width // 2), size], crops=4)
    assert set(result.pixels) == {size, (height // 2, width // 2)}
    for row, window in enumerate(result.windows):
        # A portrait is as high as the photo of 120 × 200, a landscape of 1:3 as wide.
        shown = min(HEIGHT, WIDTH * height / width) / window.zoom
        across = shown * width / height
        middle = (
            window.fy * (HEIGHT - shown) + shown / 2 - 0.5,
            window.fx * (WIDTH - across) + across / 2 - 0.5,
        )
        for (rows, columns), pixels in result.pixels.items():
            inner = pixels[row, rows // 4 : -(rows // 4), columns // 4 : -(columns // 4)]
            assert inner.mean((0, 1))[:2] == pytest.approx(middle, abs=0.75)
    told = result.sizes(size)
    assert (told[:, :2] == [HEIGHT, WIDTH]).all() and (told[:, 4:] == size).all()
    # Centre crops: 48 rows of 120, so 80 columns of which 24 are shown; 72 columns, 43.2 rows.
    cut = {(48, 24): (0, 28), (24, 72): (10, 0)}[size]
    assert (told[::4, 2:4] == cut).all()


def test_a_mask_is_cut_as_its_portrait(tmp_path: Path) -> None:
    map_of_itself().save(tmp_path / "a.png")
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, 90:] = 255  # of columns 70 to 129, that the centre of 120 × 60 shows
    Image.fromarray(mask).save(tmp_path / "a.mask.png")
    middle = annotations.Wanted(masks="files", crop=(0.5, 0.5))
    result = owl(tmp_path, sizes=[(24, 12)], wanted=middle)
    row = np.repeat([0.0, 1.0], [4, 8])  # five columns each
    np.testing.assert_allclose(result.masks[24, 12][0], np.tile(row, (24, 1)), atol=1e-6)
    mask[:, :] = 0
    mask[:, 20:50] = 255  # left of the crop, though the square would show it
    Image.fromarray(mask).save(tmp_path / "a.mask.png")
    assert owl(tmp_path, sizes=[24], wanted=middle).masks
    with pytest.raises(AuditError, match=r"the 12×24 crop at subject.crop = \(0.5, 0.5\) shows no"):
        owl(tmp_path, sizes=[(24, 12)], wanted=middle)


def test_each_size_is_cut_from_the_original_not_from_another_size(tmp_path: Path) -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # gone at size 32; only the original still has them
    Image.fromarray(stripes).save(tmp_path / "a.png")
    result = owl(tmp_path, sizes=[32, 64])
    np.testing.assert_array_equal(result.pixels[64, 64][0], stripes)
    assert result.pixels[32, 32][0, :, 2:-2].std() < 3


def test_crops_differ_stay_in_the_photo_and_repeat(folder: Path) -> None:
    result = owl(folder, crops=6)
    assert len(set(result.windows)) == len(result.windows)
    assert all(w[1:] == (0.5, 0.5, 1.0) for w in result.windows[::6])
    assert len({w[1:] for w in result.windows}) == 1 + 3 * 5  # photos do not share their draws
    for window in result.windows:
        assert 0 <= window.fy <= 1
        assert 0 <= window.fx <= 1
        assert 1 <= window.zoom <= MAX_ZOOM
    again = owl(folder, crops=6)
    assert again.windows == result.windows
    np.testing.assert_array_equal(again.pixels[64, 64], result.pixels[64, 64])
    other = owl(folder, crops=6, seed=1)
    assert all(
        (a == b) == (row % 6 == 0)
        for row, (a, b) in enumerate(zip(result.windows, other.windows, strict=True))
    )


def test_more_photos_more_crops_or_other_sizes_change_no_window(folder: Path) -> None:
    few = owl(folder, crops=3)
    map_of_itself(blue=200).save(folder / "aa.png")
    many = owl(folder, crops=5, sizes=[16, 48])
    assert set(few.windows) < set(many.windows)


def test_a_sideways_phone_photo_is_cut_upright(tmp_path: Path) -> None:
    upright = np.asarray(map_of_itself(height=120, width=80))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored row 0 is the right side, stored column 0 the top
    stored = np.ascontiguousarray(upright[:, ::-1].swapaxes(0, 1))
    Image.fromarray(stored).save(tmp_path / "phone.png", exif=exif)
    cut = owl(tmp_path, sizes=[80]).pixels[80, 80][0]
    np.testing.assert_array_equal(cut, upright[20:100])


def test_max_photos_takes_the_first_by_name_and_says_so(folder: Path) -> None:
    result = owl(folder, max_photos=2)
    assert result.photos == ("a.png", "b.png")
    assert len(result.pixels[64, 64]) == 2
    assert [photo.path.name for photo in result.audit.kept] == ["a.png", "b.png"]
    assert "c.png  beyond max_photos=2: not used" in str(result.audit)
    assert "2 photos kept, 0 skipped, 1 ignored" in str(result.audit)
    assert owl(folder, max_photos=9).photos == ("a.png", "b.png", "c.png")


def test_the_largest_size_decides_what_is_too_small(folder: Path) -> None:
    map_of_itself(height=40, width=40).save(folder / "d.png")
    assert "d.png" in owl(folder, sizes=[64]).photos
    result = owl(folder, sizes=[64, 100])
    assert "d.png" not in result.photos
    with pytest.raises(AuditError, match="needs at least 50 px"):
        owl(folder, sizes=[64, 100], strict=True)


def test_transparent_photos_get_the_background_at_every_size(tmp_path: Path) -> None:
    Image.new("RGBA", (80, 80), (200, 0, 0, 0)).save(tmp_path / "a.png")
    result = owl(tmp_path, sizes=[16, 64], background=(1, 2, 3))
    for pixels in result.pixels.values():
        assert (pixels == (1, 2, 3)).all()


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("dog", "a"),
        ("owl", "an"),
        ("Airedale terrier", "an"),
        ("umbrella", "an"),
        ("unidentified object", "an"),
        ("unicorn", "a"),
        ("university building", "a"),
        ("ukulele", "a"),
        ("USB stick", "a"),
        ("used car", "a"),
        ("utensil", "a"),
        ("European bison", "a"),
        ("one-eyed cat", "a"),
        ("hourglass", "an"),
        ("heirloom", "an"),
        ("house", "a"),
        ("yak", "a"),
        ("urn", "an"),
    ],
)
def test_article_follows_the_sound(phrase: str, expected: str) -> None:
    assert article(phrase) == expected


def test_each_prompt_has_its_own_article() -> None:
    assert prompts(identifier="zib", class_noun="owl") == ("a zib owl", "an owl")
    assert prompts(identifier="olis", class_noun="dog") == ("an olis dog", "a dog")
    assert prompts(identifier="zib", class_noun="stuffed animal") == (
        "a zib stuffed animal",
        "a stuffed animal",
    )


@pytest.mark.parametrize(
    ("identifier", "class_noun", "message"),
    [
        ("zib", "a dog", r"class_noun is 'a dog'.*write 'dog'"),
        ("zib", "", r"class_noun is ''.*such as 'dog'"),
        (" zib", "dog", r"identifier is ' zib'.*single spaces"),
        ("zib", "stuffed  animal", "single spaces"),
        ("zib", "dog\n", "single spaces"),
        ("the zib", "dog", "write 'zib'"),
    ],
)
def test_words_that_would_spoil_the_prompts_are_refused(
    identifier: str, class_noun: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prompts(identifier=identifier, class_noun=class_noun)


def test_numbers_that_make_no_sense_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"sizes is \[\]; expected one or more"):
        owl(folder, sizes=[])
    with pytest.raises(ValueError, match=r"sizes is \[64, 0\]"):
        owl(folder, sizes=[64, 0])
    with pytest.raises(ValueError, match="crops is 0; expected 1"):
        owl(folder, crops=0)
    with pytest.raises(ValueError, match="max_photos is 0; expected at least 1, or None"):
        owl(folder, max_photos=0)


def test_real_photos_at_the_sizes_of_a_cascade(shared_data: Path) -> None:
    photos = shared_data / "dreambooth" / "dataset" / "duck_toy"
    if not photos.is_dir():
        pytest.skip("needs the DreamBooth photos under ../shared/data/dreambooth")
    result = read(photos, class_noun="toy", identifier="zib", sizes=[16, 64], crops=2)
    assert result.pixels[64, 64].shape == (8, 64, 64, 3)
    # A low-resolution picture is what is left of its pair when blocks of 4×4 are averaged.
    blocks = result.pixels[64, 64].reshape(8, 16, 4, 16, 4, 3).mean((2, 4))
    distance = np.abs(blocks[:, None] - result.pixels[16, 16][None].astype(float)).mean((2, 3, 4))
    assert (distance.argmin(axis=1) == np.arange(8)).all()
    assert np.diagonal(distance).max() < 6


def test_sizes_tell_where_each_row_was_cut_from(folder: Path) -> None:
    """For a model that is told: read off pictures whose pixels say where they are."""
    # 24 pixels of photos 5 times as high: row r of a scaled photo is row 5 r of the photo.
    result = owl(folder, sizes=[24], crops=4)
    told = result.sizes(24)
    assert told.shape == (12, 6)
    assert (told[:, :2] == [HEIGHT, WIDTH]).all()
    assert (told[:, 4:] == 24).all()
    for row, window in enumerate(result.windows):
        shown = result.pixels[24, 24][
            row, 12, 12, :2
        ]  # the row and column of the photo in the middle
        at = (told[row, 2:4] + 12.5) * HEIGHT / 24 / window.zoom
        assert shown == pytest.approx(at, abs=5)  # one pixel of 24, which stands for 5
    assert (told[::4, 2] == 0).all()  # the centre crop of a wide photo
    assert (told[::4, 3] == 8).all()  # 40 columns of 200 are 8 of 40

    # Of mirrored rows too, of all zooms: column c of the photo is column 199 - c of its image.
    other = result.sizes(24, mirrored=True)
    np.testing.assert_array_equal(other[:, [0, 1, 2, 4, 5]], told[:, [0, 1, 2, 4, 5]])
    for row, window in enumerate(result.windows):
        shown = WIDTH - 1 - result.pixels[24, 24][row, :, ::-1][12, 12, 1]
        at = (other[row, 3] + 12.5) * HEIGHT / 24 / window.zoom
        assert shown == pytest.approx(at, abs=5)


@pytest.mark.parametrize("word", ["../../x", "a/b", "a\\b", ".hidden", "x\x1b[31m", "a\0b"])
def test_words_become_names_of_files_and_never_lead_elsewhere(word):
    """An export by another may say what its subject is called; files are named after it."""
    for identifier, noun in ((word, "dog"), ("zib", word)):
        with pytest.raises(ValueError, match=r"cannot be part of a file's name|single spaces"):
            subject.Words.of(identifier=identifier, class_noun=noun)
