"""A folder as people have it: every file named in one report, and nothing but photos kept."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from dreambooth_jax.data.audit import AuditError, audit
from dreambooth_jax.data.inspection import Finding, min_side


def picture(seed: int, height: int = 80, width: int = 80) -> Image.Image:
    """A picture that differs for each seed."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8))


def messy_folder(folder: Path) -> Path:
    """The seven files of the issue, a plain photo, and what systems leave behind."""
    folder.mkdir()
    picture(0).save(folder / "a_plain.png")
    (folder / "b_notes.txt").write_text("remember the milk")
    picture(1).save(folder / "c_truncated.jpg")
    data = (folder / "c_truncated.jpg").read_bytes()
    (folder / "c_truncated.jpg").write_bytes(data[: len(data) // 2])
    ramp = np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10
    Image.fromarray(ramp).save(folder / "d_sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[2] = (48.0, 51.0, 29.6)  # GPSLatitude
    picture(2, 80, 120).save(folder / "e_sideways.jpg", exif=exif)
    clear = picture(3).convert("RGBA")
    clear.putalpha(100)
    clear.save(folder / "f_clear.png")
    picture(4, 10, 10).save(folder / "g_tiny.png")
    picture(0).save(folder / "h_again.webp", lossless=True)  # the same pixels in another format
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (folder / "more").mkdir()
    picture(5).save(folder / "more" / "z.png")
    return folder


def test_messy_folder_gives_one_report_that_names_each_file_and_what_was_done(
    tmp_path: Path,
) -> None:
    report = audit(messy_folder(tmp_path / "photos"), size=64)

    assert [photo.path.name for photo in report.kept] == [
        "a_plain.png",
        "d_sixteen.png",
        "e_sideways.jpg",
        "f_clear.png",
    ]
    assert [finding.path.name for finding in report.skipped] == [
        "c_truncated.jpg",
        "g_tiny.png",
        "h_again.webp",
    ]
    assert [finding.path.name for finding in report.ignored] == [
        ".DS_Store",
        "Thumbs.db",
        "b_notes.txt",
        "more",
    ]

    lines = {line.split()[1]: line for line in str(report).splitlines()[1:]}
    assert len(lines) == 11
    for name, outcome, text in (
        ("a_plain.png", "kept", "80×80"),
        ("b_notes.txt", "ignored", "not an image: a text"),
        ("c_truncated.jpg", "skipped", "truncated"),
        ("d_sixteen.png", "kept", "16-bit grey: scaled to 8 bits"),
        ("e_sideways.jpg", "kept", "80×120; stored with EXIF orientation 6: turned upright"),
        ("f_clear.png", "kept", "transparent: composited on white"),
        ("g_tiny.png", "skipped", "too small (10×10; needs at least 32 px on the short side)"),
        ("h_again.webp", "skipped", "same picture as a_plain.png: not used twice"),
        (".DS_Store", "ignored", "not looked at"),
        ("Thumbs.db", "ignored", "not looked at"),
        ("more", "ignored", "sub-folder with 1 picture: not searched"),
    ):
        assert lines[name].split()[0] == outcome, name
        assert text in lines[name], name
    head = str(report).splitlines()[0]
    assert head.startswith("4 photos kept, 3 skipped, 4 ignored in ")


def test_strict_stops_with_the_same_report(tmp_path: Path) -> None:
    folder = messy_folder(tmp_path / "photos")
    lenient = audit(folder, size=64)
    with pytest.raises(AuditError, match="3 files cannot be used, and strict is on") as caught:
        audit(folder, size=64, strict=True)
    assert str(lenient) in str(caught.value)
    assert caught.value.audit == lenient
    assert "strict=False" in str(caught.value)


def test_strict_accepts_what_nobody_meant_as_a_photo(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "desktop.ini").write_text("[x]")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "._a.png").write_bytes(b"\0\5\26\7")
    report = audit(tmp_path, size=64, strict=True)
    assert len(report.kept) == 1
    assert len(report.ignored) == 4
    assert str(report).startswith("1 photo kept, 0 skipped, 4 ignored")


def test_no_usable_photo_is_an_error_that_holds_the_report(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("# photos")
    (tmp_path / "photos").mkdir()
    with pytest.raises(AuditError, match=r"(?s)No usable photo.*0 photos kept.*readme\.md") as got:
        audit(tmp_path, size=64)
    assert "sub-folder: not searched; move photos up to use them" in str(got.value)
    assert "3 to 5" in str(got.value)


def test_missing_folder_file_and_remote_address(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=rf"No such folder: .*gone.*there is {tmp_path}"):
        audit(tmp_path / "gone" / "further", size=64)
    picture(0).save(tmp_path / "a.png")
    with pytest.raises(AuditError, match=rf"a\.png is a file.*Did you mean {tmp_path}\?"):
        audit(tmp_path / "a.png", size=64)
    with pytest.raises(AuditError, match=r"gs://bucket/dog is a remote address; copy the photos"):
        audit("gs://bucket/dog", size=64)


def test_each_photo_is_known_by_its_upright_pixels_and_nothing_else(tmp_path: Path) -> None:
    folder = messy_folder(tmp_path / "photos")
    report = audit(folder, size=64)
    plain, sideways = report.kept[0], report.kept[2]

    pixels = np.asarray(picture(0))
    by_hand = hashlib.sha256(np.array([80, 80, 3], "<i8").tobytes() + pixels.tobytes())
    assert plain.sha256 == by_hand.hexdigest()
    assert (sideways.width, sideways.height) == (80, 120)
    for text in (str(report), repr(report)):  # no camera, no place
        assert "SecretCamera" not in text
        assert "29.6" not in text


@pytest.mark.parametrize(("size", "needed"), [(64, 32), (512, 256), (17, 16), (8, 16), (65, 33)])
def test_too_small_is_below_half_the_size_and_never_below_16(
    tmp_path: Path, size: int, needed: int
) -> None:
    assert min_side(size) == needed
    picture(0, needed, needed + 1).save(tmp_path / "a.png")
    picture(1, needed - 1, needed + 400).save(tmp_path / "b.png")
    report = audit(tmp_path, size=size)
    assert [photo.path.name for photo in report.kept] == ["a.png"]
    assert f"needs at least {needed} px" in str(report)


def test_a_photo_that_is_enlarged_narrow_or_empty_is_kept_with_a_note(tmp_path: Path) -> None:
    picture(0, 48, 60).save(tmp_path / "a.png")
    picture(1, 80, 320).save(tmp_path / "b.png")
    Image.new("RGB", (64, 64), (0, 0, 0)).save(tmp_path / "c.png")
    picture(2, 64, 128).save(tmp_path / "d.png")
    report = audit(tmp_path, size=64)
    assert [[str(note) for note in photo.notes] for photo in report.kept] == [
        ["smaller than 64 px: enlarged ×1.3"],
        ["long and narrow: a square crop shows 25% of it"],
        ["one colour all over: kept; is it the right file?"],
        [],
    ]
    assert {finding.outcome for finding in report.findings} == {"kept"}
    assert report.findings[0] == Finding(
        tmp_path / "a.png", "smaller than 64 px", "enlarged ×1.3", "kept"
    )


def test_height_and_width_have_bounds_of_their_own(tmp_path: Path) -> None:
    picture(0, 48, 32).save(tmp_path / "a.png")  # just enough for 96 × 64, enlarged twice
    picture(1, 47, 400).save(tmp_path / "b.png")
    picture(2, 400, 31).save(tmp_path / "c.png")
    picture(3, 96, 64).save(tmp_path / "d.png")
    picture(4, 96, 160).save(tmp_path / "e.png")  # 64 of 160 columns
    report = audit(tmp_path, size=(96, 64))
    assert "(for 64×96 pixels)" in str(report)
    assert [[str(note) for note in photo.notes] for photo in report.kept] == [
        ["smaller than 64×96 px: enlarged ×2"],
        [],
        ["long and narrow: a 64×96 crop shows 40% of it"],
    ]
    assert [str(finding).split(":")[0] for finding in report.skipped] == [
        "too small (400×47; needs at least 32×48 px)",
        "too small (31×400; needs at least 32×48 px)",
    ]


def test_links_pipes_and_dead_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    picture(0).save(tmp_path / "elsewhere" / "photo.png")
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.png").symlink_to(tmp_path / "elsewhere" / "photo.png")
    (folder / "b.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(folder / "c.png")
    report = audit(folder, size=64)
    assert [photo.path.name for photo in report.kept] == ["a.png"]
    assert [finding.problem.split(" (")[0] for finding in report.skipped] == [
        "link to nothing",
        "not a regular file",
    ]


def test_a_bomb_and_a_heic_file_do_not_stop_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(0, 40, 40).save(tmp_path / "a.png")
    picture(1, 60, 60).save(tmp_path / "b.png")
    picture(2, 90, 90).save(tmp_path / "c.png")
    (tmp_path / "d.cr2").write_bytes(b"II*\0")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2500)  # b warns, c raises
    report = audit(tmp_path, size=64)
    assert [photo.path.name for photo in report.kept] == ["a.png"]
    assert [finding.problem.split(" (")[0] for finding in report.skipped] == [
        "too large",
        "too large",
        "camera raw file",
    ]


def test_a_file_that_cannot_be_opened_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    usual = Path.open

    def refuse_b(path: Path, *args: str) -> object:
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return usual(path, *args)

    monkeypatch.setattr(Path, "open", refuse_b)
    report = audit(tmp_path, size=64)
    assert [str(finding) for finding in report.skipped] == [
        "cannot be opened (Permission denied): check the file"
    ]


def test_names_that_would_break_the_table_are_escaped(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b\nkept c.png").write_text("no photo")
    report = audit(tmp_path, size=64)
    assert len(str(report).splitlines()) == 3
    assert r"'b\nkept c.png'" in str(report)
    # Nor does a name that a terminal would obey get into what is said of another file.
    picture(0).save(tmp_path / "\x1b[31m.png")
    (tmp_path / "z\x1b[2J").mkdir()
    for k in range(2):
        picture(k + 1).save(tmp_path / "z\x1b[2J" / f"{k}.png")
    report = audit(tmp_path, size=64)
    told = "".join([*str(report).splitlines(), *report.warnings])
    assert r"same picture as \x1b[31m.png" in told and told.isprintable()
    assert any(r"z\x1b[2J holds 2 pictures" in line for line in report.warnings)


def test_background_belongs_to_the_pixels(tmp_path: Path) -> None:
    clear = picture(0).convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "a.png")
    white, black = (audit(tmp_path, size=64, background=(v, v, v)).kept[0] for v in (255, 0))
    assert white.sha256 != black.sha256
    assert "composited on colour (0, 0, 0)" in str(black.notes)


def test_the_folder_is_only_read(tmp_path: Path) -> None:
    folder = messy_folder(tmp_path / "photos")

    def state() -> dict[str, tuple[int, bytes]]:
        return {
            str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in folder.rglob("*")
        }

    before = state()
    audit(folder, size=64)
    assert state() == before
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_real_photos_are_kept(shared_data: Path) -> None:
    folder = shared_data / "dreambooth" / "dataset" / "duck_toy"
    if not folder.is_dir():
        pytest.skip("needs the DreamBooth photos under ../shared/data/dreambooth")
    report = audit(folder, size=512, strict=True)
    assert [(photo.path.name, photo.width, photo.height) for photo in report.kept] == [
        ("00.jpg", 512, 512),
        ("01.jpg", 512, 512),
        ("02.jpg", 512, 512),
        ("03.jpg", 512, 512),
    ]
    assert report.findings == ()
