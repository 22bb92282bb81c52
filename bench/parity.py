"""How far every part of every family is from PyTorch diffusers, on small models that it makes.

    python bench/parity.py                # a table, a quarter of an hour
    python bench/parity.py --models sd3 klein
    python bench/parity.py --full_size    # and one forward of a UNet as large as SD 1.5's, 8 GB

Each text encoder, what the denoiser gets of them, the denoiser, both ways of the autoencoder, a
train step's loss and gradients of LoRA's factors, and whole pictures of 20 steps from the same
noise by each sampler, all in float32: prompts of two lengths with capitals, and pictures of latent
models that are not square. Needs the extra `parity`. Ends with status 1 where a part differs by
more than 1e-4 of its largest value, or a picture by more than 1e-3.
"""

import argparse
import contextlib
import dataclasses
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
import small_models
import their_side
import torch
import transformers
from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
from diffusers.schedulers import scheduling_ddpm
from diffusers.utils import torch_utils
from PIL import Image

from dreambooth_jax import adapt, families, generate, pipeline, rng, sharding, train, tree, weights
from dreambooth_jax.adapt import lora
from dreambooth_jax.data import images
from dreambooth_jax.diffusion import loss, sampler
from dreambooth_jax.diffusion.path import Flow
from dreambooth_jax.families import flux2, sdxl
from dreambooth_jax.models import unet

PROMPTS = ["a Zib dog", "a photo of a dog in the deep SNOW behind a house"]
SEEDS = [11, 2**32 - 5]
STEPS, GUIDANCE, LEVEL, LAMBDA = 20, 4.0, 250, 0.7
NETWORK_LIMIT, SAMPLE_LIMIT = 1e-4, 1e-3
SIZE = (24, 16)  # height and width of latent models' pictures
SCALES = {"flux dev": 3.5, "flux schnell": 1.0, "z_image": 5.0}  # as published; others' is 4
SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
SD15 = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
Row = tuple[str, float, float, float]


@dataclasses.dataclass(frozen=True)
class Pair:
    """A stage with its weights, and PyTorch's pipeline of the same folder."""

    name: str
    stage: pipeline.Stage
    flat: dict[str, Any]
    pipe: Any

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of a sample."""
        if not self.stage.codec.is_latent:
            return self.stage.sample_shape
        height, width = (side // self.stage.codec.factor for side in SIZE)
        return height, width, self.stage.channels

    @property
    def denoiser(self) -> Any:
        """PyTorch's network."""
        return getattr(self.pipe, self.stage.denoiser.component)


def difference(part: str, ours: Any, theirs: Any, limit: float = NETWORK_LIMIT) -> Row:
    """A row: part, largest absolute difference, the same relative to theirs, the limit."""
    if isinstance(theirs, torch.Tensor):
        theirs = theirs.detach().numpy()
    ours = np.asarray(ours, np.float32)
    assert ours.shape == theirs.shape, (part, ours.shape, theirs.shape)
    error = float(np.abs(ours - theirs).max())
    return part, error, error / float(np.abs(theirs).max()), limit


def texts(pair: Pair) -> Iterator[Row]:
    """Rows of each text encoder, and of what the denoiser is given."""
    stage, flat = pair.stage, pair.flat
    tokens = stage.tokens(PROMPTS)
    for name, encoder in stage.conditioner.encoders.items():
        ids, mask = (tokens[f"{kind}{encoder.suffix}"] for kind in ("ids", "mask"))
        network = encoder.network.bind(tree.prefixed(flat, name))
        theirs, own = getattr(pair.pipe, name), type(getattr(pair.pipe, name)).__name__
        count, after = 0, ()
        if own.startswith("CLIP"):
            found = jax.jit(network)(ids)._asdict()
        elif own.startswith("T5"):
            # The transformers of flows were trained on states that attend to padding.
            mask = np.ones_like(mask) if isinstance(stage.path, Flow) else mask
            found = {"states": jax.jit(network)(ids, mask)}
        else:
            count = len(network.model.layers)
            after = small_models.READ if pair.name == "klein" else (count,)
            states = jax.jit(lambda i, m, f=network, at=after: f(i, m, after=at))(ids, mask)
            found = {f"after {k}": x for k, x in zip(after, states, strict=True)}
        with torch.no_grad():
            wanted = their_side.encoder(theirs, *their_side.torch_of((ids, mask)), after)
        for part, expected in wanted.items():
            yield difference(f"{name}, {part}", found[part], expected)
    table = jax.jit(lambda p: stage.encode_text(p, tokens, dtype=jnp.float32))(flat)
    with torch.no_grad():
        wanted = their_side.encoded(pair.pipe, PROMPTS)
    states = table.states if hasattr(table, "states") else table
    if hasattr(table, "mask"):
        states = np.asarray(states)[np.asarray(table.mask) > 0]
    yield difference("text states", states, wanted["text states"])
    if "pooled text" in wanted:
        yield difference("pooled text", table.pooled, wanted["pooled text"])


