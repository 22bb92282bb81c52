"""Pivotal tuning through the whole command: two phases, one checkpoint, files that others open."""

import json
import shutil

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from dreambooth_jax import config as configs
from dreambooth_jax import contents, families, generate, pipeline, sharding
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.experiment.modes.table import MODES

PIVOTAL = {
    "adapt__name": "pivotal",
    "adapt__inversion_steps": 2,
    "adapt__inversion_learning_rate": 0.05,
    "adapt__num_vectors": 2,
    "stages": ("base",),
    "subject__identifier": "<zib>",
    "upscaler__num_steps": None,
    "upscaler__batch_size": None,
    "train__num_steps": 4,
    "train__sample_every": 0,
    "train__checkpoint_every": 1,
    "train__max_to_keep": 4,
    "optim__learning_rate": 3e-3,
    "optim__warmup_steps": 0,
    "prior__num_images": 2,
    "sampler__name": "ddim",
}


def saved(folder, step):
    """Checksums of the trainable leaves of a checkpoint or of kept weights, by path."""
    (file,) = folder.glob(f"*/base/{step}/manifest/metadata")
    leaves = json.loads(file.read_text())["leaves"]
    start = "trainable/"
    return {n.removeprefix(start): x["checksum"] for n, x in leaves.items() if n.startswith(start)}


def moved(folder, first, last):
    before, after = saved(folder, first), saved(folder, last)
    return {path for path in before if before[path] != after[path]}


def test_the_model_moves_only_once_the_word_rests(tmp_path_factory, tmp_path):
    stages = commands.cascade(tmp_path_factory)
    c = commands.config(
        {"base": stages["base"], "upscaler": ""},
        **PIVOTAL,
        train__text_encoder=True,
        train__text_encoder_steps=3,
        loss__min_snr_gamma=5.0,
        prior__kind="prediction",
    )
    c.train.checkpoint_every, c.train.max_to_keep, c.train.keep_weights_every = 9, 1, 1
    commands.run_here(c, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")  # the weights alone are enough for what follows
    rows = {"text_encoder/shared/embedding/new_rows"}
    assert moved(tmp_path, 1, 2) == rows
    third, fourth = moved(tmp_path, 2, 3), moved(tmp_path, 3, 4)
    assert {path.partition("/")[0] for path in third} == {"unet", "text_encoder"}
    assert {path.partition("/")[0] for path in fourth} == {"unet"}
    assert not rows & third
    # The export reads the new tokens, and they are those of the checkpoint's second step.
    exported = commands.weights(tmp_path / "export")
    embeds = exported["learned_embeds.safetensors: <zib>"]
    table = exported["text_encoder/model.safetensors: shared.weight"]
    np.testing.assert_array_equal(table[-2:], embeds)
    stage = families.open_stage(str(tmp_path / "export"), kind="base")
    told = json.loads((tmp_path / "export" / "dreambooth.json").read_text())
    assert stage.tokenizer.ids(told["identifier"]) == (len(table) - 2, len(table) - 1)

    # Weights that were kept on the way are exported, too: of step 2, the base with the new tokens.
    asked = configs.of_run(str(tmp_path))
    asked.restore.base = 2
    early = commands.weights(commands.here(MODES["export"].function, asked, tmp_path))
    before = commands.weights(stages["base"])
    same = {name for name in before if np.array_equal(early[name], before[name])}
    assert before.keys() - same == {"text_encoder/model.safetensors: shared.weight"}
    np.testing.assert_array_equal(early["learned_embeds.safetensors: <zib>"], embeds)
    asked.restore.base = 7
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7.*weights of 1, 2, 3, 4"):
        commands.here(MODES["export"].function, asked, tmp_path)


@pytest.mark.long
def test_diffusers_draws_the_same_from_the_export_and_from_the_files(tmp_path):
    pytest.importorskip("torch", reason="compares with PyTorch: extra `parity`")
    diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
    pytest.importorskip("peft", reason="diffusers loads LoRA files with it: extra `parity`")
    import latents

    model = latents.make(tmp_path / "model", "sd1")
    c = commands.config(
        {"base": model, "upscaler": ""},
        **PIVOTAL,
        adapt__then="lora",
        adapt__rank=3,
        adapt__alpha=6.0,
        train__text_encoder=True,
        train__ema_decay=0.5,
    )
    folder = tmp_path / "run"
    commands.run_here(c, folder)
    assert all(p.endswith("/new_rows") for p in moved(folder, 1, 2))
    late = moved(folder, 2, 4)
    assert late and all("/lora_" in path for path in late)
    factors = load_file(folder / "export" / "lora" / "pytorch_lora_weights.safetensors")
    assert {key.partition(".")[0] for key in factors} == {"unet", "text_encoder"}
    assert contents.of(folder / "export").left == []  # all that it wrote is handed on

    stage = families.open_stage(str(folder / "export"), kind="base")
    flat = pipeline.read_weights(stage)
    told = json.loads((folder / "export" / "dreambooth.json").read_text())
    prompts = [f"a {told['identifier']} bird", "a bird"]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = generate.Sampler(stage, generate.Settings("ddim", 3, 4.0), mesh=mesh)
    text = generate.encode(stage, flat, prompts, dtype=jnp.float32)
    expected = (sampler.batch(flat, text, prompts, [1, 2], None) + 1) / 2

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder / "export")
    assert np.abs(latents.drawn_by_them(pipe, stage, prompts) - expected).max() <= 1e-3
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model)
    pipe.load_lora_weights(folder / "export" / "lora")
    pipe.load_textual_inversion(
        folder / "export", weight_name="learned_embeds.safetensors", token="<zib>"
    )
    made = latents.drawn_by_them(pipe, stage, ["a <zib> bird", "a bird"])
    assert np.abs(made - expected).max() <= 1e-3

    # Resumed from the very step between the phases it is the same.
    last = commands.weights(folder / "export")
    (folder / "report.html").unlink()
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / "base" / str(step))
    commands.run_here(c, folder)
    assert commands.different(commands.weights(folder / "export"), last) == set()
    made = commands.here(MODES["export"].function, configs.of_run(str(folder)), folder)
    assert commands.different(commands.weights(made), last) == set()
