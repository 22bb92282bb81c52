"""The cost of a family: a small flow transformer of the tests goes through whole runs."""

import os
import signal

import commands
import numpy as np
import pytest
import toy_flow
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax import families, metrics, pipeline
from dreambooth_jax.diffusion.path import Flow
from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.train import Interrupted


@pytest.fixture(scope="module", autouse=True)
def family():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.FAMILIES, toy_flow.NAME, toy_flow.FAMILY)
        yield


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    return toy_flow.make(tmp_path_factory.mktemp("toy") / "model")


HOW = {"stages": ("base",), "upscaler_model": "", "sampler__name": "ddim", "sampler__num_steps": 3}


@pytest.fixture(scope="module")
def done(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy") / "run"
    commands.run_here(commands.config({"base": model}, **HOW), folder)
    return folder


def test_a_family_of_sixty_lines_is_trained_exported_and_opened_again(model, done):
    stage = families.open_stage(str(done / "export"), kind="base")
    assert isinstance(stage.path, Flow) and stage.denoiser.component == "transformer"
    before = pipeline.read_weights(families.open_stage(str(model), kind="base"))
    after = pipeline.read_weights(stage)
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed == {path for path in before if path.startswith("transformer/")}
    assert len(list((done / "prior").rglob("*.png"))) == 6
    assert (done / "report.html").is_file()


def test_a_run_that_was_stopped_resumes_bit_for_bit(model, done, tmp_path, monkeypatch):
    c, folder = commands.config({"base": model}, **HOW), tmp_path / "run"
    written = metrics.JsonlWriter.write_scalars

    def stopped(self, step, scalars):
        written(self, step, scalars)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(metrics.JsonlWriter, "write_scalars", stopped)
        with pytest.raises(Interrupted):
            commands.run_here(c, folder)
    assert not (folder / "export").exists()
    commands.run_here(c, folder)
    expected, found = (commands.weights(run / "export") for run in (done, folder))
    assert not commands.different(found, expected)


def test_its_lora_and_its_pictures(model, tmp_path):
    folder = tmp_path / "lora"
    c = commands.config({"base": model}, **HOW, adapt__name="lora", adapt__rank=2)
    commands.run_here(c, folder)
    files = {path.name for path in (folder / "export" / "lora").iterdir()}
    assert files == {"README.md", "pytorch_lora_weights.safetensors", "lora_kohya.safetensors"}
    made = commands.here(MODES["sample"].function, configs.of_run(str(folder)), folder)
    assert len(list(made.glob("0*.png"))) == 2

    c = configs.of_run(str(folder))
    c.resolution = (12, 6)
    wide = commands.here(MODES["sample"].function, c, folder)
    assert wide != made
    pictures = []
    for file in sorted(wide.glob("0*.png")):
        with Image.open(file) as picture:
            pictures.append(np.asarray(picture))
    assert [picture.shape for picture in pictures] == [(12, 6, 3)] * 2
    assert all(picture.std() > 1 for picture in pictures)
