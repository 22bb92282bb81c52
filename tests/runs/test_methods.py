"""Ways to adapt and to preserve the prior through the whole command, on a small cascade and SD."""

import json
import shutil

import commands
import numpy as np
import pytest
from safetensors.numpy import load_file

from dreambooth_jax import config as configs
from dreambooth_jax.experiment.modes.table import MODES

SHORT = {
    "stages": ("base",),
    "subject__identifier": "zib",
    "train__num_steps": 4,
    "train__sample_every": 0,
    "train__checkpoint_every": 2,
    "optim__learning_rate": 3e-3,
    "optim__warmup_steps": 0,
}


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return commands.cascade(tmp_path_factory)


def run(cascade, folder, **changed):
    """The run's folder after the whole command on the base alone, without class images."""
    stages = {"base": cascade["base"], "upscaler": ""}
    c = commands.config(stages, **SHORT | changed)
    c.upscaler.num_steps = c.upscaler.batch_size = None
    commands.run_here(c, folder)
    return c


def changed_leaves(cascade, folder):
    before = commands.weights(cascade["base"])
    after = commands.weights(folder / "export")
    after = {name: x for name, x in after.items() if not name.startswith("lora/")}
    return commands.different(before, after)


@pytest.mark.parametrize(("dora", "tensor"), [(False, 1), (True, 2)])
def test_lora_changes_attention_alone_and_its_files_say_how(dora, tensor, cascade, tmp_path):
    c = run(
        cascade,
        tmp_path,
        adapt__name="lora",
        adapt__rank=3,
        adapt__alpha=6.0,
        adapt__dora=dora,
        prior__kind="prediction",
        mesh__data=1,
        mesh__tensor=tensor,
    )
    names = changed_leaves(cascade, tmp_path)
    kinds = {name.rsplit(".", 2)[-2].removesuffix("_proj") for name in names}
    pool = {"q", "k", "v"}  # of the attention that makes one vector of the text
    assert kinds == {"to_q", "to_k", "to_v", "0", "add_k", "add_v"} | pool
    assert not (tmp_path / "prior").exists()  # no class image was drawn
    lines = commands.lines(tmp_path, "base")
    assert all(line["base/loss/prior"] >= 0 for line in lines)
    assert lines[0]["base/loss/prior"] < 1e-6  # at first the model says what the base says
    assert lines[-1]["base/loss/prior"] > lines[0]["base/loss/prior"]
    # The factors in the file are what the export has more than the base.
    found = load_file(tmp_path / "export" / "lora" / "pytorch_lora_weights.safetensors")
    before, after = commands.weights(cascade["base"]), commands.weights(tmp_path / "export")
    for name in names:
        file, _, key = name.partition(": ")
        start = f"{file.split('/')[0]}.{key.removesuffix('.weight')}"
        change = found[f"{start}.lora_B.weight"] @ found[f"{start}.lora_A.weight"]
        whole = before[name] + change
        if dora:
            length = found[f"{start}.lora_magnitude_vector"]
            whole = whole * (length / np.linalg.norm(whole, axis=1))[:, None]
        np.testing.assert_allclose(after[name], whole, rtol=1e-3, atol=1e-5)
    # Checkpoints hold factors and their moments, not the network.
    manifest = tmp_path / "checkpoints" / "base" / "4" / "manifest" / "metadata"
    leaves = json.loads(manifest.read_text())["leaves"]
    assert any(name.startswith("trainable/") for name in leaves)
    assert all("/lora_" in n or "/dora_" in n for n in leaves if "unet/" in n)
    # What the run drew is what its checkpoints and its export draw.
    made = commands.here(MODES["sample"].function, configs.of_run(str(tmp_path)), tmp_path)
    assert made.name.startswith("base-000004-")
    assert c.adapt.rank == 3
    # One device exports the same, also from where each layer was on two.
    if tensor > 1:
        files = commands.contents(tmp_path / "export")
        c = configs.of_run(str(tmp_path))
        c.mesh.tensor = 1
        again = commands.contents(commands.here(MODES["export"].function, c, tmp_path))
        assert again.keys() == files.keys()
        assert all(files[name] == again[name] for name in files if ".safetensors" not in name)
        whole = commands.weights(tmp_path / "export")
        assert all(name.startswith("unet/") for name in commands.different(whole, after))
        for name in names:
            np.testing.assert_allclose(whole[name], after[name], atol=1e-6)


def test_prior_by_prediction_with_full_fine_tuning(cascade, tmp_path):
    run(cascade, tmp_path, prior__kind="prediction", loss__learned_variance="trained")
    lines = commands.lines(tmp_path, "base")
    assert lines[0]["base/loss/prior"] < 1e-6
    assert lines[-1]["base/loss/prior"] > 1e-6
    assert {name.split("/")[0] for name in changed_leaves(cascade, tmp_path)} == {"unet"}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["prior"]["kind"] == "prediction"
    # The variance was trained, too, so the export samples with it.
    scheduler = tmp_path / "export" / "scheduler" / "scheduler_config.json"
    assert json.loads(scheduler.read_text())["variance_type"] == "learned_range"
    assert "variance_type" not in (tmp_path / "export" / "README.md").read_text()


@pytest.mark.parametrize("name", ["adamw8bit", "schedule_free_adamw"])
def test_coded_and_averaging_optimizers_go_on_bit_for_bit(name, cascade, tmp_path):
    how = {"optim__name": name, "optim__learning_rate": 1e-3, "prior__kind": "prediction"}
    run(cascade, tmp_path, **how)
    last = commands.weights(tmp_path / "export")
    lines = commands.lines(tmp_path, "base")
    assert np.isfinite([line["base/loss"] for line in lines]).all()
    (tmp_path / "report.html").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "base" / "4")
    run(cascade, tmp_path, **how)
    again = commands.weights(tmp_path / "export")
    assert all(np.array_equal(again[key], last[key]) for key in last)
    made = commands.here(MODES["export"].function, configs.of_run(str(tmp_path)), tmp_path)
    exported = commands.weights(made)
    assert all(np.array_equal(exported[key], last[key]) for key in last)


def test_lora_goes_on_bit_for_bit(cascade, tmp_path):
    run(cascade, tmp_path, adapt__name="lora", train__ema_decay=0.9)
    last = commands.weights(tmp_path / "export")
    (tmp_path / "report.html").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "base" / "4")
    run(cascade, tmp_path, adapt__name="lora", train__ema_decay=0.9)
    again = commands.weights(tmp_path / "export")
    assert again.keys() == last.keys()
    assert all(np.array_equal(again[name], last[name]) for name in last)
