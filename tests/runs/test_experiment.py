"""Runs in this process: one stage alone, odd photos, a full disk, false starts."""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import commands
import jax
import numpy as np
import pytest
import stand_in_judges
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax import lock, metrics
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.config import Plan
from dreambooth_jax.evaluate import scores
from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.experiment.parts import workdir as workdirs
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import judging


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return commands.cascade(tmp_path_factory)


@pytest.fixture
def photos(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder such as people have."""
    folder = tmp_path / "photos"
    folder.mkdir()

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, shape, np.uint8)

    (folder / "notes.txt").write_text("my holiday")
    Image.fromarray(noise(40, 40, 3)).save(folder / "cut.jpg")
    data = (folder / "cut.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(data[: len(data) // 2])
    deep = rng.integers(0, 2**16, (40, 40), np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lay on its side when it was taken
    Image.fromarray(noise(40, 60, 3)).save(folder / "phone.jpg", exif=exif)
    Image.fromarray(noise(40, 40, 4)).save(folder / "cutout.png")
    Image.fromarray(noise(10, 10, 3)).save(folder / "icon.png")
    Image.fromarray(noise(40, 40, 3)).save(folder / "toy.png")
    shutil.copyfile(folder / "toy.png", folder / "toy_copy.png")
    return folder


@pytest.fixture
def compiled_programs() -> Iterator[list[str]]:
    """Grows with every program that XLA compiles."""
    found: list[str] = []

    def listener(event: str, seconds: float, **about: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(str(about.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(listener)
    yield found
    jax.monitoring.unregister_event_duration_listener(listener)


def test_odd_photos_no_class_images_scores_and_an_upscaler_left_as_it_is(
    stages: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in_judges.instead(monkeypatch)
    changed = {"subject__images": str(photos), "stages": ("base",), "prior_loss_weight": 0.0}
    changed |= {"subject__held_out": 1, "train__held_out_every": 3, "train__keep_weights_every": 3}
    c = commands.config(stages, **changed, evaluate__at_end=True)
    folder = tmp_path / "run"
    with caplog.at_level(logging.INFO, logger="absl"):
        commands.run_here(c, folder)

    # One report, with a line for each file.
    messages = [record.getMessage() for record in caplog.records]
    reports = [message for message in messages if "Photos of the subject" in message]
    assert len(reports) == 1
    said = {
        "notes.txt": "ignored .*not an image",
        "cut.jpg": "skipped .*truncated",
        "deep.png": "kept .*16-bit",
        "phone.jpg": "kept .*40×60.*turned upright",
        "cutout.png": "kept .*transparent.*white",
        "icon.png": r"skipped .*too small \(10×10",
        "toy.png": "kept .*40×40",
        "toy_copy.png": "skipped .*same picture as toy.png",
    }
    for name, text in said.items():
        found = [line for line in reports[0].splitlines() if f" {name} " in line]
        outcome, rest = text.split(" ", 1)
        assert len(found) == 1
        assert re.match(rf"  {outcome} +{re.escape(name)} +{rest}", found[0]), found[0]
    assert "4 photos kept, 3 skipped" in reports[0]

    # The scores are those of the grids before and after; nothing more was drawn for them.
    drawn = {path.name for path in (folder / "samples").iterdir()}
    assert drawn == {"before", "base-000003", "base-000006", "after"}
    found = {(s.measure, s.pictures): s for s in scores.read(folder / "scores.json")}
    a, b = (
        stand_in_judges.colours(
            [np.asarray(Image.open(folder / "samples" / name / "01_00.png"))], ""
        )
        for name in ("before", "after")
    )
    same = found["drift_similarity", "tuned"]  # "a bird", one picture each
    assert same.value == pytest.approx((a @ b.T).item() / np.linalg.norm(a) / np.linalg.norm(b))
    assert same.n == 1
    assert found["subject_similarity", "photos"].n == 6  # pairs of 4 photos
    assert found["subject_similarity", "tuned"].n == 4
    page = (folder / "report.html").read_text()
    assert ">Scores<" in page and ">Drift of the class<" in page
    assert f"{same.value:.3f}" in page

    # Which step to take: of those whose pictures were judged, by the numbers of the same judge.
    advice = json.loads((folder / "advice.json").read_text())["base"]
    told = {step["step"]: step for step in advice["steps"]}
    assert [*told] == [0, 3, 6]
    assert told[6]["class_drift"] == pytest.approx(1 - same.value)
    similarity = found["subject_similarity", "tuned"].value
    assert told[6]["subject_similarity"] == pytest.approx(similarity)
    assert told[0]["class_drift"] is None and told[3]["on_disk"] and told[6]["on_disk"]
    gains = {n: told[n]["subject_similarity"] - told[n]["class_drift"] for n in (3, 6)}
    assert advice["step"] == max(gains, key=gains.__getitem__)
    told_how = f"--config.restore.base={advice['step']}" in page
    assert told_how == (advice["step"] != 6) and ">Which step<" in page
    looks = [x for x in metrics.read(folder / "metrics.jsonl") if "base/held_out/subject" in x]
    assert [line["step"] for line in looks] == [0, 3, 6]
    assert told[3]["held_out"] == looks[1]["base/held_out/subject"]

    assert not (folder / "prior").exists()
    assert all(line["base/loss/prior"] == 0 for line in commands.lines(folder, "base"))
    assert not commands.lines(folder, "upscaler")
    assert not (folder / "checkpoints" / "upscaler").exists()
    for stage, expected in (("base", {"unet"}), ("upscaler", set())):
        before = commands.weights(stages[stage])
        changed_names = commands.different(before, commands.weights(folder / "export" / stage))
        assert {name.split("/")[0] for name in changed_names} == expected


@pytest.mark.long
def test_a_base_alone_with_its_text_encoder_after_a_full_disk(
    stages: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compiled_programs: list[str],
) -> None:
    alone = {"base": stages["base"], "upscaler": ""}
    changed = {"stages": ("base",), "train__text_encoder": True, "prior__num_images": 8}
    c = commands.config(alone, **commands.MESH, **changed)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        usage = SimpleNamespace(total=10**9, used=10**9 - 12_345, free=12_345)
        patch.setattr(shutil, "disk_usage", lambda path: usage)
        message = r"(?s)checkpoints [\d.]+ MB, .*need [\d.]+ MB in .* where 0.0123 MB are free"
        with pytest.raises(CheckpointError, match=message):
            commands.run_here(c, folder)
    assert not compiled_programs  # told before anything is begun
    assert not (folder / "prior").exists()

    report = commands.run_here(c, folder)
    assert report == folder / "report.html"
    assert len([*(folder / "prior").glob("*.png")]) == 8
    before, after = commands.weights(stages["base"]), commands.weights(folder / "export")
    assert {name.split("/")[0] for name in commands.different(before, after)} == {
        "unet",
        "text_encoder",
    }
    assert (folder / "export" / "model_index.json").is_file()
    assert [line["step"] for line in commands.lines(folder, "base")] == [*range(1, 7)]
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "after",
        "base-000003",
        "base-000006",
        "before",
    ]
    assert MODES["train"].function(c, folder) == report  # finished: returns at once


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"subject__images": "{folder}/phtos"}, "No such folder: .*/phtos"),
        ({"subject__images": "{folder}/photos/toy.png"}, "is a file; .*Did you mean .*/photos?"),
        ({"subject__images": "{folder}/empty"}, "No usable photo"),
        ({"subject__images": "{folder}/photos", "subject__strict": True}, "3 files cannot be used"),
        (
            {"subject__images": "{folder}/photos", "subject__captions": "files"},
            r"(?s)4 captions or masks not as needed.*cutout\.txt is missing",
        ),
        ({"base_model": "{folder}/no_model"}, "no model folder '.*/no_model'"),
        ({"base_model": "{folder}/photos"}, "model_index.json is missing"),
        ({"base_model": "{upscaler}"}, "is the 'upscaler' stage, not 'base'"),
        (
            {"prior__folder": "{folder}/photos"},
            r"holds \d+ files .*no manifest\.json.*prior\.folder",
        ),
        ({"prior__folder": "{folder}/photos/toy.png"}, "found a file, expected a folder for class"),
        (
            {"prior__folder": "/proc/sys/prior"},
            "--config.prior.folder=/proc/sys/prior: .*written to",
        ),
        ({"evaluate__reference": "{folder}/empty"}, "evaluate.reference: No usable photo"),
    ],
)
def test_a_start_that_fails_compiles_nothing_and_binds_nobody(
    stages: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    compiled_programs: list[str],
    changed: dict[str, object],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(judging, "at_end", lambda plan: ["efficientnet_lite0"])
    places = {"folder": tmp_path, "upscaler": stages["upscaler"]}
    filled = {k: v.format(**places) if isinstance(v, str) else v for k, v in changed.items()}
    folder = tmp_path / "run"
    with pytest.raises((ValueError, OSError), match=message):
        MODES["train"].function(commands.config(stages, **filled), folder)
    assert not compiled_programs
    assert not lock.is_held(folder)
    # With the right settings the same folder serves.
    Workdir.open(folder, configs.resolve(commands.config(stages)))


def test_the_listener_hears_a_compilation(compiled_programs: list[str]) -> None:
    jax.jit(lambda x: x * 3 + len(compiled_programs))(np.float32(1))
    assert compiled_programs


def test_what_a_folder_was_made_with_binds_the_run(stages: dict[str, Path], tmp_path: Path) -> None:
    c = commands.config(stages)
    Workdir.open(tmp_path, configs.resolve(c))
    (tmp_path / "prior").mkdir()
    other = commands.config(stages, optim__learning_rate=0.5, train__batch_size=16, seed=3)
    with pytest.raises(configs.ConfigError) as caught:
        Workdir.open(tmp_path, configs.resolve(other))
    text = str(caught.value)
    assert "optim.learning_rate: the run was started with 0.0005, now it is 0.5" in text
    assert "train.batch_size: " in text
    assert "seed: " in text
    assert (tmp_path / "config.json").read_text() == configs.to_json(c)


def test_a_start_that_is_refused_and_a_finished_run_leave_the_folder_free(
    stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that goes on, such as a notebook, would hold it; a tracker would begin a run."""
    c = commands.config(stages)
    with Workdir.open(tmp_path, configs.resolve(c)) as workdir:
        assert lock.is_held(tmp_path)
        workdir.report.touch()
        (tmp_path / "prior").mkdir()
    assert not lock.is_held(tmp_path)
    with pytest.raises(configs.ConfigError):
        Workdir.open(tmp_path, configs.resolve(commands.config(stages, seed=3)))
    assert not lock.is_held(tmp_path)

    started: list[Path] = []
    monkeypatch.setattr(workdirs, "_writers", lambda root, plan: started.append(root) or [])
    assert MODES["train"].function(c, tmp_path) == tmp_path / "report.html"
    assert not lock.is_held(tmp_path) and not started

    def broken(root: Path, plan: Plan) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(close=lambda: started.append(root))
        raise ZeroDivisionError  # as where a tracker does not start

    monkeypatch.setattr(workdirs, "_writers", broken)
    with pytest.raises(ZeroDivisionError):
        Workdir.open(tmp_path / "other", configs.resolve(c))
    assert started == [tmp_path / "other"]  # what had started is closed
    assert not lock.is_held(tmp_path / "other")


def test_other_pictures_of_a_finished_run_are_drawn_even_after_a_kill(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    before, after = (configs.resolve(commands.config(stages, sample__num_images=n)) for n in (1, 2))
    Workdir.open(tmp_path, before).report.touch()
    assert Workdir.open(tmp_path, before).is_finished
    assert not Workdir.open(tmp_path, after).is_finished
    # The run was killed here. Its new settings stand in config.json, the old report beside it.
    again = Workdir.open(tmp_path, after)
    assert not again.is_finished and (tmp_path / "report.before.html").is_file()
    again.report.touch()
    again.close()
    assert not (tmp_path / "report.before.html").exists()