def given(pair: Pair) -> tuple[Any, np.ndarray, np.ndarray, dict[str, Any]]:
    """Embeddings, a noisy sample, what the network is told of its level, and what else it reads."""
    stage, random = pair.stage, np.random.default_rng(0)
    table = generate.encode(stage, pair.flat, PROMPTS, dtype=jnp.float32)
    rows = table.rows(PROMPTS)
    cond = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], table.table)
    x = random.normal(size=(2, *pair.shape)).astype(np.float32)
    extra: dict[str, Any] = {}
    if stage.kind == "upscaler":
        extra["condition"] = random.normal(size=x.shape).astype(np.float32)
        extra["noise_level"] = np.array([0, LEVEL], np.float32)
    if stage.denoiser.sized:
        extra["sizes"] = np.tile(np.asarray(sdxl.whole(*SIZE)), (2, 1))
    return cond, x, np.array([3, 801], np.float32), extra


def networks(pair: Pair) -> Iterator[Row]:
    """Rows of the denoiser and of the autoencoder."""
    stage, flat, pipe = pair.stage, pair.flat, pair.pipe
    cond, x, t, extra = given(pair)
    output = jax.jit(lambda p: stage.predict(p, x, t, cond, **extra))(flat)
    with torch.no_grad():
        args = their_side.torch_of((x, t, cond, extra))
        expected = their_side.denoised(pipe, pair.denoiser, *args)
    yield difference(stage.denoiser.component, output, expected)
    if not stage.codec.is_latent:
        return
    pictures = np.random.default_rng(1).uniform(-1, 1, (2, *SIZE, 3)).astype(np.float32)
    mean, std = jax.jit(stage.encode_images)(flat, pictures)
    with torch.no_grad():
        their_mean, their_std = their_side.latents(pipe, pictures)
        decoded = their_side.pictures(pipe, their_mean)
    yield difference("VAE encode, mean", mean, their_mean)
    yield difference("VAE encode, deviation", std, their_std)
    made = jax.jit(stage.decode)(flat, their_mean.numpy())
    yield difference("VAE decode", made, decoded)


