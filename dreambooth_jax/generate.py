"""Pictures from prompts: the jitted sampler of one stage, and the cascade of two.

Batches are spread over the mesh. Image i is a function of its own seed alone: neither the batch it
is drawn in nor the number of devices changes it.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from dreambooth_jax import rng, sharding, tree
from dreambooth_jax.data import images
from dreambooth_jax.diffusion import guidance, sampler
from dreambooth_jax.pipeline import Stage

Array = jax.Array
DRAWING = ("unet/", "vae/")  # the weights that a sampler needs


TEXTS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a stage samples; `noise_level` is that of an upscaler's low-res input, as a time step."""

    name: str
    num_steps: int
    guidance_scale: float
    threshold: str = "model"
    noise_level: int = 0


@dataclasses.dataclass(frozen=True)
class Text:
    """Prompts and their embeddings (`Stage.encode_text`); row 0 is the empty prompt."""

    prompts: tuple[str, ...]
    table: Any

    def rows(self, prompts: Sequence[str]) -> np.ndarray:
        """The row of each prompt, int32 `[N]`."""
        index = {prompt: row for row, prompt in enumerate(self.prompts)}
        return np.array([index[prompt] for prompt in prompts], np.int32)


def encode(
    stage: Stage,
    params: tree.Flat,
    prompts: Sequence[str],
    *,
    dtype: Any,
    keep: str | Sequence[str] = (),
) -> Text:
    """Encodes the empty prompt and each other prompt once (`Tokenizer.encode` explains `keep`).

    At most `TEXTS_AT_ONCE` in one call: there may be a caption for every picture.
    """
    unique = tuple(dict.fromkeys(("", *prompts)))
    tokens = stage.tokens(unique, keep=keep)
    encoders = {path: leaf for path, leaf in params.items() if path.startswith("text_encoder")}
    jitted = jax.jit(functools.partial(stage.encode_text, dtype=dtype))
    count, block = len(unique), min(len(unique), TEXTS_AT_ONCE)
    # The last block begins earlier rather than be shorter: one program for all.
    starts = [min(start, count - block) for start in range(0, count, block)]
    parts = [
        jitted(encoders, {name: x[start : start + block] for name, x in tokens.items()})
        for start in starts
    ]
    if len(parts) > 1:
        parts[-1] = jax.tree.map(lambda x: x[starts[-2] + block - starts[-1] :], parts[-1])
    table = parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return Text(unique, table)


def sample_batch(
    params: Mapping[str, Array],
    table: Any,
    rows: Array,
    seeds: Array,
    low_res: Array | None,
    *,
    stage: Stage,
    settings: Settings,
    shards: int = 1,
) -> Array:
    """Pictures `[B,H,W,3]` in [-1, 1] for table rows `[B]` and seeds `[B]`; pure, to be jitted.

    shards: how many devices share the rows.
    """
    keys = jax.vmap(lambda seed: rng.named(jax.random.key(seed), f"sample/{stage.kind}"))(seeds)
    shape = stage.sample_shape
    extra: dict[str, Any] = {}
    if low_res is not None:
        level = jnp.full(rows.shape, settings.noise_level, jnp.int32)
        low_keys = jax.vmap(lambda key: rng.named(key, "low_res"))(keys)
        extra = {
            "condition": stage.condition(low_res, sampler.first_noise(low_keys, shape), level),
            "noise_level": level,
        }
    text = jax.tree.map(lambda x: x[rows], table)
    guided = settings.guidance_scale != 1.0

    def twice(x: Array, y: Array) -> Array:
        """Rows of x and y in turn, so that each device keeps its own."""
        return jnp.stack([x, y], 1).reshape(-1, *x.shape[1:])

    if guided:
        empty = stage.unguided(table)
        text = jax.tree.map(lambda x, y: twice(x, jnp.broadcast_to(y, x.shape)), text, empty)
        extra = {name: twice(value, value) for name, value in extra.items()}

    def denoise(xt: Array, t: Array) -> Array:
        if not guided:
            return stage.predict(params, xt, t, text, **extra)
        output = stage.predict(params, twice(xt, xt), twice(t, t), text, **extra)
        output = output.reshape(-1, 2, *output.shape[1:])
        return guidance.classifier_free(
            output[:, 0], output[:, 1], settings.guidance_scale, channels=stage.channels
        )

    x0 = sampler.sample(
        denoise,
        sampler.first_noise(keys, shape),
        keys,
        schedule=stage.schedule,
        rule=sampler.SAMPLERS[settings.name],
        times=stage.schedule.times(settings.num_steps),
        threshold=guidance.THRESHOLDS[settings.threshold](stage.schedule),
    )
    return jnp.clip(stage.decode(params, x0, shards=shards), -1.0, 1.0)


