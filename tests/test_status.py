"""The state of a run in its folder: what a reader sees of runs that work, end, or are killed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_jax import log_file, progress, status, untrusted

FIELDS = {
    *("version", "state", "mode", "stage", "part", "part_number", "parts", "step", "steps"),
    *("seconds_per_step", "seconds_left", "started", "updated", "pid", "host", "message", "loss"),
}


class Asked(RuntimeError):
    """As `train.Interrupted`: it has the exit code of a signal."""

    exit_code = 130


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes at every change."""
    monkeypatch.setattr(status, "EVERY", 0.0)


def until(folder: Path, **wanted: object) -> status.Status:
    """The state on the disk, once it has these values."""
    stop = time.monotonic() + 20
    while True:
        found = status.read(folder)
        if found and all(getattr(found, name) == value for name, value in wanted.items()):
            return found
        assert time.monotonic() < stop, found
        time.sleep(0.01)


def test_a_run_is_followed_from_part_to_part(tmp_path: Path, soon: None) -> None:
    assert status.read(tmp_path) is None
    with (
        status.Recorder(tmp_path, mode="train", parts=2) as recorder,
        progress.observed_by(recorder),
    ):
        until(tmp_path, state="starting", part="", part_number=0, parts=2, stage=None, step=None)
        with (
            recorder.part("class images", state="drawing"),
            progress.progress(8, "class images", "image") as update,
        ):
            with progress.compiling("the sampler of base"):
                until(tmp_path, state="compiling", message="compiling the sampler of base")
            update(4, None)
            until(tmp_path, state="drawing", part="class images", step=4, steps=8, loss=None)
        with (
            recorder.part("training the base", state="training", stage="base"),
            progress.progress(6, "base", "step", initial=2) as update,
        ):
            found = until(tmp_path, state="training", stage="base", part_number=2, step=2, steps=6)
            assert found.seconds_per_step is None
            update(1, 0.25)
            until(tmp_path, step=3, loss=0.25, message="base: 3 of 6 steps")
            update(1, float("nan"))
            until(tmp_path, step=4, loss=0.25)
            with progress.progress(2, "grid base-000004", "image") as drawn:
                drawn(1, None)  # the run's step stays in sight
                grid = "grid base-000004: 1 of 2 images"
                until(tmp_path, state="drawing", stage="base", step=4, steps=6, message=grid)
            until(tmp_path, state="training", step=4)
    found = status.read(tmp_path)
    assert found is not None
    assert (found.state, found.is_over, found.pid) == ("finished", True, os.getpid())
    assert found.started <= found.updated <= time.time()
    assert {*json.loads((tmp_path / "status.json").read_text())} == FIELDS
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]  # no part of a file


def test_the_time_of_compilations_and_pictures_is_not_that_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(status.time, "monotonic", lambda: now)
    recorder = status.Recorder(tmp_path, mode="train")  # not entered: nothing is written
    with recorder.part("training", state="training"), recorder.counts("base", "step", 10, 0):
        with recorder.compiles("the step"):
            now += 100.0
        now += 2.0
        recorder.advance(1, None)
        with recorder.counts("grid", "image", 4, 0):
            now += 50.0
            with recorder.compiles("the sampler"):
                now += 30.0
            recorder.advance(4, None)
        now += 2.0
        recorder.advance(1, None)
        found = recorder.snapshot()
    assert (found.seconds_per_step, found.seconds_left) == (2.0, 16.0)
    assert recorder.measured["training"] == status.Measured(184.0, compiling=130.0, units=2)


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (Asked("SIGINT received: base is saved at step 4."), "stopped", None),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
        (ValueError("steps = -1: expected at least 1."), "failed", None),
        (MemoryError(), "failed", "MemoryError"),
    ],
)
def test_an_error_is_the_last_state(
    tmp_path: Path, error: BaseException, state: str, message: str | None
) -> None:
    with (
        pytest.raises(type(error)),
        status.Recorder(tmp_path, mode="train") as recorder,
        recorder.part("export", state="exporting"),
    ):
        raise error
    found = status.read(tmp_path)
    assert found is not None
    assert (found.state, found.part, found.message) == (state, "export", message or str(error))