def step(pair: Pair) -> Iterator[Row]:
    """Rows of one train step: its loss, and the gradients of LoRA's factors."""
    stage, random = pair.stage, np.random.default_rng(2)
    cond, _, _, extra = given(pair)
    settings = adapt.AdaptSettings("lora", 2, 3.0, stage.family.lora_targets, False, "full")
    adapter, component = adapt.make(settings, seed=0), stage.denoiser.component
    rules = ((f"{component}/{stage.denoiser.tables}", False), (f"{component}/.*", True))
    trainable, frozen = adapter.init(pair.flat, (*rules, (".*", False)))
    trainable = {
        path: x + 0.1 * random.normal(size=x.shape).astype(np.float32)
        for path, x in trainable.items()
    }
    recipe = train.Recipe(seed=0, prior_loss_weight=LAMBDA)
    batch: dict[str, Any] = {
        "mean": random.normal(size=(2, *pair.shape)).astype(np.float32),
        "prompt": np.arange(2, dtype=np.int32),
        "is_prior": np.array([False, True]),
    }
    if stage.codec.is_latent:
        batch["std"] = random.uniform(0.01, 0.1, batch["mean"].shape).astype(np.float32)
    batch |= {name: extra[name] for name in ("sizes",) if name in extra}

    @jax.jit
    def ours(trainable: Any) -> Any:
        rows = train.draw(stage, recipe, batch, jnp.int32(3))
        rows |= {name: extra[name] for name in ("condition", "noise_level") if name in extra}
        drawn = dict(rows)
        rows |= {name: batch[name] for name in ("prompt", "is_prior", "sizes") if name in batch}
        rows["weights"] = loss.row_weights(batch["is_prior"], LAMBDA)
        how = {"recipe": recipe, "stage": stage, "adapter": adapter}
        given = {"weights": frozen, "table": cond}
        return train.gradients(trainable, given, rows, **how), drawn, stage.path.told(rows["t"])

    (value, _, grads), drawn, told = ours(trainable)
    factors = {
        path: leaf.requires_grad_()
        for path, leaf in their_side.torch_of(
            {p: np.array(x) for p, x in trainable.items()}
        ).items()
    }
    parameters = dict(pair.denoiser.named_parameters())
    for path in lora.adapted(trainable):
        key = weights.key_of(path.partition("/")[2])
        down, up = factors[f"{path}/{lora.DOWN}"], factors[f"{path}/{lora.UP}"]
        parameters[key] = parameters[key].detach() + 3.0 / len(up) * (down @ up).T

    def changed(*args: Any, **how: Any) -> Any:
        return torch.func.functional_call(pair.denoiser, parameters, args, how)

    x0, noise, told = their_side.torch_of((drawn["x0"], drawn["noise"], told))
    xt, target = their_side.noised(pair.pipe, x0, noise, told)
    args = (xt, told, *their_side.torch_of((cond, extra)))
    output = their_side.denoised(pair.pipe, changed, *args)[..., : x0.shape[-1]]
    square = (output - target).square().mean((1, 2, 3))
    total = square[0] + LAMBDA * square[1]
    total.backward()
    yield difference("train step, loss", np.array([value]), total.detach()[None])
    joined = np.concatenate([np.ravel(grads[path]) for path in sorted(factors)])
    judged = torch.cat([factors[path].grad.ravel() for path in sorted(factors)])
    yield difference("train step, gradients", joined, judged)


def noises(pair: Pair) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Our sampler's draws: the first noise, that of the low-res image, and that of each step."""
    seeds = jnp.asarray(SEEDS, jnp.uint32)
    keys = jax.vmap(lambda s: rng.named(jax.random.key(s), f"sample/{pair.stage.kind}"))(seeds)

    def one(i: Any) -> Any:
        return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i + 1), pair.shape))(keys)

    low = jax.vmap(lambda key: rng.named(key, "low_res"))(keys)
    return (
        np.asarray(sampler.first_noise(keys, pair.shape)),
        np.asarray(sampler.first_noise(low, pair.shape)),
        np.asarray(jax.vmap(one)(jnp.arange(STEPS))),
    )


def drawn(pair: Pair, name: str, scale: float, low: np.ndarray | None) -> np.ndarray:
    """Our pictures `[2,H,W,3]` in [0, 1]."""
    stage = pair.stage
    size = SIZE if stage.codec.is_latent else None
    settings = generate.Settings(name, STEPS, scale, noise_level=LEVEL, size=size)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    text = generate.encode(stage, pair.flat, PROMPTS, dtype=jnp.float32)
    low_res = None if low is None else images.to_float(low)
    made = generate.Sampler(stage, settings, mesh=mesh).batch(
        pair.flat, text, PROMPTS, SEEDS, low_res
    )
    return (made + 1) / 2


def samples(pair: Pair) -> Iterator[Row]:
    """Rows of whole pictures: of a flow by its pipeline's own steps, else by each sampler."""
    part = f"{STEPS} steps"
    if isinstance(pair.stage.path, Flow):
        scale = SCALES.get(pair.name, GUIDANCE)
        how = {"steps": STEPS, "scale": scale}
        theirs = their_side.flow_pictures(pair.pipe, PROMPTS, noises(pair)[0], **how)
        yield difference(f"{part}, Euler", drawn(pair, "ddim", scale, None), theirs, SAMPLE_LIMIT)
        return
    side = pair.stage.size[0] // 2
    small = np.random.default_rng(1).integers(0, 256, (2, side, side, 3)).astype(np.uint8)
    low = small if pair.stage.kind == "upscaler" else None
    for name in SCHEDULERS:
        ours = drawn(pair, name, GUIDANCE, low)
        yield difference(f"{part}, {name}", ours, unet_pictures(pair, name, low), SAMPLE_LIMIT)


