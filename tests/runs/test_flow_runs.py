"""The main command on Stable Diffusion 3 and FLUX.1, small: from photos to a LoRA like theirs."""

import shutil

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import families, generate, pipeline, sharding

pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
pytest.importorskip("peft", reason="loads the LoRA file: extra `parity`")
pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import flows

SCALES = {"sd3": 4.0, "flux dev": 3.5}


@pytest.mark.parametrize("variant", list(SCALES))
def test_the_main_command(variant, tmp_path):
    model, scale = flows.make(tmp_path / "model", variant), SCALES[variant]
    c = commands.config(
        {"base": model, "upscaler": ""}, **flows.SHORT, sampler__guidance_scale=scale
    )
    folder = tmp_path / "run"
    assert commands.run_here(c, folder).is_file()
    assert all(np.isfinite(line["base/loss"]) for line in commands.lines(folder, "base"))
    assert len(list((folder / "prior").glob("*.png"))) == 2
    before, after = commands.weights(model), commands.weights(folder / "export")
    changed = commands.different(
        {key: x for key, x in before.items() if key.startswith("transformer/")},
        {key: x for key, x in after.items() if key.startswith("transformer/diffusion")},
    )
    assert changed
    assert not any("pos_embed" in name or "norm" in name for name in changed)

    # From step 2 it ends with the same files, bit for bit.
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "export")
    shutil.rmtree(folder / "checkpoints" / "base" / "3")
    commands.run_here(c, folder)
    assert not commands.different(after, commands.weights(folder / "export"))

    # PyTorch draws from the export, and from the base with the LoRA file, what we draw.
    stage = families.open_stage(str(folder / "export"), kind="base", resolution=16)
    flat = pipeline.read_weights(stage)
    prompts = ["a zib bird", "a bird in the snow"]
    text = generate.encode(stage, flat, prompts, dtype=jnp.float32)
    sampler = generate.Sampler(
        stage,
        generate.Settings("ddim", 3, scale),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )
    found = sampler.batch(flat, text, prompts, [1, 2], None)
    exported = flows.opened_by_them(folder / "export", variant)
    made = flows.drawn_by_them(exported, stage, prompts, scale=scale)
    assert np.abs((found + 1) / 2 - made).max() <= 1e-3
    pipe = flows.opened_by_them(model, variant)
    untouched = flows.drawn_by_them(pipe, stage, prompts, scale=scale)
    pipe.load_lora_weights(folder / "export" / "lora")
    by_file = flows.drawn_by_them(pipe, stage, prompts, scale=scale)
    assert np.abs(by_file - made).max() <= 1e-3 < np.abs(untouched - made).max()
