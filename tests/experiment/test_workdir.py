"""A run's folder: what is damaged is made again or named; nothing is in the way of its files."""

import json
from pathlib import Path

import numpy as np
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import untrusted
from dreambooth_jax.experiment.parts import grids, subjects
from dreambooth_jax.experiment.parts.workdir import Workdir, check_writable, is_done


def test_damaged_records_of_a_run_are_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    workdir = Workdir.open(tmp_path, configs.resolve(configs.base_config()))
    workdir.keep_words(["by"], [{"identifier": "zib", "class_noun": "owl"}])
    assert workdir.words(["by"]) == [{"identifier": "zib", "class_noun": "owl"}]
    for content in (b"\xff", b"{", b"[]", b"[" * 100_000):
        for name in ("subjects.json", "timings.json"):
            (tmp_path / name).write_bytes(content)
        assert workdir.words(["by"]) is None and workdir.timings() == {}
    assert "subjects.json" in caplog.text and "timings.json" in caplog.text
    (tmp_path / "timings.json").write_text('{"a": 1, "b": "x", "c": -1, "d": NaN}')
    assert workdir.timings() == {"a": 1.0}


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [("report.html", True), ("advice.json", True), ("checkpoints", False), ("samples", False),
     ("checkpoints/base", False), ("export", False), ("prior", False)],
)  # fmt: skip
def test_what_is_in_the_way_of_a_later_file_is_told_at_the_start(
    name: str, is_folder: bool, tmp_path: Path
) -> None:
    place = tmp_path / name
    place.mkdir(parents=True) if is_folder else place.parent.mkdir(exist_ok=True)
    None if is_folder else place.touch()
    with pytest.raises(configs.ConfigError, match=f"{name} is a (file|folder): a run writes there"):
        Workdir.open(tmp_path, configs.resolve(configs.base_config()))


def test_a_workdir_that_cannot_be_made_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"--workdir=.*file/run: Not a directory"):
        Workdir.open(tmp_path / "file" / "run", configs.resolve(configs.base_config()))


def test_a_picture_of_a_grid_with_any_byte_changed_is_drawn_again_or_reads_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What counts as drawn is read after all training: it must not fail then."""
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    wanted = [("00_00.png", "a zib owl", 7)]
    file = tmp_path / "00_00.png"
    grids.save_png(file, picture, about={"prompt": "a zib owl", "seed": 7})
    assert grids.is_drawn(tmp_path, wanted)
    whole = file.read_bytes()
    refused = 0
    flips = [bytes([*whole[:i], whole[i] ^ 1 << i % 8, *whole[i + 1 :]]) for i in range(len(whole))]
    for content in [*flips, *(whole[:n] for n in range(0, len(whole), 5))]:
        file.write_bytes(content)
        if grids.is_drawn(tmp_path, wanted):
            grids.read_grid(tmp_path, wanted)
        else:
            refused += 1
    assert refused > 0.9 * len(flips)
    assert "00_00.png cannot be read as a picture of a grid" in caplog.text
    assert "It is drawn again." in caplog.text
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(untrusted.FileError, match=r"00_00\.png"):
        grids.read_grid(tmp_path, wanted)


def test_a_picture_of_another_negative_prompt_is_drawn_again(tmp_path: Path) -> None:
    wanted = [("00_00.png", "a zib owl", 7)]
    of_base = {"base": {"name": "ddim"}}
    for samplers, prompt in ((of_base, ""), (of_base | {"negative_prompt": "dim"}, "dim")):
        about = {"prompt": "a zib owl", "seed": 7, "samplers": samplers}
        grids.save_png(tmp_path / "00_00.png", np.zeros((8, 8, 3), np.uint8), about=about)
        for asked in ("", "dim", "grey"):
            assert grids.is_drawn(tmp_path, wanted, negative=asked) == (asked == prompt)
        assert grids.is_drawn(tmp_path, wanted, samplers)


def test_a_finished_run_is_of_the_photos_that_lie_there(
    tmp_path: Path, shared_photos: Path
) -> None:
    c = configs.base_config()
    with c.unlocked():
        c.subject.images, c.subject.captions = str(shared_photos), "files"
    plan = configs.resolve(c)
    workdir = Workdir.open(tmp_path / "run", plan)
    subjects.check_unchanged(plan, workdir)  # older than the record: nothing is compared
    wanted = subjects.Wanted("files")
    report = subjects.photo_audit.audit(shared_photos, size=16, wanted=wanted)
    workdir.keep_sources(subjects.sources(subjects.Folders((report,), {})))
    subjects.check_unchanged(plan, workdir)
    for name, content in (("a.png", b"x"), ("a.txt", b"an owl like {subject}"), ("new.jpg", b"")):
        file = shared_photos / name
        before = file.read_bytes() if file.exists() else None
        file.write_bytes(content)
        with pytest.raises(configs.ConfigError, match=rf"is finished, .*{name}.*--workdir"):
            subjects.check_unchanged(plan, workdir)
        file.unlink() if before is None else file.write_bytes(before)
        subjects.check_unchanged(plan, workdir)
    (shared_photos / "notes.md").touch()
    subjects.check_unchanged(plan, workdir)
    (shared_photos / "b.png").unlink()
    with pytest.raises(configs.ConfigError, match=r"b\.png"):
        subjects.check_unchanged(plan, workdir)
    shared_photos.rename(tmp_path / "elsewhere")
    subjects.check_unchanged(plan, workdir)  # the photos may lie elsewhere now


def test_a_finished_run_is_known_whatever_its_host_calls_the_folders(tmp_path: Path) -> None:
    """Of a fleet or a benchmark each subject's class images lie in a folder of all."""

    def config(**changed: object) -> configs.ConfigDict:
        c = configs.base_config()
        c.update_from_flattened_dict({key.replace("__", "."): x for key, x in changed.items()})
        return c

    c, root = config(prior__folder=str(tmp_path / "prior" / "dog")), tmp_path / "run"
    assert not is_done(c, root)
    with Workdir.open(root, configs.resolve(c)) as workdir:
        assert not is_done(c, root)
        workdir.report.touch()
    assert is_done(c, root)
    assert is_done(config(prior__folder="/elsewhere", compile__cache_dir="cache"), root)
    assert not is_done(config(seed=3), root)


