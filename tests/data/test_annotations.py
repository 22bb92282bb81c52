"""Captions and masks beside photos: what is read, what is refused, and in which words."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data import audit as audits
from dreambooth_jax.data import photos, subject
from dreambooth_jax.data.annotations import Wanted
from dreambooth_jax.data.audit import AuditError

CAPTIONS = Wanted(captions="files", word="zib")
WORDS = {"class_noun": "owl", "identifier": "zib", "sizes": [32]}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(folder: Path, name: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate(("a.png", "b.jpg", "c.d.png")):
        save(tmp_path, name, noise(40, 60, 3, seed=k))
    return tmp_path


def test_each_row_has_the_caption_of_its_photo(folder: Path) -> None:
    (folder / "a.txt").write_text("a photo of a {subject} on grass\n")
    (folder / "b.txt").write_bytes("\ufeffein ZIB im Café, {class_noun}\r\n\r\n".encode())
    (folder / "c.d.txt").write_text("{identifier} {asleep?}")
    found = subject.read(folder, **WORDS, crops=2, wanted=CAPTIONS)
    assert found.row_prompts == [
        *["a photo of a zib owl on grass"] * 2,
        *["ein ZIB im Café, owl"] * 2,
        *["zib {asleep?}"] * 2,
    ]
    assert len(found.audit.findings) == 0
    assert "caption 'a photo of a {subject} on grass'" in str(found.audit)
    plain = subject.read(folder, **WORDS)
    assert set(plain.row_prompts) == {"a zib owl"}
    # Captions that are not asked for are no photos, and are not silently left out either.
    assert [f.outcome for f in plain.audit.findings] == ["ignored"] * 3
    assert "caption of a photo: not read; --config.subject.captions=files" in str(plain.audit)


def test_all_that_is_wrong_with_captions_and_masks_is_one_report(folder: Path) -> None:
    (folder / "b.txt").write_text(" \n")
    (folder / "c.d.txt").write_text("an owl on grass")
    save(folder, "a.mask.png", noise(40, 40))
    save(folder, "b.mask.png", np.zeros((40, 60), np.uint8))
    wanted = Wanted("files", "files", "zib")
    with pytest.raises(AuditError) as caught:
        audits.audit(folder, size=32, wanted=wanted)
    text = str(caught.value)
    for told in (
        "6 captions or masks not as needed",
        "3 photos kept, 0 skipped, 0 ignored, 6 wrong",
        "caption a.txt is missing: write one line, such as 'a photo of a {subject} in the garden'",
        "caption b.txt is empty",
        "caption c.d.txt, 'an owl on grass', does not name the subject: write {subject}",
        "or the word 'zib' itself",
        "mask a.mask.png is 40×40, the photo 60×40 (both upright): make it of the same size",
        "the square around the subject shows nothing of its mask b.mask.png",
        "mask c.d.mask.png is missing",
    ):
        assert told in text, told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"a {subject}\na second line", "has 2 lines"),
        (b"a {subject} \xff", "cannot be read as text in UTF-8"),
        (b"a {subjct}", r"has \{subjct\}: only \{subject\}, \{identifier\}, \{class_noun\} can be"),
        (b"a zibra", "does not name the subject"),
    ],
)
def test_a_caption_that_cannot_be_used_is_told(folder: Path, content: bytes, told: str) -> None:
    for name in ("a.txt", "b.txt", "c.d.txt"):
        (folder / name).write_text("a {subject}")
    (folder / "b.txt").write_bytes(content)
    with pytest.raises(AuditError, match=told):
        audits.audit(folder, size=32, wanted=CAPTIONS)


def test_while_the_word_is_not_chosen_only_braces_name_the_subject(folder: Path) -> None:
    for name in ("a.txt", "b.txt", "c.d.txt"):
        (folder / name).write_text("an auto zib")
    with pytest.raises(AuditError, match=r"does not name the subject: write \{subject\} or"):
        audits.audit(folder, size=32, wanted=Wanted("files"))


def test_class_images_may_have_captions_that_name_no_subject(folder: Path) -> None:
    wanted = Wanted("optional", word="zib", of_subject=False)
    (folder / "b.txt").write_text("a grey {class_noun}")
    cuts = photos.Cuts([16, 32])
    found = audits.audit(folder, size=32, wanted=wanted, take=cuts.add)
    cut = cuts.photos(found, prompt="an owl", words={"class_noun": "owl"})
    assert cut.row_prompts == ["an owl", "a grey owl", "an owl"]
    for text in ("a {subject}", "a zib owl"):
        (folder / "b.txt").write_text(text)
        with pytest.raises(AuditError, match=r"names the subject: write \{class_noun\}"):
            audits.audit(folder, size=32, wanted=wanted)


def test_masks_are_cut_with_their_photos_at_every_size(folder: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 25:40] = 255
    for name in ("a", "b", "c.d"):
        save(folder, f"{name}.mask.png", mask)
    found = subject.read(folder, **WORDS | {"sizes": [20, 40]}, wanted=Wanted(masks="files"))
    assert found.masks[40, 40].shape == (3, 40, 40)
    np.testing.assert_array_equal(found.masks[40, 40][0], mask[:, 10:50] / 255)
    halves = mask[:, 10:50].reshape(20, 2, 20, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(found.masks[20, 20][1], halves, atol=1e-6)
    assert {photo.mask for photo in found.audit.kept} == {found.audit.kept[0].mask}
    plain = subject.read(folder, **WORDS)
    assert plain.masks == {}
    assert plain.photos == ("a.png", "b.jpg", "c.d.png")  # a mask is no photo
    assert "mask of a photo: not read; --config.subject.masks=files" in str(plain.audit)


def test_a_random_crop_that_loses_the_subject_is_the_centre(tmp_path: Path) -> None:
    save(tmp_path, "a.png", noise(40, 400, 3))
    mask = np.zeros((40, 400), np.uint8)
    mask[:, 190:210] = 255
    save(tmp_path, "a.mask.png", mask)
    how = WORDS | {"crops": 30}
    free = subject.read(tmp_path, **how)
    found = subject.read(tmp_path, **how, wanted=Wanted(masks="files"))
    kept = [a == b for a, b in zip(free.windows, found.windows, strict=True)]
    assert 1 < sum(kept) < 30
    assert all(mask.max() >= 0.5 for mask in found.masks[32, 32])
    for same, window in zip(kept, found.windows, strict=True):
        assert same or window == found.windows[0]


def test_the_photos_own_transparency_is_its_mask_upright(tmp_path: Path) -> None:
    pixels = noise(40, 40, 4)
    pixels[..., 3] = np.arange(40)[:, None] * 6
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turned clockwise, the first row is on the right
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = subject.read(tmp_path, **WORDS | {"sizes": [40]}, wanted=Wanted(masks="alpha"))
    expected = np.broadcast_to(np.arange(40)[::-1] * 6 / 255, (40, 40))
    np.testing.assert_allclose(found.masks[40, 40][0], expected, atol=1e-6)
    save(tmp_path, "b.png", noise(40, 40, 3))
    with pytest.raises(AuditError, match=r"nothing of it is transparent: .*masks=files"):
        subject.read(tmp_path, **WORDS, wanted=Wanted(masks="alpha"))
