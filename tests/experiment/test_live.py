"""The report on its way, the parts of a run, and its last lines, without a network."""

import json
import shlex
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest
from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import report, status
from dreambooth_jax.experiment.parts import outline
from dreambooth_jax.experiment.results import advice, ending, live
from dreambooth_jax.experiment.results.advice import Advice, Step

STAGES = {"base": "embedded", "upscaler": "embedded"}


class Shown(SimpleNamespace):
    """Stands for `Told`: all that `live.followed` asks for is the folder."""

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        super().__init__(workdir=SimpleNamespace(report=folder / "report.html", writes=writes))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[report.State]:
    """The states of the pages that were written."""
    made: list[report.State] = []

    def written(shown: Shown, state: report.State) -> None:
        made.append(state)
        own = {"title": "a run", "subtitle": "", "facts": [], "sections": []}
        report.build(shown.workdir.report, **own, state=state)

    monkeypatch.setattr(live, "written", written)
    monkeypatch.setattr(live.dataclasses, "replace", lambda shown: shown)
    return made


def until(pages: list[report.State], count: int) -> None:
    stop = time.monotonic() + 20
    while len(pages) < count:
        assert time.monotonic() < stop
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("error", "state"), [(ValueError("no memory left"), "failed"), (KeyboardInterrupt(), "stopped")]
)
def test_a_page_says_how_its_run_ended(
    tmp_path: Path, pages: list[report.State], error: BaseException, state: str
) -> None:
    recorder = status.Recorder(tmp_path, mode="train", writes=False)

    def run() -> None:
        with live.followed(Shown(tmp_path), recorder) as page:
            until(pages, 1)  # photos and class images are to be seen at once
            with (
                recorder.part("training the base", state="training", stage="base"),
                recorder.counts("base", "step", 300, 120),
            ):
                page.update()
                until(pages, 2)
                text = (tmp_path / "report.html").read_text()
                assert "Running: training the base, step 120 of 300;" in text
                raise error

    with pytest.raises(type(error)):
        run()
    text = (tmp_path / "report.html").read_text()
    assert f'content="{state}"' in text and "Running" not in text
    assert str(error) in text
    assert not report.is_final(tmp_path / "report.html")
    assert not [one for one in threading.enumerate() if one.name == "report"]


def test_a_page_that_cannot_be_written_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: told.append(text % values))

    def fails() -> None:
        raise OSError("disk full")

    page = live.Page(fails)
    page.update()
    stop = time.monotonic() + 20
    while not told:
        assert time.monotonic() < stop
    page.end()
    page.end()
    assert len(told) == 1 and "disk full" in told[0]


def test_other_processes_write_no_page(tmp_path: Path, pages: list[report.State]) -> None:
    recorder = status.Recorder(tmp_path, mode="train", writes=False)
    with live.followed(Shown(tmp_path, writes=False), recorder) as page:
        page.update()
    assert pages == []


def test_parts_are_counted_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = configs.resolve(commands.config(STAGES, prior__num_images=6, sample__num_images=3))
    parts = outline.of_run(plan, judged=False)
    assert [(part.name, part.units) for part in parts] == [
        ("class images", 6),
        ("pictures before training", 6),  # two prompts
        ("training the base", commands.STEPS["base"]),
        ("training the upscaler", commands.STEPS["upscaler"]),
        ("pictures after training", 6),
        ("export", 0),
    ]
    assert outline.of_run(plan, judged=True)[-1].name == "scores"
    monkeypatch.setattr(outline, "_file", lambda: tmp_path / "times.json")
    recorder = status.Recorder(tmp_path, mode="train", writes=False)
    first = outline.Outline(plan, parts, recorder)
    assert str(first).splitlines()[:2] == ["The plan", "  1 of 6: class images, 6 images"]
    # 12 s, of them 6 s of compilation, and 6 images; a part that was resumed tells nothing.
    recorder.measured["class images"] = status.Measured(12.0, compiling=6.0, units=6)
    recorder.measured["training the base"] = status.Measured(5.0, compiling=0.0, units=2)
    recorder.measured["export"] = status.Measured(3.0, compiling=0.0, units=0)
    first.keep_times()
    more = configs.resolve(commands.config(STAGES, prior__num_images=60, sample__num_images=3))
    again = outline.Outline(more, outline.of_run(more, judged=False), recorder)
    lines = str(again).splitlines()
    assert lines[1] == "  1 of 6: class images, 60 images, about 66 s"
    assert lines[3] == f"  3 of 6: training the base, {commands.STEPS['base']} steps"
    assert lines[6] == "  6 of 6: export, about 3 s"
    (tmp_path / "times.json").write_text(json.dumps({"a": [1]}))
    assert again.about(again.parts["export"]) == 3.0
    assert outline.Outline(plan, parts, recorder).about(again.parts["export"]) is None


def test_the_last_lines_are_quoted_for_pasting(tmp_path: Path) -> None:
    folder = tmp_path / "a run's folder"
    plan = configs.resolve(commands.config(STAGES, adapt__name="lora", stages=("base",)))
    stage = SimpleNamespace(family=SimpleNamespace(name="IFPipeline"))
    model = SimpleNamespace(kinds=("base", "upscaler"), stages={"base": stage, "upscaler": stage})
    workdir = SimpleNamespace(root=folder, report=folder / "report.html", export=folder / "export")
    lines = ending.lines(plan, workdir, model, "a zib bird").splitlines()
    assert lines[0] == f"The report: {(folder / 'report.html').as_uri()}"
    python = [line.strip() for line in lines if "from_pretrained" in line]
    assert [line.split(" = ")[0] for line in python] == ["base", "upscaler"]
    for line, kind in zip(python, model.kinds, strict=True):
        assert str(folder / "export" / kind) == eval(line.split("from_pretrained")[1])
    lora = [line for line in lines if "load_lora_weights" in line]
    assert len(lora) == 1  # the upscaler is as it was
    words = shlex.split(lines[-1])
    assert words[:3] == ["python", "-m", "dreambooth_jax.main"]
    assert f"--config=configs/of_run.py:{folder}" in words


def test_a_table_of_steps_has_no_empty_column_and_names_no_loss_held_out_that_is_not() -> None:
    steps = (Step(0, held_out=0.5), Step(10, held_out=0.25, on_disk=True), Step(20, on_disk=True))
    header, *rows = advice.table(Advice("base", 10, "", steps), held_out=False)
    assert header == ("step", "loss on the photos, same noise", "on disk")
    assert [row[0] for row in rows] == ["0", "10\N{NO-BREAK SPACE}←", "20"]
    header, *_ = advice.table(Advice("base", 10, "", steps), held_out=True)
    assert header[1] == "loss on held-out photos"


def test_no_command_exports_what_is_exported(tmp_path: Path) -> None:
    steps = (Step(10, on_disk=True), Step(20, on_disk=True), Step(30))
    workdir = SimpleNamespace(root=tmp_path / "of a run")
    assert advice.command(Advice("base", 30, "", steps), workdir) == ""
    line = advice.command(Advice("base", 10, "", steps), workdir)
    assert "--config.restore.base=10" in shlex.split(line)
    assert "the export holds step 30" in advice.sentence(Advice("base", 10, "Because.", steps))


def test_other_modes_have_a_state_of_their_own_where_there_is_a_run(tmp_path: Path) -> None:
    with outline.of_mode("sample", tmp_path):
        pass
    found = status.read(tmp_path, mode="sample")
    assert found is not None and (found.mode, found.state) == ("sample", "finished")
    with outline.of_mode("export", tmp_path / "no run"), outline.of_mode("train", tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["status_sample.json"]
