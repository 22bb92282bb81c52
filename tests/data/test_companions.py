"""Beside photos: whose caption or mask a file is, under which names, and what is nobody's photo."""

import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax.data import annotations, images
from dreambooth_jax.data.annotations import NOTHING, Wanted
from dreambooth_jax.data.audit import AuditError, audit
from dreambooth_jax.data.colour import composite

CAPTIONS, MASKS = Wanted("files"), Wanted(masks="files")


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(3):
        Image.fromarray(noise(40, 40, 3, seed=k)).save(tmp_path / f"{k}.png")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["{}.txt", "{}.TXT", "{}.caption", "{}.Caption", "{}.png.txt", "{}.png.caption"]
)
def test_captions_under_the_names_that_programs_give_them(name: str, folder: Path) -> None:
    for k in range(3):
        (folder / name.format(k)).write_text(f"a {{subject}} number {k}")
    report = audit(folder, size=32, wanted=CAPTIONS)
    assert [photo.caption for photo in report.kept] == [
        f"a {{subject}} number {k}" for k in (0, 1, 2)
    ]
    assert not report.findings
    left = audit(folder, size=32).findings  # one rule for both places
    assert {str(finding) for finding in left} == {
        "caption of a photo: not read; --config.subject.captions=files reads it"
    }


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_captions_in_the_list_of_a_data_set(key: str, folder: Path) -> None:
    lines = [json.dumps({"file_name": f"{k}.png", key: f"a {{subject}} {k}"}) for k in range(3)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    report = audit(folder, size=32, wanted=CAPTIONS)
    assert [photo.caption for photo in report.kept] == [f"a {{subject}} {k}" for k in range(3)]
    assert not report.findings
    (finding,) = audit(folder, size=32).findings
    assert str(finding) == (
        "captions of photos: not read; --config.subject.captions=files reads it"
    )
    (folder / "1.txt").write_text("{subject}, of its own file")
    assert audit(folder, size=32, wanted=CAPTIONS).kept[1].caption == "{subject}, of its own file"


@pytest.mark.parametrize(
    "line", ["{", "[" * 100_000, '{"file_name": "0.png"}', '{"file_name": "0.png", "text": 3}']
)
def test_a_damaged_list_is_told_with_its_line(line: str, folder: Path) -> None:
    (folder / "metadata.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(AuditError, match=r"metadata\.jsonl, line 2"):
        audit(folder, size=32, wanted=CAPTIONS)


@pytest.mark.parametrize("name", ["0-masklabel.png", "0_mask.png", "0.mask.jpg", "0-MASK.PNG"])
def test_a_mask_of_another_program_is_no_photo(name: str, folder: Path) -> None:
    Image.fromarray(noise(40, 40, seed=9)).save(folder / name)
    report = audit(folder, size=32)
    assert [photo.path.name for photo in report.kept] == ["0.png", "1.png", "2.png"]
    (finding,) = report.findings
    assert str(finding) == "looks like a mask: read is 0.mask.png" and finding.outcome == "ignored"
    with pytest.raises(AuditError, match=rf"mask 0\.mask\.png is missing: rename {name} to it"):
        audit(folder, size=32, wanted=MASKS)


def test_a_picture_in_black_and_white_beside_its_photo_is_no_photo(folder: Path) -> None:
    """Known by its pixels, under the photo's own stem and in its size."""
    half = np.zeros((40, 40), np.uint8)
    half[10:30, 5:25] = 255
    Image.fromarray(half).save(folder / "0.bmp")
    Image.fromarray(half).convert("1").save(folder / "1.tif")
    Image.fromarray(half[:, :36]).save(folder / "2.bmp")  # of another size: not this photo's
    Image.fromarray(half).rotate(90).save(folder / "logo.bmp")  # beside no photo
    Image.fromarray(noise(40, 40, 3, seed=9)).save(folder / "1.bmp")  # in colour
    report = audit(folder, size=32)
    names = ["0.png", "1.bmp", "1.png", "2.bmp", "2.png", "logo.bmp"]
    assert [photo.path.name for photo in report.kept] == names
    assert {f.path.name: str(f) for f in report.ignored} == {
        "0.bmp": "looks like a mask: read is 0.mask.png",
        "1.tif": "looks like a mask: read is 1.mask.png",
    }


def test_what_only_looks_like_a_mask_and_has_no_photo_is_a_photo(folder: Path) -> None:
    Image.fromarray(noise(40, 40, 3, seed=9)).save(folder / "carnival_mask.png")
    assert len(audit(folder, size=32).kept) == 4


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "x.npz", "list.csv", "config.json"])
def test_texts_and_data_are_nobodys_photos_and_stop_no_strict_run(name: str, folder: Path) -> None:
    (folder / name).write_text("text")
    report = audit(folder, size=32, strict=True)
    assert [str(f) for f in report.findings] == ["not an image: a text or data: not used"]


