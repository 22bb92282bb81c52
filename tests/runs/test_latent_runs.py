"""The main command on Stable Diffusion 1, 2 and XL, small: from photos to an export like theirs."""

import json
import shutil

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from dreambooth_jax import contents, families, generate, pipeline, sharding

pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import latents  # noqa: E402 (only with torch)

SHORT = {
    "stages": ("base",),
    "subject__identifier": "zib",
    "upscaler__num_steps": None,
    "upscaler__batch_size": None,
    "prior__num_images": 2,
    "train__num_steps": 3,
    "train__sample_every": 0,
    "train__checkpoint_every": 2,
    "optim__learning_rate": 1e-3,
    "sampler__name": "ddim",
    "sampler__num_steps": 3,
    "sampler__guidance_scale": 4.0,
}
# Portrait, landscape, and the square of the files: height and width.
SIZES = {"sd1": (24, 16), "sd2": (16, 24), "sdxl": None}
SPLIT = {"mesh__data": 1, "mesh__fsdp": 2, "sharding__min_bytes": 0}
CLASSES = {
    "sd1": diffusers.StableDiffusionPipeline,
    "sd2": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}


def assert_resumed_it_is_the_same(c, folder, dated):
    """From step 2 it ends with the same files, bit for bit, but for the one that bears a date."""
    last = commands.contents(folder / "export")
    (folder / "report.html").unlink()
    shutil.rmtree(folder / "export")
    shutil.rmtree(folder / "checkpoints" / "base" / "3")
    commands.run_here(c, folder)
    again = commands.contents(folder / "export")
    assert again.keys() == last.keys()
    assert all(data == last[name] or name == dated for name, data in again.items())


@pytest.mark.parametrize(
    "variant",
    [pytest.param(x, marks=[pytest.mark.long] if x != "sd1" else []) for x in latents.VARIANTS],
)
def test_the_main_command(variant, tmp_path):
    model = latents.make(tmp_path / "model", variant)
    # The text encoders of one variant learn too; rows and weights of one are split.
    c = commands.config(
        {"base": model, "upscaler": ""},
        **SHORT | (SPLIT if variant == "sd1" else {}),
        train__text_encoder=variant == "sdxl",
        optim__text_encoder_learning_rate=3e-4 if variant == "sdxl" else None,
        loss__zero_terminal_snr=variant == "sd2",  # it says v
        subject__crops=2,
        subject__flip=True,
        export__single_file=True,
        resolution=SIZES[variant],
    )
    report = commands.run_here(c, tmp_path / "run")
    assert report.is_file()
    lines = commands.lines(tmp_path / "run", "base")
    assert all(np.isfinite(line["base/loss"]) for line in lines)
    made = list((tmp_path / "run").rglob("prior/*.png"))
    assert len(made) == 2
    size = SIZES[variant] or (16, 16)
    for file in (*made, *(tmp_path / "run" / "samples").rglob("??_??.png")):
        with Image.open(file) as picture:
            assert picture.size == size[::-1]
    manifest = json.loads((tmp_path / "run" / "prior" / "manifest.json").read_text())
    told = manifest["made_by"]["samplers"]["base"]["size"]
    assert told == (None if SIZES[variant] is None else list(size))

    single = tmp_path / "run" / "export" / "zib_bird.safetensors"
    assert load_file(single).keys() > set()
    assert contents.of(single.parent).left == []  # all that it wrote is handed on
    if variant == "sdxl":
        assert_resumed_it_is_the_same(c, tmp_path / "run", single.name)

    before, after = commands.weights(model), commands.weights(tmp_path / "run" / "export")
    after = {name: leaf for name, leaf in after.items() if not name.startswith(single.name)}
    prefix = "text_encoder/model.safetensors: "  # transformers 5 writes it without "text_model."
    before = {
        f"{prefix}text_model.{key.removeprefix(prefix)}"
        if key.startswith(prefix) and "text_model." not in key
        else key: value
        for key, value in before.items()
    }
    changed = {name.split("/")[0] for name in commands.different(before, after)}
    assert changed == {"unet"} | (
        {"text_encoder", "text_encoder_2"} if variant == "sdxl" else set()
    )

    # PyTorch draws from the export what we draw, both at the size that its files tell.
    exported = tmp_path / "run" / "export"
    stage = families.open_stage(str(exported), kind="base")
    assert stage.size == size
    told = json.loads((exported / "scheduler" / "scheduler_config.json").read_text())
    assert (stage.path.alphas_cumprod[-1] == 0) == (variant == "sd2")
    assert (told.get("rescale_betas_zero_snr"), told["timestep_spacing"]) == (
        (True, "trailing") if variant == "sd2" else (False, "leading")
    )
    flat = pipeline.read_weights(stage)
    prompts = ["a zib bird", "a bird in the snow"]
    text = generate.encode(stage, flat, prompts, dtype=jnp.float32)
    sampler = generate.Sampler(
        stage,
        generate.Settings("ddim", 3, 4.0),
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
    )
    found = sampler.batch(flat, text, prompts, [1, 2], None)
    pipe = CLASSES[variant].from_pretrained(exported)
    made = latents.drawn_by_them(pipe, stage, prompts)
    assert found.shape == made.shape == (2, *size, 3)
    assert np.abs((found + 1) / 2 - made).max() <= 1e-3


def test_a_latent_base_with_an_upscaler_is_refused_before_anything_is_read(tmp_path):
    model = latents.make(tmp_path / "model", "sd1")
    c = commands.config({"base": model, "upscaler": "embedded"}, subject__identifier="zib")
    with pytest.raises(
        ValueError, match=r"upscaler_model = 'embedded'.*--config.upscaler_model=\"\""
    ):
        commands.run_here(c, tmp_path / "run")


@pytest.mark.parametrize(("resolution", "message"), [(20, "multiple of 4"), (2, "multiple of 4")])
def test_a_resolution_that_the_levels_cannot_halve(resolution, message, tmp_path):
    model = latents.make(tmp_path / "model", "sd1")
    with pytest.raises(ValueError, match="resolution"):
        families.open_stage(str(model), kind="base", resolution=resolution + 1)
    stage = families.open_stage(str(model), kind="base", resolution=24)
    assert stage.sample_shape == (12, 12, 4)
    assert stage.at((8, 24)).sample_shape == (4, 12, 4)
    assert stage.at(16).asked is stage.at(None).asked is None  # the model's own
    assert json.loads((model / "unet" / "config.json").read_text())["sample_size"] == 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"loss__zero_terminal_snr": True},
            r"prediction_type is 'v_prediction' or 'sample'.*False",
        ),
        (
            {"loss__learned_variance": "trained"},
            r"no output for a variance.*learned_variance=fixed",
        ),
    ],
)
def test_what_a_model_cannot_be_trained_for_is_told_before_anything_is_read(
    changed, message, tmp_path
):
    model = latents.make(tmp_path / "model", "sd1")
    c = commands.config({"base": model, "upscaler": ""}, **SHORT, **changed)
    with pytest.raises(ValueError, match=message):
        commands.run_here(c, tmp_path / "run")