def test_other_modes_leave_the_state_of_the_run(tmp_path: Path) -> None:
    with status.Recorder(tmp_path, mode="train"):
        pass
    with status.Recorder(tmp_path, mode="sample"):
        assert status.read(tmp_path).state == "finished"  # type: ignore[union-attr]  # just written
    assert status.read(tmp_path, mode="sample").mode == "sample"  # type: ignore[union-attr]  # the same
    with status.Recorder(tmp_path / "other", mode="train", writes=False):
        pass
    assert not (tmp_path / "other").exists()


def test_a_killed_run_is_lost(tmp_path: Path, repository: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from dreambooth_jax import status\n"
        "with status.Recorder(pathlib.Path(sys.argv[1]), mode='train'): time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], cwd=repository) as process:
        assert until(tmp_path, state="starting").pid == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = until(tmp_path, state="lost")
    assert found.is_over
    assert str(process.pid) in found.message


def test_a_run_of_another_host_is_lost_when_it_is_silent(tmp_path: Path) -> None:
    with status.Recorder(tmp_path, mode="train") as recorder:
        there = dataclasses.asdict(recorder.snapshot()) | {"version": 1, "host": "elsewhere"}
    for age, state in ((0.0, "starting"), (status.SILENT + 1, "lost")):
        content = there | {"updated": time.time() - age, "pid": 2**22 + 1}
        (tmp_path / "status.json").write_text(json.dumps(content))
        assert status.read(tmp_path).state == state  # type: ignore[union-attr]  # just written


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 2},
        {"state": "lost"},
        {"step": "3"},
        {"pid": None},
        {"updated": "now"},
        {"mode": 1},
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, wrong: dict[str, object]) -> None:
    with status.Recorder(tmp_path, mode="train"):
        pass
    file = tmp_path / "status.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(untrusted.FileError, match=r"status\.json"):
        status.read(tmp_path)


def test_a_folder_that_cannot_be_written_to_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir()
    with status.Recorder(tmp_path, mode="train") as recorder, recorder.part("x", state="drawing"):
        pass
    assert (tmp_path / "status.json").is_dir()


def test_readers_need_no_jax(repository: Path) -> None:
    program = "import sys; from dreambooth_jax import status, log_file; print('jax' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True
    )
    assert found.stdout == "False\n"


def test_every_state_at_work_has_an_answer() -> None:
    assert set(status.ANSWERS) == set(status.AT_WORK)


def test_log_lines_are_kept_over_starts(tmp_path: Path) -> None:
    program = (
        "import logging, pathlib, sys\n"
        "from absl import logging as log\n"
        "from dreambooth_jax import log_file\n"
        "log.set_verbosity(log.INFO)\n"
        "def told(level, text, path):\n"
        "    record = logging.LogRecord('absl', level, path, 1, text, (), None)\n"
        "    log.get_absl_logger().handle(record)\n"
        "with log_file.kept(pathlib.Path(sys.argv[1])):\n"
        "    told(20, sys.argv[2], '/x/dreambooth_jax/a.py')\n"
        "    told(20, 'of a library', '/x/orbax/a.py')\n"
        "    told(30, 'a warning of a library', '/x/orbax/a.py')\n"
        "log.warning('after the run')\n"
    )
    for text in ("first start", "second start"):
        subprocess.run([sys.executable, "-c", program, tmp_path, text], check=True)
    lines = (tmp_path / log_file.NAME).read_text().splitlines()
    told = ["INFO first start", "WARNING a warning of a library"]
    told += ["INFO second start", "WARNING a warning of a library"]
    assert [line.split(" ", 2)[2] for line in lines] == told
    time.strptime(lines[0][:19], "%Y-%m-%d %H:%M:%S")