def test_masks_of_few_values_are_told(folder: Path) -> None:
    for k in range(3):
        Image.fromarray(np.full((40, 40), 1, np.uint8)).save(folder / f"{k}.mask.png")
    half = np.zeros((40, 40), np.uint8)
    half[:, :20] = 255
    Image.fromarray(np.full((40, 40), 255, np.uint8)).save(folder / "1.mask.png")
    Image.fromarray(half).save(folder / "2.mask.png")
    with pytest.raises(AuditError) as error:
        audit(folder, size=32, wanted=MASKS)
    assert "mask 0.mask.png has values 0 and 1: save it with 0 (off) and 255" in str(error.value)
    assert "mask 1.mask.png is white all over" in str(error.value)
    assert "with a mask that covers 50%" in str(error.value)


# What never ends, or is larger than it looks.


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize(
    ("name", "wanted"),
    [("0.txt", CAPTIONS), ("0.caption", CAPTIONS), ("metadata.jsonl", CAPTIONS),
     ("0.mask.png", MASKS), ("0.txt", Wanted("optional", word="zib", of_subject=False)),
     ("x.png", NOTHING), ("x.jpg", CAPTIONS)],
)  # fmt: skip
def test_nothing_beside_photos_is_waited_for(
    kind: str, name: str, wanted: Wanted, folder: Path
) -> None:
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")
    try:
        report = str(audit(folder, size=32, wanted=wanted))
    except AuditError as error:
        report = str(error)
    assert "regular file" in report and name in report


def test_pictures_are_regular_files_whoever_reads_them(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(images.ImageError, match="not a regular file"):
        images.read(tmp_path / "a.png")


@pytest.mark.parametrize("size", [2**16 + 1, 10**8])
def test_a_caption_of_a_hundred_megabytes_is_not_read(size: int, folder: Path) -> None:
    with (folder / "0.txt").open("wb") as file:
        file.truncate(size)
    with pytest.raises(AuditError, match=r"expected at most 0\.0625 MB") as error:
        audit(folder, size=32, wanted=CAPTIONS)
    assert len(str(error.value)) < 5000
    (folder / "0.txt").write_text("x" * 60_000)
    with pytest.raises(AuditError, match="does not name the subject") as error:
        audit(folder, size=32, wanted=CAPTIONS)
    assert len(str(error.value)) < 5000


def test_compositing_is_exact_and_takes_no_multiple_of_the_photo() -> None:
    """round((α·c + (255 − α)·b) / 255) of every α and c, by whole numbers; and its memory."""
    alpha, colour = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
    pixels = np.repeat(colour[..., None].astype(np.uint8), 3, axis=2)
    for background in ((0, 0, 0), (255, 255, 255), (1, 128, 254)):
        found = composite(pixels, alpha.astype(np.uint8), background=background)
        exact = alpha[..., None] * colour[..., None] + (255 - alpha[..., None]) * np.array(
            background
        )
        np.testing.assert_array_equal(found, (2 * exact + 255) // 510)
    large = np.zeros((4000, 1000, 3), np.uint8)
    tracemalloc.start()
    composite(large, np.zeros((4000, 1000), np.uint8), background=(9, 9, 9))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * large.nbytes


# What is trained on, and how much of it.


def test_a_folder_with_few_photos_or_with_more_of_them_in_a_sub_folder_is_a_warning(
    folder: Path,
) -> None:
    assert audit(folder, size=32).warnings == []
    (folder / "10_sks toy").mkdir()
    for k in range(4):
        Image.fromarray(noise(40, 40, 3, seed=10 + k)).save(folder / "10_sks toy" / f"{k}.png")
    (told,) = audit(folder, size=32).warnings
    assert "10_sks toy holds 4 pictures, more than" in told
    (folder / "0.png").unlink()
    few, _ = audit(folder, size=32).warnings
    assert few.startswith("2 photos in") and "3 to 5 teach a subject" in few


def test_the_square_that_is_trained_on_is_looked_at(folder: Path) -> None:
    tall = np.full((480, 160, 3), 120, np.uint8)
    tall[:100] = noise(100, 160, 3)
    Image.fromarray(tall).save(folder / "tall.png")
    report = audit(folder, size=32)
    notes = next(photo.notes for photo in report.kept if photo.path.name == "tall.png")
    assert any("the square in the middle is of one colour" in note.found for note in notes)
    assert not any("square" in str(note) for note in report.kept[0].notes)


def test_every_name_has_one_owner() -> None:
    for name, photo in (
        ("a.b.txt", "a.b"), ("a.jpg.txt", "a"), ("A.MASK.PNG", "A"), ("a.png", None),
        ("mask.png", None), ("a-masklabel.png", "a"), (".txt", ""),
    ):  # fmt: skip
        assert annotations.owner(name) == photo
