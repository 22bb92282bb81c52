"""LoRA through the whole command with frozen weights of 8 and of 16 bits."""

import json

import commands
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dreambooth_jax import config as configs
from dreambooth_jax.experiment.modes.table import MODES

LORA = {
    "stages": ("base",),
    "subject__identifier": "zib",
    "adapt__name": "lora",
    "adapt__rank": 3,
    "prior__kind": "prediction",
    "train__num_steps": 3,
    "train__sample_every": 0,
    "train__checkpoint_every": 3,
    "train__log_every": 1,
    "optim__learning_rate": 3e-3,
    "optim__warmup_steps": 0,
}


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return commands.cascade(tmp_path_factory)


def run(base, folder, **changed):
    c = commands.config({"base": base, "upscaler": ""}, **LORA | changed)
    c.upscaler.num_steps = c.upscaler.batch_size = None
    commands.run_here(c, folder)
    return [line["base/loss"] for line in commands.lines(folder, "base")]


def base_print(folder):
    manifest = folder / "checkpoints" / "base" / "3" / "manifest" / "metadata"
    told = json.loads(manifest.read_text())["config"]
    (found,) = (value for key, value in told.items() if key.startswith("base"))
    return found


def test_in_8_bits_the_loss_stays_near_and_the_export_has_the_files_own_numbers(cascade, tmp_path):
    usual = run(cascade["base"], tmp_path / "usual")
    small = run(cascade["base"], tmp_path / "small", adapt__frozen_dtype="int8")
    assert small != usual
    np.testing.assert_allclose(small, usual, rtol=0.05)
    assert base_print(tmp_path / "small") == base_print(tmp_path / "usual")
    before, after = commands.weights(cascade["base"]), commands.weights(tmp_path / "small/export")
    found = load_file(tmp_path / "small/export/lora/pytorch_lora_weights.safetensors")
    adapted = 0
    for name, whole in before.items():
        file, _, key = name.partition(": ")
        start = f"{file.split('/')[0]}.{key.removesuffix('.weight')}"
        if f"{start}.lora_B.weight" in found:
            adapted += 1
            whole = whole + found[f"{start}.lora_B.weight"] @ found[f"{start}.lora_A.weight"]
            np.testing.assert_allclose(after[name], whole, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(after[name], whole, err_msg=name)
    assert adapted > 0
    # From the checkpoint alone, the same.
    c = configs.of_run(str(tmp_path / "small"))
    again = commands.weights(commands.here(MODES["export"].function, c, tmp_path / "small"))
    assert all(np.array_equal(again[name], after[name]) for name in again)


def test_a_file_in_16_bits_trains_as_its_numbers_in_32(cascade, tmp_path):
    base = tmp_path / "half"
    for file in cascade["base"].rglob("*"):
        copy = base / file.relative_to(cascade["base"])
        copy.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            half = {name: x.astype(np.float16) for name, x in load_file(file).items()}
            save_file(half, copy, metadata={"format": "pt"})
        elif file.is_file():
            copy.write_bytes(file.read_bytes())
    own = run(base, tmp_path / "own")
    wide = run(base, tmp_path / "wide", adapt__frozen_dtype="float32")
    np.testing.assert_allclose(own, wide, rtol=1e-5)
    assert base_print(tmp_path / "own") == base_print(tmp_path / "wide")
    own, wide = (commands.weights(tmp_path / name / "export") for name in ("own", "wide"))
    for name, x in wide.items():
        np.testing.assert_allclose(own[name], x, rtol=1e-3, atol=1e-5, err_msg=name)