class Sampler:
    """The jitted sampler of one stage; compiled once per batch size."""

    def __init__(self, stage: Stage, settings: Settings, *, mesh: Mesh):
        self.stage, self.settings, self.mesh = stage, settings, mesh
        shards = sharding.row_shards(mesh)
        pure = functools.partial(sample_batch, stage=stage, settings=settings, shards=shards)
        # A program of params, table of texts, rows, seeds and low-res pictures.
        self.program = jax.jit(sharding.traced_for(mesh, pure), out_shardings=sharding.rows(mesh))

    def batch(
        self,
        params: tree.Flat,
        text: Text,
        prompts: Sequence[str],
        seeds: Sequence[int],
        low_res: np.ndarray | None,
    ) -> np.ndarray:
        """Pictures float32 `[B,H,W,C]` in [-1, 1], one per prompt and seed.

        low_res: float32 `[B,h,w,C]` for an upscaler, None for a base. B must divide over the mesh.
        """
        split = functools.partial(sharding.put, sharding=sharding.rows(self.mesh))
        drawing = {path: x for path, x in params.items() if path.startswith(DRAWING)}
        rows, seeds32 = split(text.rows(prompts)), split(np.asarray(seeds, np.uint32))
        low = None if low_res is None else split(low_res)
        return sharding.fetch(self.program(drawing, text.table, rows, seeds32, low))


@dataclasses.dataclass(frozen=True)
class Cascade:
    """The stages of a model in order, ready to draw: base, then (where there is one) the upscaler.

    Every batch has `batch_size` rows, a short one is filled up with repeats: one program serves
    them all.
    """

    samplers: Sequence[Sampler]
    texts: Sequence[Text]
    batch_size: int

    def draw(
        self,
        params: Sequence[tree.Flat],
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        label: str,
        on_batch: Callable[[np.ndarray], None] | None = None,
    ) -> list[np.ndarray]:
        """uint8 pictures `[N,H,W,C]` of every stage, in order; a progress bar counts images.

        on_batch: is given the last stage's pictures of every batch as soon as they are drawn.
        """
        kept: list[list[np.ndarray]] = [[] for _ in self.samplers]
        bar = tqdm(
            total=len(prompts),
            desc=label,
            unit="image",
            disable=jax.process_index() != 0,
            mininterval=0.5 if sys.stderr.isatty() else 15,
        )
        with bar:
            for start in range(0, len(prompts), self.batch_size):
                chosen = [i % len(prompts) for i in range(start, start + self.batch_size)]
                count = min(self.batch_size, len(prompts) - start)
                row_prompts = [prompts[i] for i in chosen]
                row_seeds = [seeds[i] for i in chosen]
                low = None
                stages = zip(kept, self.samplers, self.texts, params, strict=True)
                for keep, stage_sampler, text, flat in stages:
                    made = stage_sampler.batch(flat, text, row_prompts, row_seeds, low)
                    keep.append(_as_bytes(made)[:count])
                    low = images.to_float(_as_bytes(made))
                bar.update(count)
                if on_batch is not None:
                    on_batch(kept[-1][-1])
        return [np.concatenate(keep) for keep in kept]


def _as_bytes(x: np.ndarray) -> np.ndarray:
    """uint8; what is not finite becomes black, which the caller's quality gate recognises."""
    return images.to_uint8(np.where(np.isfinite(x), x, -1.0).astype(np.float32))
