"""The main command on Z-Image and FLUX.2 klein, small: photos to files that PyTorch draws by."""

import json
import shutil

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import families, generate, pipeline, sharding, weights
from dreambooth_jax.families import flux2

pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
pytest.importorskip("peft", reason="loads the LoRA files: extra `parity`")
pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import qwen_pipelines

SHORT = {
    "stages": ("base",),
    "resolution": 16,
    "subject__identifier": "zib",
    "upscaler__num_steps": None,
    "upscaler__batch_size": None,
    "adapt__name": "lora",
    "adapt__rank": 2,
    "prior__num_images": 2,
    "train__num_steps": 2,
    "train__sample_every": 0,
    "train__checkpoint_every": 1,
    "train__batch_size": 2,
    "optim__learning_rate": 1e-2,
    "sampler__name": "ddim",
    "sampler__num_steps": 3,
    "sampler__guidance_scale": 4.0,
}
PROMPTS = ["a zib bird", "a Bird in the snow"]


@pytest.fixture(autouse=True)
def _shallow(monkeypatch):
    """A Qwen3 of four layers stands for one of 36."""
    monkeypatch.setattr(flux2, "READ", qwen_pipelines.READ)


def drawn(folder):
    """Our pictures of a folder, in [0, 1], and its stage."""
    stage = families.open_stage(str(folder), kind="base", resolution=16)
    flat = pipeline.read_weights(stage)
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = generate.Sampler(stage, generate.Settings("ddim", 3, 4.0), mesh=mesh)
    return (np.asarray(sampler.batch(flat, text, PROMPTS, [1, 2], None)) + 1) / 2, stage


def as_turbo(model):
    """Gives a Z-Image the scheduler of Turbo; returns the file of an assistant for it."""
    scheduler = model / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"shift": 3.0}))
    rng, name = np.random.default_rng(0), "diffusion_model.layers.0.attention.to_v"
    factors = {
        f"{name}.lora_A.weight": rng.normal(size=(2, 32)).astype(np.float32),
        f"{name}.lora_B.weight": 0.1 * rng.normal(size=(32, 2)).astype(np.float32),
    }
    return str(weights.save(model.with_name("assistant.safetensors"), factors))


@pytest.mark.parametrize("family", ["z_image", "klein"])
def test_the_main_command(family, tmp_path):
    model = qwen_pipelines.make(tmp_path / "model", family)
    # One is taken for Turbo, and trained beside a frozen LoRA that has no part in what is drawn.
    beside = {"adapt__assistant": as_turbo(model)} if family == "z_image" else {}
    c = commands.config({"base": model, "upscaler": ""}, **SHORT | beside)
    run = tmp_path / "run"
    assert commands.run_here(c, run).is_file()
    assert all(np.isfinite(line["base/loss"]) for line in commands.lines(run, "base"))
    assert len(list((run / "prior").glob("*.png"))) == 2

    # From step 1 it ends with the same files, bit for bit.
    after = commands.weights(run / "export")
    (run / "report.html").unlink()
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "checkpoints" / "base" / "2")
    commands.run_here(c, run)
    assert not commands.different(after, commands.weights(run / "export"))

    before = commands.weights(model)
    shared = before.keys() & after.keys()  # a count of batches is of no use to a network
    assert all(name.endswith("num_batches_tracked") for name in before.keys() - shared)
    changed = commands.different(*({name: x[name] for name in shared} for x in (before, after)))
    assert changed
    assert all(name.startswith("transformer/") for name in changed)

    # PyTorch draws from the export, and from the base with either LoRA file, what we draw.
    found, stage = drawn(run / "export")
    theirs = qwen_pipelines.CLASSES[family]
    sizes = {"height": 16, "width": 16}
    exported = theirs.from_pretrained(run / "export")
    made = qwen_pipelines.drawn_by_them(exported, stage, PROMPTS, **sizes)
    assert np.abs(found.clip(0, 1) - made).max() <= 1e-3
    assert np.std(made) > 0.01
    pipe = theirs.from_pretrained(model)
    plain = qwen_pipelines.drawn_by_them(pipe, stage, PROMPTS, **sizes)
    for file in ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors"):
        pipe.load_lora_weights(run / "export" / "lora", weight_name=file)
        adapted = qwen_pipelines.drawn_by_them(pipe, stage, PROMPTS, **sizes)
        assert np.abs(adapted - made).max() <= 1e-3 < np.abs(adapted - plain).max()
        pipe.unload_lora_weights()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train__text_encoder": True}, r"train\.text_encoder=False"),
        ({"loss__zero_terminal_snr": True}, r"zero_terminal_snr=False"),
        ({"loss__offset_noise": 0.1}, r"loss\.offset_noise=0"),
        ({"loss__learned_variance": "trained"}, r"learned_variance=fixed"),
        ({"adapt__name": "pivotal"}, r"new tokens, which adapt\.name = .*adapt\.name=lora"),
        ({"resolution": 18}, r"multiple of 4\. Write --config\.resolution="),
    ],
)
def test_what_a_model_cannot_be_trained_for_is_refused(changed, message, tmp_path):
    model = qwen_pipelines.make(tmp_path / "model", "z_image")
    c = commands.config({"base": model, "upscaler": ""}, **SHORT | changed)
    with pytest.raises(ValueError, match=message):
        commands.run_here(c, tmp_path / "run")


@pytest.mark.parametrize(
    ("family", "file", "changed", "message"),
    [
        ("z_image", "scheduler/scheduler_config.json", {"shift": 3.0}, "Tongyi-MAI/Z-Image"),
        ("klein", "model_index.json", {"is_distilled": True}, r"FLUX\.2-klein-base-4B"),
    ],
)
def test_a_distilled_model_is_drawn_but_not_trained(family, file, changed, message, tmp_path):
    model = qwen_pipelines.make(tmp_path / "model", family)
    about = model / file
    about.write_text(json.dumps(json.loads(about.read_text()) | changed))
    assert families.open_stage(str(model), kind="base", resolution=16).distilled
    c = commands.config({"base": model, "upscaler": ""}, **SHORT)
    with pytest.raises(ValueError, match=rf"{message}.*--config\.adapt\.assistant=FILE"):
        commands.run_here(c, tmp_path / "run")
