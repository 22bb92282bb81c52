"""Trackers, by stand-ins with the documented signatures of wandb and trackio.

https://docs.wandb.ai/ref/python (init, Run.log, Run.define_metric, Image), and trackio's own
`init`, `Run.log` and `Image`.
"""

import importlib
import sys
import types

import numpy as np
import pytest

from dreambooth_jax import trackers

SETTINGS = {"seed": 3, "subject.flip": True, "stages": ("base",), "resolution": None}


class Config(dict):
    def update(self, d, allow_val_change=None):
        super().update(d)


class Run:
    """Keeps the rows of a chart by name: W&B drops what comes with a lower step than before."""

    def __init__(self, config):
        self.config = Config(config)
        self.rows: list[dict] = []
        self.axes: dict[str, str] = {}
        self.last = -1
        self.finished = False


class WandbRun(Run):
    def log(self, data, step=None, commit=None):
        if step is not None and step < self.last:
            return
        self.last = self.last + 1 if step is None else step
        self.rows.append(dict(data))

    def define_metric(
        self,
        name,
        step_metric=None,
        step_sync=None,
        hidden=None,
        summary=None,
        goal=None,
        overwrite=None,
    ):
        if step_metric:
            self.axes[name] = step_metric

    def finish(self, exit_code=None, quiet=None):
        self.finished = True


class TrackioRun(Run):
    def log(self, metrics, step=None):
        self.rows.append({**metrics, "step": step})

    def finish(self):
        self.finished = True


def wandb(runs):
    module = types.ModuleType("wandb")

    def init(
        entity=None,
        project=None,
        dir=None,  # noqa: A002 - W&B's own name
        id=None,  # noqa: A002 - same
        name=None,
        notes=None,
        tags=None,
        config=None,
        resume=None,
        mode=None,
        settings=None,
    ):
        assert resume == "allow" and not set(id) & set("/\\#?%:")
        return runs.setdefault((project, id), WandbRun(config))

    class Image:
        def __init__(self, data_or_path, mode=None, caption=None, grouping=None):
            self.pixels, self.caption = np.asarray(data_or_path), caption

    module.init, module.Image = init, Image
    return module


def trackio(runs):
    module = types.ModuleType("trackio")

    def init(project, name=None, group=None, space_id=None, config=None, resume="never"):
        assert resume == "allow"
        return runs.setdefault((project, name), TrackioRun(config))

    class Image:
        def __init__(self, value, caption=None):
            self.pixels, self.caption = np.asarray(value), caption

    module.init, module.Image = init, Image
    return module


@pytest.fixture(params=[wandb, trackio], ids=["wandb", "trackio"])
def started(request, monkeypatch, tmp_path):
    """Runs by project and name, and a function that starts one."""
    runs: dict = {}
    package = request.param.__name__
    monkeypatch.setitem(sys.modules, package, request.param(runs))

    def start(identity="ab12"):
        return trackers.Tracker(
            package,
            project="dreambooth",
            name="duck",
            identity=identity,
            settings=SETTINGS,
            folder=tmp_path,
        )

    return runs, start


def test_numbers_of_both_stages_arrive_at_their_steps(started):
    runs, start = started
    writer = start()
    writer.write_scalars(100, {"base/loss": np.float32(0.5), "base/rate": 1})
    writer.write_scalars(10, {"upscaler/loss": np.array([0.25])})  # a lower step than before
    writer.close()
    (run,) = runs.values()
    assert run.finished
    found = [{k: v for k, v in row.items() if not k.endswith("step")} for row in run.rows]
    assert found == [{"base/loss": 0.5, "base/rate": 1.0}, {"upscaler/loss": 0.25}]
    if isinstance(run, WandbRun):
        assert run.rows[0]["base/step"] == 100 and run.rows[1]["upscaler/step"] == 10
        assert run.axes == {"base/*": "base/step", "upscaler/*": "upscaler/step"}
    else:
        assert [row["step"] for row in run.rows] == [100, 10]


def test_pictures_have_their_prompt_and_step(started):
    runs, start = started
    pictures = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    writer = start()
    writer.write_images(7, {"samples/a zib bird": pictures, "samples/a bird": pictures[0]})
    (row,) = next(iter(runs.values())).rows
    shown = {name: x for name, x in row.items() if not name.endswith("step")}
    assert {*shown} == {"samples/a zib bird (1)", "samples/a zib bird (2)", "samples/a bird"}
    assert np.array_equal(shown["samples/a zib bird (2)"].pixels, pictures[1])
    assert shown["samples/a zib bird (1)"].caption == "a zib bird"
    assert 7 in (row.get("samples/step"), row.get("step"))


def test_settings_and_prompts_are_kept_and_the_same_run_goes_on(started):
    runs, start = started
    start().write_texts(0, {"prompts": "a zib bird\na bird"})
    start().write_scalars(1, {"base/loss": 1.0})
    start("cd34")
    assert len(runs) == 2
    first = next(iter(runs.values()))
    assert first.config["seed"] == 3 and first.config["subject.flip"] is True
    assert first.config["stages"] == "('base',)" and first.config["prompts"].startswith("a zib")
    assert len(first.rows) == 1


@pytest.mark.parametrize("package", trackers.NAMES)
def test_an_absent_package_or_a_refusal_tells_the_remedy(package, monkeypatch, tmp_path):
    how = {"project": "p", "name": "n", "identity": "1", "settings": {}, "folder": tmp_path}
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(trackers.TrackerError, match=f"pip install {package}"):
        trackers.Tracker(package, **how)
    module = types.ModuleType(package)

    def refuse(**how):
        raise RuntimeError("api_key not configured")

    module.init = refuse
    monkeypatch.setitem(sys.modules, package, module)
    with pytest.raises(trackers.TrackerError, match=r"api_key not configured\. .*out of log\.to"):
        trackers.Tracker(package, **how)


@pytest.mark.parametrize("package", trackers.NAMES)
def test_the_stand_ins_have_the_package_s_own_arguments(package):
    """Where the package is installed."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    import inspect

    real, ours = importlib.import_module(package), {"wandb": wandb, "trackio": trackio}[package]({})
    for name in ("init", "Image"):
        there = inspect.signature(getattr(real, name)).parameters
        assert {*inspect.signature(getattr(ours, name)).parameters} <= {*there}
