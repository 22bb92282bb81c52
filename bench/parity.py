"""How far every part of every family is from PyTorch diffusers, on small models that it makes.

    python bench/parity.py                # a table, a few minutes
    python bench/parity.py --full_size    # and one forward of a UNet as large as SD 1.5's, 8 GB

Text encoders, UNets, both ways of the autoencoders, and whole pictures of 20 steps per sampler from
the same noise, all in float32. Needs the extra `parity`. Ends with status 1 where a network differs
by more than 1e-4 of its largest output, or a picture by more than 1e-3.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
from diffusers.schedulers import scheduling_ddpm
from diffusers.utils import torch_utils
from PIL import Image
from safetensors.numpy import load_file

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # the makers of small models
import cascades
import latents
import test_parity_latents as published

from dreambooth_jax import generate, pipeline, rng, sharding, tree, weights
from dreambooth_jax.data import images
from dreambooth_jax.diffusion import sampler
from dreambooth_jax.models import unet

PROMPTS = ["a zib dog", "a dog in the snow"]
SEEDS = [11, 2**32 - 5]
STEPS, GUIDANCE, LEVEL = 20, 4.0, 250
NETWORK_LIMIT, SAMPLE_LIMIT = 1e-4, 1e-3
CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "if base": "IFPipeline",
    "if upscaler": "IFSuperResolutionPipeline",
    "embedded base": "IFPipeline",  # trained, and lying in the package
    "embedded upscaler": "IFSuperResolutionPipeline",
}
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
Row = tuple[str, str, float, float, float]


def difference(model: str, part: str, ours: Any, theirs: Any, limit: float) -> Row:
    """A row: model, part, largest absolute difference, the same relative to theirs, the limit."""
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().numpy()
    ours = np.asarray(ours, np.float32)
    assert ours.shape == theirs.shape, (model, part, ours.shape, theirs.shape)
    error = float(np.abs(ours - theirs).max())
    return model, part, error, error / float(np.abs(theirs).max()), limit


def channels_first(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x)).movedim(-1, 1)


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.detach().movedim(1, -1).numpy()


def make(model: str, folder: Path) -> Path:
    """A small model of random weights, in diffusers' layout; the embedded ones as they are."""
    origin, _, kind = model.partition(" ")
    if origin == "embedded":
        return pipeline.locate(origin, kind=kind)
    if model in latents.VARIANTS:
        return latents.make(folder, model)
    one_level = {
        "block_out_channels": [16, 32],
        "cross_attention_dim": 64,
        "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    }
    made = cascades.make(folder, kind, unet=one_level, seed=1)
    # Random layers enlarge a difference of rounding at each step: 20 steps of DDIM made 0.03 of
    # 1e-6 in the first noise, in PyTorch alone. With a quieter last layer they do not.
    file = made / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    weights.save(file, tensors | {"conv_out.weight": 0.2 * tensors["conv_out.weight"]})
    return made


def noises(stage: pipeline.Stage) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Our sampler's draws: the first noise, that of the low-res image, and that of each step."""
    seeds = jnp.asarray(SEEDS, jnp.uint32)
    keys = jax.vmap(lambda s: rng.named(jax.random.key(s), f"sample/{stage.kind}"))(seeds)
    shape = stage.sample_shape

    def step(i: Any) -> Any:
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i + 1), shape))(keys)

    low = jax.vmap(lambda key: rng.named(key, "low_res"))(keys)
    steps = jax.vmap(step)(jnp.arange(STEPS))
    return (
        np.asarray(sampler.first_noise(keys, shape)),
        np.asarray(sampler.first_noise(low, shape)),
        np.asarray(steps),
    )


def networks(model: str, stage: pipeline.Stage, flat: dict[str, Any], pipe: Any) -> Iterator[Row]:
    """Rows of the single networks."""
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    rows = text.rows(PROMPTS)
    asked = {"do_classifier_free_guidance": True, "device": "cpu"}
    with torch.no_grad():
        if stage.latents:
            encoded = pipe.encode_prompt(PROMPTS, num_images_per_prompt=1, **asked)
        else:
            encoded = pipe.encode_prompt(PROMPTS, clean_caption=False, **asked)
    states = text.table.states if stage.family.sized else text.table
    yield difference(model, "text states", states[rows], encoded[0], NETWORK_LIMIT)
    if stage.family.sized:
        pooled = text.table.pooled[rows]
        yield difference(model, "pooled text", pooled, encoded[2], NETWORK_LIMIT)

    random = np.random.default_rng(0)
    x = random.normal(size=(2, *stage.sample_shape)).astype(np.float32)
    t = np.array([3, 801], np.int32)
    here = jax.tree.map(lambda leaf: leaf[rows], text.table)
    extra, added, their_x = {}, {}, x
    if stage.kind == "upscaler":
        level = jnp.array([0, LEVEL], jnp.int32)
        condition = random.normal(size=x.shape).astype(np.float32)
        extra = {"condition": condition, "noise_level": level}
        added = {"class_labels": torch.from_numpy(np.array(level))}
        their_x = np.concatenate([x, condition], -1)
    if stage.family.sized:
        ids = torch.from_numpy(np.tile(stage.whole, (2, 1)))
        added = {"added_cond_kwargs": {"text_embeds": encoded[2], "time_ids": ids}}
    output = jax.jit(lambda p: stage.predict(p, x, t, here, **extra))(flat)
    with torch.no_grad():
        expected = pipe.unet(
            channels_first(their_x), torch.from_numpy(t), encoded[0], **added
        ).sample
    yield difference(model, "UNet", output, channels_last(expected), NETWORK_LIMIT)

    if stage.latents:
        pictures = random.uniform(-1, 1, (2, stage.size, stage.size, 3)).astype(np.float32)
        mean, std = jax.jit(stage.encode_images)(flat, pictures)
        with torch.no_grad():
            found = pipe.vae.encode(channels_first(pictures)).latent_dist
            decoded = pipe.vae.decode(found.mean).sample
        scale = stage.latents.scaling
        pair = np.concatenate([channels_last(found.mean), channels_last(found.std)], -1)
        ours = np.concatenate([mean, std], -1) / scale
        yield difference(model, "VAE encode", ours, pair, NETWORK_LIMIT)
        made = jax.jit(stage.decode)(flat, channels_last(found.mean) * scale)
        yield difference(model, "VAE decode", made, channels_last(decoded), NETWORK_LIMIT)