def unet_pictures(pair: Pair, name: str, low: np.ndarray | None) -> np.ndarray:
    """The pictures of a pipeline with a UNet by one scheduler, from the noise that ours draws."""
    stage, pipe = pair.stage, pair.pipe
    first, low_noise, steps = noises(pair)
    config, before = dict(pipe.scheduler.config), pipe.scheduler
    if name == "dpmpp_2m":
        config = {key: x for key, x in config.items() if key != "variance_type"}
    pipe.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(config)
    if name == "ddim":  # IF's pipelines ask every scheduler for it; here no variance is used
        pipe.scheduler.register_to_config(variance_type=None)
    queue = [*([low_noise] if low is not None else []), *steps]
    queue = queue if stage.codec.is_latent else [first, *queue]

    def pop(shape: Any, *rest: Any, **how: Any) -> torch.Tensor:
        noise = their_side.first(queue.pop(0))
        assert tuple(noise.shape) == tuple(shape)
        return noise

    asked: dict[str, Any] = {"guidance_scale": GUIDANCE, "output_type": "np"}
    if name == "dpmpp_2m":  # its own spacing is another one; the times are the caller's choice
        asked["timesteps"] = stage.path.times(STEPS)[:-1].astype(int).tolist()
    else:
        asked["num_inference_steps"] = STEPS
    if stage.codec.is_latent:
        asked |= {"latents": their_side.first(first), "height": SIZE[0], "width": SIZE[1]}
    else:
        asked["clean_caption"] = False
    if low is not None:
        asked |= {"image": [Image.fromarray(x) for x in low], "noise_level": LEVEL}
    with contextlib.ExitStack() as stack:
        for place in (torch_utils, pipeline_if, pipeline_if_superresolution, scheduling_ddpm):
            stack.enter_context(mock.patch.object(place, "randn_tensor", pop))
        made = pipe(PROMPTS, **asked).images
    pipe.scheduler = before
    return made


def full_size() -> Iterator[Row]:
    """One forward of a UNet with the 860 million parameters of SD 1.5, random weights."""
    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(**SD15).eval()
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 64, 64, 4)).astype(np.float32)
    states = random.normal(size=(1, 77, 768)).astype(np.float32)
    t = np.array([500], np.int32)
    with torch.no_grad():
        args = their_side.torch_of((t, states))
        expected = their_side.last(model(their_side.first(x), *args).sample)
    network, state = unet.build(SD15), model.state_dict()
    flat = {
        path: np.ascontiguousarray(
            weights.turned(path, state.pop(weights.key_of(path)).numpy(), to_file=False)
        )
        for path in network.abstract
    }
    assert not state and tree.count(flat) == 859_520_964
    del model
    output = jax.jit(lambda p: network.bind(p)(x, t, states))(flat)
    yield difference("UNet, 64² latent", output, expected)


def rows_of(model: str, folder: Path) -> Iterator[Row]:
    """All rows of one model."""
    where, pipe = small_models.make(model, folder)
    kind = "upscaler" if model.endswith("upscaler") else "base"
    size = None if model in small_models.EMBEDDED or model.startswith("if") else 16
    stage = families.open_stage(str(where), kind=kind, resolution=size)
    pipe.set_progress_bar_config(disable=True)
    pair = Pair(model, stage, pipeline.read_weights(stage), pipe)
    for part in (texts, networks, step, samples):
        yield from part(pair)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full_size", action="store_true", help="the large UNet as well")
    known = small_models.MODELS
    parser.add_argument("--models", nargs="*", choices=known, default=list(known))
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore")
    for library in (transformers.logging, diffusers.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    logging.getLogger().setLevel(logging.ERROR)
    flux2.READ = small_models.READ  # of a small Qwen3

    print(f"{'model':<20}{'part':<32}{'absolute':>12}{'relative':>12}{'limit':>10}")
    fits = True
    with tempfile.TemporaryDirectory() as root:
        tables = [
            (name, rows_of(name, Path(root) / name.replace(" ", "_"))) for name in args.models
        ]
        tables += [("SD 1.5, 860 M", full_size())] if args.full_size else []
        for model, rows in tables:
            for part, absolute, relative, limit in rows:
                mark = "" if relative <= limit else "  TOO FAR"
                fits &= relative <= limit
                print(
                    f"{model:<20}{part:<32}{absolute:>12.2e}{relative:>12.2e}{limit:>10.0e}{mark}",
                    flush=True,
                )
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    main()
