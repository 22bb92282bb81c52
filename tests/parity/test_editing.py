"""Image-to-image and inpainting against diffusers: the same latents and noise, the same picture.

Their pipelines take latents as `image`, so that no random sample of a VAE comes between.
"""

from typing import Any

import cascades
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import families, generate, pipeline, rng, sharding
from dreambooth_jax.diffusion import sampler

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import latents  # noqa: E402 (only with torch)
from diffusers.schedulers import scheduling_ddpm  # noqa: E402 (same)

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
PROMPTS = ["a zib dog", "a dog in the snow"]
SEEDS = [5, 6]
STEPS, SCALE = 10, 4.0
# "sd2" predicts v, "sdxl" epsilon.
THEIRS = {
    "sd2": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
}
STRENGTHS = [0.3, 0.6]  # of 10 steps: all ways of rounding agree


def channels_first(x: np.ndarray) -> "torch.Tensor":
    return torch.from_numpy(np.array(x)).movedim(-1, 1)


def first_noise(stage) -> np.ndarray:
    keys = jax.vmap(lambda s: rng.named(jax.random.key(s), f"sample/{stage.kind}"))(
        jnp.array(SEEDS, jnp.uint32)
    )
    return np.asarray(sampler.first_noise(keys, stage.sample_shape))


@pytest.fixture(scope="module", params=list(THEIRS))
def both(request, tmp_path_factory):
    """Our stage with its weights, texts and jitted sampler; the folder and names of theirs."""
    folder = latents.make(tmp_path_factory.mktemp("latent") / request.param, request.param)
    stage = families.open_stage(str(folder), kind="base")
    flat = pipeline.read_weights(stage)
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = generate.Sampler(stage, generate.Settings("ddim", STEPS, SCALE), mesh=mesh)
    return stage, flat, text, made, folder, THEIRS[request.param]


def opened(folder, name: str, noise: np.ndarray, monkeypatch) -> Any:
    """Their pipeline, which takes this noise for its own."""
    kind = getattr(diffusers, name)
    pipe = kind.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    module = __import__(kind.__module__, fromlist=["randn_tensor"])
    monkeypatch.setattr(module, "randn_tensor", lambda *given, **how: channels_first(noise))
    return pipe


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_picture_to_start_from_and_a_mask(both, strength, monkeypatch):
    """One program of ours serves both: a mask that is 1 everywhere is none."""
    stage, flat, text, made, folder, (start_name, mask_name) = both
    noise = first_noise(stage)
    x0 = np.random.default_rng(1).normal(size=noise.shape).astype(np.float32)
    given = {
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "strength": strength,
        "image": channels_first(x0),
        "output_type": "np",
    }
    mask = np.zeros((2, 8, 8, 1), np.float32)
    mask[:, 2:7, 3:6] = 1
    large = np.repeat(np.repeat(mask, 2, 1), 2, 2)  # in pixels
    inpaint = {"mask_image": channels_first(large), "masked_image_latents": channels_first(x0)}
    inpaint |= {"height": 16, "width": 16}
    whole = np.ones_like(mask)
    for name, extra, own_mask in ((start_name, {}, whole), (mask_name, inpaint, mask)):
        pipe = opened(folder, name, noise, monkeypatch)
        expected = pipe(PROMPTS, **given, **extra).images * 2 - 1
        own = {"start": x0, "strength": np.full(2, strength, np.float32)}
        own |= {"mask": own_mask, "known": x0}
        found = made.batch(flat, text, PROMPTS, SEEDS, None, **own)
        assert np.abs(found - expected).max() <= 2e-5, name
        assert np.abs(expected).max() > 0.1


def test_if_starts_from_a_picture(tmp_path, monkeypatch):
    one_level = {
        "block_out_channels": [16],
        "down_block_types": ["SimpleCrossAttnDownBlock2D"],
        "up_block_types": ["SimpleCrossAttnUpBlock2D"],
        "cross_attention_dim": 128,
    }
    folder = cascades.make(tmp_path / "base", "base", unet=one_level, seed=1)
    stage = families.open_stage(str(folder), kind="base")
    flat = pipeline.read_weights(stage)
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    made = generate.Sampler(stage, generate.Settings("ddpm", STEPS, SCALE), mesh=mesh)
    x0 = np.random.default_rng(1).uniform(-1, 1, (2, *stage.sample_shape)).astype(np.float32)
    strength = np.full(2, 0.6, np.float32)
    found = made.batch(flat, text, PROMPTS, SEEDS, None, start=x0, strength=strength)

    keys = [rng.named(jax.random.key(np.uint32(s)), "sample/base") for s in SEEDS]
    steps = [
        np.stack(
            [jax.random.normal(jax.random.fold_in(k, i + 1), stage.sample_shape) for k in keys]
        )
        for i in range(STEPS - 6, STEPS - 1)  # none in the last step
    ]
    queue = [channels_first(x) for x in (first_noise(stage), *steps)]
    pipe = diffusers.IFImg2ImgPipeline.from_pretrained(folder)
    pipe.to(torch.float32)
    pipe.set_progress_bar_config(disable=True)
    module = __import__(type(pipe).__module__, fromlist=["randn_tensor"])
    for place in (module, scheduling_ddpm):
        monkeypatch.setattr(place, "randn_tensor", lambda *given, **how: queue.pop(0))
    expected = pipe(
        PROMPTS,
        image=channels_first(x0),
        strength=0.6,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        clean_caption=False,
        output_type="np",
    ).images
    assert queue == []
    assert np.abs(found - (expected * 2 - 1)).max() <= 1e-4
