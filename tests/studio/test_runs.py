"""A run's state and contents from its folder alone, however it was left."""

import json
import math
import os
import socket
import subprocess
import sys
import time

import pytest
from studios import make_run

from dreambooth_jax import lock
from dreambooth_jax.studio import runs


def dead_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_the_state_that_a_run_wrote(tmp_path):
    told = {"state": "training", "step": 7, "steps": 20, "loss": 0.5, "seconds_left": 26.0}
    state = runs.state(make_run(tmp_path / "a", status=told))
    assert (state.name, state.step, state.steps, state.loss) == ("training", 7, 20, 0.5)
    assert state.active and state.here and state.seconds_left == 26.0
    for over in ("finished", "stopped", "failed"):
        ended = {"state": over, "updated": 0.0, "pid": dead_process()}
        assert runs.state(make_run(tmp_path / over, status=ended)).name == over


@pytest.mark.parametrize(
    "told",
    [
        {"pid": None},  # of a process that is gone
        {"host": "elsewhere", "updated": time.time() - 1000},
        {"updated": time.time() - 1000},
    ],
)
def test_a_run_without_a_sign_of_life_is_lost(tmp_path, told):
    told = {"state": "training"} | told
    if "pid" in told:
        told["pid"] = dead_process()
    state = runs.state(make_run(tmp_path, status=told))
    assert state.name == "lost" and not state.active


def test_another_host_that_writes_is_at_work(tmp_path):
    told = {"state": "compiling", "host": "elsewhere", "pid": dead_process()}
    state = runs.state(make_run(tmp_path, status=told))
    assert state.name == "compiling" and not state.here


def test_a_claim_on_the_folder_shows_who_works(tmp_path):
    folder = make_run(tmp_path, status={"state": "stopped", "pid": 1, "updated": 0.0})
    claim = lock.Lock(folder)
    try:
        state = runs.state(folder)
        assert (state.name, state.pid, state.host) == ("running", os.getpid(), socket.gethostname())
    finally:
        claim.release()
    assert runs.state(folder).name == "stopped"


def test_runs_of_before_there_was_a_status(tmp_path):
    folder = make_run(tmp_path / "a", steps=4)
    state = runs.state(folder)
    assert (state.name, state.stage, state.step, state.steps) == ("stopped", "base", 4, 4)
    (folder / "report.html").write_text("")
    assert runs.state(folder).name == "finished"
    fresh = tmp_path / "b"
    fresh.mkdir()
    (fresh / "config.json").write_text("{}")
    assert runs.state(fresh).name == "new"


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '{"state": 5, "step": "x", "loss": NaN}', '{"state": "training"', "\0"]
)
def test_damaged_records_are_shown_as_far_as_they_go(tmp_path, text):
    folder = make_run(tmp_path)
    for name in ("status.json", "config.json", "subjects.json", "advice.json", "timings.json"):
        (folder / name).write_text(text)
    assert runs.state(folder).step in (0, 4)
    assert runs.settings(folder).get("seed") is None
    assert isinstance(runs.subject(folder), str)


def test_a_half_written_line_and_a_nan_are_no_obstacle(tmp_path):
    folder = make_run(tmp_path, steps=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "base/loss/subject": null}\n{"step": 4, "base/lo')
    curve = runs.losses(folder)["base/loss/subject"]
    assert [step for step, _ in curve] == [1, 2, 3]
    assert [value for _, value in curve][:2] == [0.5, 0.25] and math.isnan(curve[2][1])
    assert "base/loss" not in runs.losses(folder)  # the sum of the others


def test_grids_in_the_order_of_the_training(tmp_path):
    labels = ("after", "base-000200", "upscaler-000010", "before", "base-000100", "x-0123abcd")
    folder = make_run(tmp_path, grids=labels)
    found = runs.grids(folder)
    assert [grid.label for grid in found] == [
        "before", "base-000100", "base-000200", "upscaler-000010", "after", "x-0123abcd",
    ]  # fmt: skip
    assert [grid.of_run for grid in found] == [True] * 5 + [False]
    assert found[1].title == "base, after 100 steps"
    first = found[0].pictures[0]
    assert (first.prompt, first.seed, first.width) == ("a zib bird", 7, 16)


def test_pictures_that_are_none_are_left_out(tmp_path):
    folder = make_run(tmp_path)
    (folder / "samples" / "after" / "00_00.png").write_bytes(b"\x89PNG cut off")
    (folder / "samples" / "empty").mkdir()
    after = next(grid for grid in runs.grids(folder) if grid.label == "after")
    assert [each.file for each in after.pictures] == ["01_00.png"]


def test_the_end_of_a_log_without_bars(tmp_path):
    file = tmp_path / "log.txt"
    file.write_bytes(b"first\n 10%|##\r 50%|####\r100%|########\n\x1b[Alast \xff\n")
    assert runs.tail(file).splitlines() == ["first", "100%|########", "last �"]
    file.write_text("x" * 200_000 + "\nend\n")
    assert len(runs.tail(file)) < 70_000 and runs.tail(file).endswith("end\n")
    assert runs.tail(tmp_path / "none") == ""


def test_steps_that_can_be_taken(tmp_path):
    for path in (
        "checkpoints/base/4",
        "checkpoints/base/2",
        "kept_weights/base/3",
        "checkpoints/x",
    ):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "checkpoints/base/4.tmp").mkdir()
    assert runs.steps_on_disk(tmp_path) == {"base": [2, 3, 4]}


def test_settings_by_dotted_key(tmp_path):
    flat = runs.settings(make_run(tmp_path))
    assert flat["train.num_steps"] == 4 and flat["base_model"] == "embedded"
    assert json.loads((tmp_path / "config.json").read_text())["train"]["num_steps"] == 4


def test_an_ended_run_is_shown_with_its_last_step(tmp_path):
    folder = make_run(tmp_path, status={"state": "stopped", "message": "saved at step 3"}, steps=3)
    state = runs.state(folder)
    assert (state.name, state.step, state.steps, state.message) == (
        "stopped",
        3,
        3,
        "saved at step 3",
    )
