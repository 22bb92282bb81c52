"""Teaches a small flow transformer, a Z-Image of 2.85 million parameters, on the embedded world.

    python tools/teach_flow.py CACHE OUT --pictures 100000

CACHE keeps material and scenes; OUT gets `flow`, an ordinary diffusers folder, with the weights'
average, and `checkpoints`: Ctrl-C saves, the same command resumes. The autoencoder comes first,
then transformer and text encoder are trained together by the project's own train step.
`bench/flow.py CACHE OUT/flow` measures DreamBooth on it. Nothing of it is shipped.
"""

import argparse
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flow_folder import CHANNELS, PIXELS, initial, write_skeleton, write_weights
from make_embedded_base import HELD_OUT_SEED, Training, run_to_its_end
from nouns import typical_captions
from recipes import Recipe
from recorded import Batches, Recorded

from dreambooth_jax import families, pipeline, rng, tree, weights
from dreambooth_jax.models import layers

KL_WEIGHT = 1e-4  # of a latent's divergence from N(0, 1), per number, beside the error per pixel
FIRST_DEVIATION = 0.05  # of latents, before the autoencoder has learned anything
STEM = "diffusion_pytorch_model"


@dataclasses.dataclass(frozen=True)
class FlowRecipe(Recipe):
    """The recipe of the flow transformer; its pictures have one size."""

    small: int = 0
    kind: str = "flow"

    @property
    def size(self) -> int:
        """Pixels a side of the pictures."""
        return PIXELS


RECIPES = {
    "adamw": FlowRecipe(ema=0.995),
    "muon": FlowRecipe(optimizer="muon", learning_rate=2e-3, ema=0.995),
}


def autoencoder(network: layers.Network, scenes: Recorded, *, pictures: int) -> tree.Flat:
    """Returns the weights of an autoencoder that has seen so many scenes, 16 a step."""
    rows, seed = 16, HELD_OUT_SEED
    steps = pictures // rows
    flat = layers.initial(network, seed)
    kernel = flat["encoder/conv_out/kernel"]
    drawn = np.random.default_rng(seed).normal(size=kernel.shape)
    flat["encoder/conv_out/kernel"] = (drawn / np.sqrt(kernel[..., 0].size)).astype(np.float32)
    flat["encoder/conv_out/bias"][CHANNELS:] = 2 * np.log(FIRST_DEVIATION)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 50, steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))

    def loss(flat: tree.Flat, x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        coder = network.bind(flat)
        mean, std = coder.encode(x)
        out = coder.decode(mean + std * jax.random.normal(key, mean.shape))
        error = jnp.square(out - x).mean()
        divergence = 0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std)
        return error + KL_WEIGHT * divergence.mean(), error

    @jax.jit
    def step(flat: tree.Flat, moments: Any, x: jax.Array, key: jax.Array) -> Any:
        (_, error), grads = jax.value_and_grad(loss, has_aux=True)(flat, x, key)
        updates, moments = tx.update(grads, moments, flat)
        return optax.apply_updates(flat, updates), moments, error

    moments = tx.init(flat)
    for number in range(steps):
        found, _, _ = scenes.rows(number * rows, rows)
        x = found.astype(np.float32) / np.float32(127.5) - 1
        flat, moments, error = step(flat, moments, x, rng.key(seed, number, "autoencoder"))
        if number % 100 == 0 or number == steps - 1:
            decibels = 10 * np.log10(4 / float(error))
            logging.info("autoencoder, step %d of %d: %.1f dB", number, steps, decibels)
    return {path: np.asarray(leaf) for path, leaf in flat.items()}


class Latents(Batches):
    """Batches of an autoencoder's latents: mean, deviation, and weights of their positions."""

    def __init__(self, scenes: Batches, coder: tree.Flat):
        super().__init__(scenes.recorded, scenes.stage, thing=scenes.thing)
        self.encode = jax.jit(functools.partial(scenes.stage.encode_images, coder))

    def batch(self, step: int, *, first: int, count: int, size: int) -> dict[str, np.ndarray]:
        """Returns scenes `first` to `first + count` as the train step takes them."""
        found = super().batch(step, first=first, count=count, size=size)
        factor = self.stage.codec.factor
        found["mean"], found["std"] = map(np.asarray, self.encode(found["mean"]))
        if "pixel_weights" in found:
            shape = (count, size // factor, factor, size // factor, factor, 1)
            found["pixel_weights"] = found["pixel_weights"].reshape(shape).mean((2, 4))
        return found


@dataclasses.dataclass(frozen=True)
class FlowTraining(Training):
    """The training of the flow transformer, after that of its autoencoder."""

    coder_pictures: int = 20_000

    @property
    def folder(self) -> Path:
        """The model folder."""
        return self.out / self.recipe.kind

    @functools.cached_property
    def coder(self) -> tree.Flat:
        """The autoencoder's weights, with their component; trained when they are absent."""
        vae, made = self.folder / "vae", self.folder / "vae" / f"{STEM}.safetensors"
        if not made.is_file():
            write_skeleton(self.folder, typical_captions())
            stage = families.open_stage(str(self.folder), kind="base")
            scenes = self.recorded("train", shards=self.shards, seed=0)
            flat = autoencoder(stage.networks["vae"], scenes, pictures=self.coder_pictures)
            pixels = scenes.rows(self.coder_pictures, 500)[0]
            x = pixels.astype(np.float32) / np.float32(127.5) - 1
            latents = np.asarray(jax.jit(stage.encode_images)(tree.with_prefix(flat, "vae"), x)[0])
            config = json.loads((vae / "config.json").read_text())
            config["scaling_factor"] = 1 / float(latents.std())
            config["shift_factor"] = float(latents.mean())
            (vae / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            weights.write(vae, flat, dtype="float32", stem=STEM)
        network = families.open_stage(str(self.folder), kind="base").networks["vae"]
        return tree.with_prefix(weights.read(vae, network.abstract), "vae")

    @functools.cached_property
    def stage(self) -> pipeline.Stage:
        """The stage in its folder, once the autoencoder and the scale of its latents are known."""
        assert self.coder
        return families.open_stage(str(self.folder), kind="base")

    @property
    def learned(self) -> str:
        """Regex of the leaves that are trained."""
        return "(transformer|text_encoder)/.*"

    def initial(self) -> tree.Flat:
        """The weights that training begins with."""
        return initial(self.stage, seed=self.recipe.seed) | self.coder

    def write(self, flat: tree.Flat) -> None:
        """Writes the weights of transformer and text encoder."""
        write_weights(self.folder, flat)

    def scenes(self, name: str, *, shards: int, seed: int, thing: float = 1.0) -> Batches:
        """Batches of the scenes of one seed, as latents."""
        plain = super().scenes(name, shards=shards, seed=seed, thing=thing)
        return Latents(plain, self.coder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cache", type=Path, help="folder of the material and the scenes")
    parser.add_argument("out", type=Path, help="folder of checkpoints, curve and flow/")
    parser.add_argument("--recipe", choices=RECIPES, default="muon")
    parser.add_argument("--pictures", type=int, default=100_000, help="to be seen in all")
    parser.add_argument("--coder_pictures", type=int, default=20_000, help="of the autoencoder")
    parser.add_argument("--shards", type=int, default=10, help="of 10,000 scenes, then again")
    parser.add_argument("--save_every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--check_every", type=int, default=250, help="steps between errors")
    args = parser.parse_args()
    recipe, given = RECIPES[args.recipe], (args.cache, args.out, args.shards)
    run_to_its_end(FlowTraining(recipe, *given, coder_pictures=args.coder_pictures), args)


if __name__ == "__main__":
    main()
