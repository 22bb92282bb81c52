"""LoRA files, PEFT's keys and kohya's: PyTorch diffusers loads them and draws what we draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import export, families, generate, pipeline, sharding
from dreambooth_jax.adapt import lora
from dreambooth_jax.families.unet import LORA_TARGETS

pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
pytest.importorskip("peft", reason="diffusers loads LoRA files with it: extra `parity`")
import latents  # noqa: E402 (only with torch)

PROMPTS = ["a zib dog", "a dog in the snow"]
CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
}
ATTENTION = LORA_TARGETS
_CONVOLUTIONS = r"conv1|conv2|conv_shortcut|net/0/proj|net/2"
EVERY_UNET_KERNEL = rf"unet/.*(to_\w|to_out/0|proj_in|proj_out|{_CONVOLUTIONS})/kernel"
# What kohya's trainer has names for: these, and of text encoders attention and the layers between.
KOHYA_S = rf"{EVERY_UNET_KERNEL}|text_encoder/.*(q_proj|k_proj|v_proj|out_proj|fc1|fc2)/kernel"
EVERYTHING = ".*/kernel"  # samplers, time steps, first and last convolutions, too


def trained(flat, *, targets, dora):
    """Factors as training might leave them: neither of them zero."""
    rules = (("vae/.*", False), (".*", True))
    factors, _ = lora.init(flat, rules, rank=3, targets=targets, dora=dora, seed=0)
    rng = np.random.default_rng(1)
    moved = {path: x + 0.2 * rng.normal(size=x.shape) for path, x in factors.items()}
    # Lengths stay near those of the kernels.
    moved |= {path: 1.1 * x for path, x in factors.items() if path.endswith(lora.LENGTH)}
    return {path: x.astype(np.float32) for path, x in moved.items()}


@pytest.mark.parametrize(
    ("variant", "targets", "dora"),
    [
        ("sd1", EVERYTHING, False),
        ("sd1", KOHYA_S, False),
        ("sd1", ATTENTION, True),
        ("sd1", KOHYA_S, True),
        ("sd2", ATTENTION, False),
        ("sdxl", ATTENTION, False),
        ("sdxl", ATTENTION, True),
    ],
    ids=["sd1-all", "sd1-conv", "sd1-dora", "sd1-dora-conv", "sd2", "sdxl", "sdxl-dora"],
)
def test_diffusers_loads_both_files_and_draws_the_same(variant, targets, dora, tmp_path):
    folder = latents.make(tmp_path / "model", variant)
    stage = families.open_stage(str(folder), kind="base")
    flat = pipeline.read_weights(stage)
    factors = trained(flat, targets=targets, dora=dora)
    alpha = 1.5  # half the rank: a reader that misses it draws something else
    merged = lora.combine(flat, factors, alpha=alpha)
    windows = {x.shape[:2] for path, x in factors.items() if x.ndim == 4}
    assert windows == ({(1, 1), (3, 3)} if targets in (EVERYTHING, KOHYA_S) else set())
    assert any(path.startswith("text_encoder") for path in factors)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = generate.Sampler(stage, generate.Settings("ddim", 3, 4.0), mesh=mesh)

    def ours(weights):
        text = generate.encode(stage, weights, PROMPTS, dtype=jnp.float32)
        return (sampler.batch(weights, text, PROMPTS, [1, 2], None) + 1) / 2

    expected, untouched = ours(merged), ours(flat)
    assert np.abs(expected - untouched).max() > 0.02
    files = export.lora_file.write(
        stage, factors, tmp_path / "lora", alpha=alpha, dtype="float32", about={"seed": 0}
    )
    # Of kohya's lengths diffusers expects another shape than ComfyUI, which made them up.
    # It also knows no kohya name of what kohya's trainer leaves alone.
    for file in files[: 1 if dora or targets == EVERYTHING else 2]:
        pipe = getattr(diffusers, CLASSES[variant]).from_pretrained(folder)
        pipe.load_lora_weights(tmp_path / "lora", weight_name=file.name)
        made = latents.drawn_by_them(pipe, stage, PROMPTS)
        assert np.abs(made - expected).max() <= 1e-3, file.name


def test_kohya_s_lengths_have_the_shape_that_comfyui_divides_by(tmp_path):
    folder = latents.make(tmp_path / "model", "sd1")
    stage = families.open_stage(str(folder), kind="base")
    factors = trained(pipeline.read_weights(stage), targets=EVERY_UNET_KERNEL, dora=True)
    found = export.lora_file.kohya(stage, factors, alpha=3.0, dtype="float32")
    lengths = {key: x for key, x in found.items() if key.endswith(".dora_scale")}
    assert len(lengths) == len(lora.adapted(factors))
    for key, length in lengths.items():
        name = key.removesuffix(".dora_scale")
        up, down = found[f"{name}.lora_up.weight"], found[f"{name}.lora_down.weight"]
        assert length.shape == (up.shape[0],) + (1,) * (down.ndim - 1)
        assert found[f"{name}.alpha"] == 3.0
