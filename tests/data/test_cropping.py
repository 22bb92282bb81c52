"""The place of a crop: around a subject's mask, where the settings say, or the centre."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dreambooth_jax.data import cropping, images, subject
from dreambooth_jax.data.annotations import Wanted
from dreambooth_jax.data.audit import AuditError, audit

WORDS = {"class_noun": "duck", "identifier": "zib"}


def box(rows: int, columns: int, top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((rows, columns), np.uint8)
    mask[top : top + height, left : left + width] = 255
    return mask


@pytest.mark.parametrize(
    ("mask", "size", "place"),
    [
        (box(480, 160, 0, 40, 100, 80), 64, (0.0, 0.5)),  # a head at the top of a portrait
        (box(480, 160, 200, 0, 80, 160), 64, (0.5, 0.5)),  # whole in the centre: it stays there
        (box(480, 160, 330, 0, 150, 160), 64, (1.0, 0.5)),
        (box(480, 160, 180, 0, 150, 160), 64, (170 / 320, 0.5)),  # the nearest that shows it whole
        (box(160, 480, 0, 0, 160, 60), 64, (0.5, 0.0)),
        (box(480, 160, 10, 0, 300, 160), 64, (150 / 320, 0.5)),  # larger than the window
        (box(200, 200, 0, 0, 50, 200), (32, 64), (0.0, 0.5)),  # landscape of a square photo
        (box(200, 200, 0, 0, 50, 200), 64, (0.5, 0.5)),
    ],
)
def test_the_window_shows_most_of_the_mask_nearest_to_the_centre(mask, size, place) -> None:
    assert cropping.around(mask, size) == pytest.approx(place)


@given(
    top=st.integers(0, 70), height=st.integers(1, 40), columns=st.integers(20, 60),
    size=st.sampled_from([(16, 16), (16, 24), (24, 16)]),
)  # fmt: skip
def test_no_other_window_shows_more(top, height, columns, size) -> None:
    mask = box(110, columns, top, 5, height, 10)
    place = cropping.around(mask, size)
    shown = images.cover_mask(mask, size, crop=place).sum()
    others = [images.cover_mask(mask, size, crop=(k / 20, place[1])).sum() for k in range(21)]
    assert shown >= max(others) - 0.02 * max(others)


@given(
    fy=st.floats(0, 1), fx=st.floats(0, 1), part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    zoom=st.floats(1, 1.15),
)  # fmt: skip
def test_further_crops_are_in_the_first_one(fy, fx, part, zoom) -> None:
    shape, size = (90, 300), (24, 32)
    place = cropping.within(shape, size, (fy, fx), (*part, zoom))
    (left, top, right, bottom), _ = images.window(*shape, *size, crop=(fy, fx))
    (x0, y0, x1, y1), _ = images.window(*shape, *size, crop=place, zoom=zoom)
    assert x0 >= left - 1e-6 and y0 >= top - 1e-6
    assert x1 <= right + 1e-6 and y1 <= bottom + 1e-6


@pytest.fixture
def tall(tmp_path: Path) -> Path:
    """A portrait, grey but for its top."""
    pixels = np.full((90, 30, 3), 128, np.uint8)
    pixels[:30] = np.random.default_rng(0).integers(0, 256, (30, 30, 3), np.uint8)
    for name in "abc":
        pixels[80, 3] = ord(name)  # other pictures
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


def test_what_is_judged_is_what_is_cut(tall: Path) -> None:
    top = Wanted(crop=(0.0, 0.5))
    told = str(audit(tall, size=30))
    assert "the square in the middle is of one colour" in told and "--config.subject.crop" in told
    assert "of one colour" not in str(audit(tall, size=30, wanted=top))
    bottom = Wanted(crop=(0.5, 0.5))
    assert "the square at subject.crop = (0.5, 0.5) is" in str(audit(tall, size=30, wanted=bottom))
    found = subject.read(tall, **WORDS, sizes=[30], crops=5, wanted=top)
    photo = np.asarray(Image.open(tall / "a.png"))
    assert np.array_equal(found.pixels[30, 30][0], photo[:30])
    assert all(window.fy * (90 - 30 / window.zoom) <= 30 for window in found.windows)
    assert all(rows.std() > 30 for rows in found.pixels[30, 30])


def test_the_mask_places_the_crop_where_the_settings_do_not(tall: Path) -> None:
    for name in "abc":
        Image.fromarray(box(90, 30, 5, 5, 20, 20)).save(tall / f"{name}.mask.png")
    found = subject.read(tall, **WORDS, sizes=[30], wanted=Wanted(masks="files"))
    assert found.windows[0][1:] == pytest.approx((5 / 60, 0.5, 1.0))
    expected = box(90, 30, 5, 5, 20, 20)[5:35] / 255
    np.testing.assert_allclose(found.masks[30, 30][0], expected, atol=1e-6)
    with pytest.raises(AuditError, match=r"at subject.crop = \(1.0, 0.5\) shows nothing of its"):
        subject.read(tall, **WORDS, sizes=[30], wanted=Wanted(masks="files", crop=(1.0, 0.5)))


@pytest.mark.parametrize("masks", ["files", "alpha", "beside"])
def test_a_photo_and_its_mask_are_decoded_once(
    tall: Path, monkeypatch: pytest.MonkeyPatch, masks: str
) -> None:
    """For the audit, for what lies beside it and for its crops: it may take seconds."""
    for name in "abc":
        drawn = box(90, 30, 5, 5, 20, 20)
        drawn[80, 3] = 255  # where the photos differ
        mask = Image.fromarray(drawn)
        if masks == "alpha":
            photo = Image.open(tall / f"{name}.png").convert("RGB")
            photo.putalpha(mask)
            photo.save(tall / f"{name}.png")
        else:  # of the same stem: what looks like a mask is told from a photo by its pixels
            mask.save(tall / f"{name}{'.mask.png' if masks == 'files' else '.bmp'}")
    decoded: list[str] = []
    real = images.decode

    def counted(path, **how):
        decoded.append(Path(path).name)
        return real(path, **how)

    monkeypatch.setattr(images, "decode", counted)
    wanted = Wanted(masks="none" if masks == "beside" else masks)
    found = subject.read(tall, **WORDS, sizes=[30, 15], crops=3, wanted=wanted)
    assert found.photos == ("a.png", "b.png", "c.png")
    ends = {"files": (".png", ".mask.png"), "alpha": (".png",), "beside": (".png", ".bmp")}[masks]
    assert sorted(decoded) == sorted(f"{k}{end}" for k in "abc" for end in ends)