def sampled(model: str, stage: pipeline.Stage, flat: dict[str, Any], pipe: Any, name: str) -> Row:
    """The row of whole pictures by one sampler."""
    side = stage.size // 2
    low = np.random.default_rng(1).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    settings = generate.Settings(name, STEPS, GUIDANCE, noise_level=LEVEL)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    text = generate.encode(stage, flat, PROMPTS, dtype=jnp.float32)
    low_res = images.to_float(low) if stage.kind == "upscaler" else None
    ours = generate.Sampler(stage, settings, mesh=mesh).batch(flat, text, PROMPTS, SEEDS, low_res)

    first, low_noise, steps = noises(stage)
    config = dict(pipe.scheduler.config)
    if name == "dpmpp_2m":
        config = {key: x for key, x in config.items() if key != "variance_type"}
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
    if name == "ddim":  # IF's pipelines ask every scheduler for it; here no variance is used
        pipe.scheduler.register_to_config(variance_type=None)
    queue = [*([low_noise] if low_res is not None else []), *steps]
    if not stage.latents:
        queue = [first, *queue]

    def pop(shape: Any, *rest: Any, **how: Any) -> torch.Tensor:
        noise = channels_first(queue.pop(0))
        assert tuple(noise.shape) == tuple(shape)
        return noise

    asked: dict[str, Any] = {"guidance_scale": GUIDANCE, "output_type": "np"}
    if name == "dpmpp_2m":  # its own spacing is another one; the times are the caller's choice
        asked["timesteps"] = stage.schedule.times(STEPS)[:-1].tolist()
    else:
        asked["num_inference_steps"] = STEPS
    if stage.latents:
        asked |= {"latents": channels_first(first), "height": stage.size, "width": stage.size}
    else:
        asked["clean_caption"] = False
    if low_res is not None:
        asked |= {"image": [Image.fromarray(x) for x in low], "noise_level": LEVEL}
    places = [pipeline_if, pipeline_if_superresolution, scheduling_ddpm]
    with mock.patch.object(torch_utils, "randn_tensor", pop):
        patches = [mock.patch.object(place, "randn_tensor", pop) for place in places]
        for patch in patches:
            patch.start()
        theirs = pipe(PROMPTS, **asked).images
        for patch in patches:
            patch.stop()
    pipe.scheduler = before
    return difference(model, f"{STEPS} steps, {name}", (ours + 1) / 2, theirs, SAMPLE_LIMIT)


def full_size() -> Row:
    """One forward of a UNet with the 860 million parameters of SD 1.5, random weights."""
    torch.manual_seed(0)
    config = dict(published.SD1)
    model = diffusers.UNet2DConditionModel(**config).eval()
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 64, 64, 4)).astype(np.float32)
    states = random.normal(size=(1, 77, 768)).astype(np.float32)
    t = np.array([500], np.int32)
    with torch.no_grad():
        expected = model(channels_first(x), torch.from_numpy(t), torch.from_numpy(states)).sample
    network = unet.build(config)
    state = model.state_dict()
    flat = {
        path: np.ascontiguousarray(
            weights.turned(path, state.pop(weights.key_of(path)).numpy(), to_file=False)
        )
        for path in network.abstract
    }
    assert not state and tree.count(flat) == 859_520_964
    del model
    output = jax.jit(lambda p: network.bind(p)(x, t, states))(flat)
    expected_last = channels_last(expected)
    return difference("SD 1.5, 860 M", "UNet, 64² latent", output, expected_last, NETWORK_LIMIT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full_size", action="store_true", help="the large UNet as well")
    parser.add_argument("--models", nargs="*", choices=CLASSES, default=list(CLASSES))
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    diffusers.logging.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)

    print(f"{'model':<20}{'part':<24}{'absolute':>12}{'relative':>12}{'limit':>10}")
    worst = True

    def tell(row: Row) -> bool:
        model, part, absolute, relative, limit = row
        fits = relative <= limit
        mark = "" if fits else "  TOO FAR"
        print(f"{model:<20}{part:<24}{absolute:>12.2e}{relative:>12.2e}{limit:>10.0e}{mark}")
        sys.stdout.flush()
        return fits

    with tempfile.TemporaryDirectory() as root:
        for model in args.models:
            folder = make(model, Path(root) / model.replace(" ", "_"))
            kind = "upscaler" if model.endswith("upscaler") else "base"
            stage = pipeline.open_stage(str(folder), kind=kind)
            flat = pipeline.read_weights(stage)
            pipe = getattr(diffusers, CLASSES[model]).from_pretrained(folder).to(torch.float32)
            pipe.set_progress_bar_config(disable=True)
            for row in networks(model, stage, flat, pipe):
                worst &= tell(row)
            for name in SCHEDULERS:
                worst &= tell(sampled(model, stage, flat, pipe, name))
    if args.full_size:
        worst &= tell(full_size())
    sys.exit(0 if worst else 1)


if __name__ == "__main__":
    main()