def test_a_caption_changed_in_a_list_is_another_one(shared_photos: Path, tmp_path: Path) -> None:
    """Lines of photos that are not of the run may change."""
    listed = shared_photos / "metadata.jsonl"

    def write(**captions: str) -> None:
        lines = [{"file_name": f"{name}.png", "text": text} for name, text in captions.items()]
        listed.write_text("\n".join(map(json.dumps, lines)))

    (shared_photos / "b.txt").unlink()
    write(a="no matter: it has a file", b="a {subject}")
    c = configs.base_config()
    with c.unlocked():
        c.subject.images, c.subject.captions = str(shared_photos), "files"
    plan = configs.resolve(c)
    workdir = Workdir.open(tmp_path / "run", plan)
    report = subjects.photo_audit.audit(shared_photos, size=16, wanted=subjects.Wanted("files"))
    workdir.keep_sources(subjects.sources(subjects.Folders((report,), {})))
    write(c="of a photo that is not there", a="another", b="a {subject}")
    subjects.check_unchanged(plan, workdir)
    for captions in ({"b": "a {subject} in the sun"}, {"a": "another"}):
        write(**captions)
        with pytest.raises(configs.ConfigError, match=r"photos/metadata\.jsonl, b\.png\. Write"):
            subjects.check_unchanged(plan, workdir)
    listed.unlink()
    with pytest.raises(configs.ConfigError, match=r"metadata\.jsonl, b\.png"):
        subjects.check_unchanged(plan, workdir)


@pytest.fixture
def shared_photos(tmp_path: Path) -> Path:
    """Two photos with captions."""
    folder = tmp_path / "photos"
    for k, name in enumerate("ab"):
        pixels = np.random.default_rng(k).integers(0, 256, (20, 20, 3), np.uint8)
        grids.save_png(folder / f"{name}.png", pixels, about={})
        (folder / f"{name}.txt").write_text("a {subject}")
    return folder


def test_a_record_of_another_shape_is_no_word(tmp_path: Path) -> None:
    workdir = Workdir.open(tmp_path, configs.resolve(configs.base_config()))
    for subjects_said in (
        None,
        3,
        [3],
        [{"identifier": "zib"}],
        [{"identifier": 3, "class_noun": "owl"}],
        "zib",
    ):
        content = {"chosen_by": ["by"], "subjects": subjects_said}
        (tmp_path / "subjects.json").write_text(json.dumps(content))
        assert workdir.words(["by"]) is None


def test_a_folder_that_cannot_be_written_to_is_told_with_the_flag(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for root in (file, file / "run", file / "deep" / "run", Path("/proc/sys/run")):
        with pytest.raises(OSError, match=f"--workdir={root}: .*can be made and written to"):
            check_writable(root)
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("key", ["subject.images", "prior.images", "subject.others"])
def test_a_run_does_not_write_among_the_photos_that_it_reads(key: str, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "link").symlink_to(photos)
    c = configs.base_config()
    given = ((str(photos), "cat", "auto"),) if key == "subject.others" else str(photos)
    c.update_from_flattened_dict({key: given})
    for root in (photos, tmp_path / "link", tmp_path / "photos" / ".." / "photos"):
        with pytest.raises(configs.ConfigError, match=f"is the folder of {key}"):
            Workdir.open(root, configs.resolve(c))
    assert [*photos.iterdir()] == []
