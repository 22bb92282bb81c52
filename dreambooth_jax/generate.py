"""Pictures from prompts: the jitted sampler of one stage, its batches spread over the mesh, and the cascade of two.

Image i is a function of its own seed alone: neither the batch it is drawn in nor the number of devices changes it.
"""

import dataclasses
import functools
import sys
from collections.abc import Mapping, Sequence
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


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a stage samples; `noise_level` is the time step of the noise on an upscaler's low-res input."""

    name: str
    num_steps: int
    guidance_scale: float
    threshold: str = "model"
    noise_level: int = 0


@dataclasses.dataclass(frozen=True)
class Text:
    """Prompts and their embeddings `[P,L,D]`; row 0 is the empty prompt, for guidance."""

    prompts: tuple[str, ...]
    table: Any

    def rows(self, prompts: Sequence[str]) -> np.ndarray:
        """The row of each prompt, int32 `[N]`."""
        index = {prompt: row for row, prompt in enumerate(self.prompts)}
        return np.array([index[prompt] for prompt in prompts], np.int32)


def encode(stage: Stage, params: tree.Flat, prompts: Sequence[str], *, dtype: Any, keep: str | None = None) -> Text:
    """Encodes the empty prompt and each different prompt once (see `Tokenizer.encode` for `keep`)."""
    unique = tuple(dict.fromkeys(("", *prompts)))
    tokens = stage.tokenizer.encode(unique, keep=keep)
    encoder = {path: leaf for path, leaf in params.items() if path.startswith("text_encoder/")}
    return Text(unique, jax.jit(functools.partial(stage.encode_text, dtype=dtype))(encoder, tokens["ids"], tokens["mask"]))


def sample_batch(
    params: Mapping[str, Array],
    table: Array,
    rows: Array,
    seeds: Array,
    low_res: Array | None,
    *,
    stage: Stage,
    settings: Settings,
) -> Array:
    """x0 `[B,H,W,C]` in [-1, 1] for table rows `[B]` and seeds `[B]`; pure, to be jitted."""
    keys = jax.vmap(lambda seed: rng.named(jax.random.key(seed), f"sample/{stage.kind}"))(seeds)
    shape = (stage.size, stage.size, stage.channels)
    extra: dict[str, Array] = {}
    if low_res is not None:
        level = jnp.full(rows.shape, settings.noise_level, jnp.int32)
        low_keys = jax.vmap(lambda key: rng.named(key, "low_res"))(keys)
        extra = {"condition": stage.condition(low_res, sampler.first_noise(low_keys, shape), level), "noise_level": level}
    text = table[rows]
    guided = settings.guidance_scale != 1.0

    def twice(x: Array, y: Array) -> Array:
        """Rows of x and y in turn, so that each device keeps its own."""
        return jnp.stack([x, y], 1).reshape(-1, *x.shape[1:])

    if guided:
        text = twice(text, jnp.broadcast_to(table[:1], text.shape))
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
    return jnp.clip(x0, -1.0, 1.0)


class Sampler:
    """The jitted sampler of one stage; compiled once per batch size."""

    def __init__(self, stage: Stage, settings: Settings, *, mesh: Mesh):
        self.stage, self.settings, self.mesh = stage, settings, mesh
        rows = sharding.rows(mesh)
        self._call = jax.jit(functools.partial(sample_batch, stage=stage, settings=settings), out_shardings=rows)

    def batch(
        self, params: tree.Flat, text: Text, prompts: Sequence[str], seeds: Sequence[int], low_res: np.ndarray | None
    ) -> np.ndarray:
        """Pictures float32 `[B,H,W,C]` in [-1, 1], one per prompt and seed; B must divide over the mesh.

        low_res: float32 `[B,h,w,C]` for an upscaler, None for a base.
        """
        rows = sharding.rows(self.mesh)
        unet = {path: leaf for path, leaf in params.items() if path.startswith("unet/")}
        low = None if low_res is None else sharding.put(low_res, rows)
        seeds32 = np.asarray(seeds, np.uint32)
        made = self._call(unet, text.table, sharding.put(text.rows(prompts), rows), sharding.put(seeds32, rows), low)
        return sharding.fetch(made)


@dataclasses.dataclass(frozen=True)
class Cascade:
    """The stages of a model in order, ready to draw: base, then (where there is one) the upscaler.

    Every batch has `batch_size` rows, a short one is filled up with repeats: one program serves them all.
    """

    samplers: Sequence[Sampler]
    texts: Sequence[Text]
    batch_size: int

    def draw(
        self, params: Sequence[tree.Flat], prompts: Sequence[str], seeds: Sequence[int], *, label: str
    ) -> list[np.ndarray]:
        """uint8 pictures of every stage, `[N,H,W,C]` each, in order of the stages; a progress bar counts images."""
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
                chosen = np.arange(start, start + self.batch_size) % len(prompts)
                count = min(self.batch_size, len(prompts) - start)
                low = None
                for keep, sampler_, text, flat in zip(kept, self.samplers, self.texts, params, strict=True):
                    made = sampler_.batch(flat, text, [prompts[i] for i in chosen], [seeds[i] for i in chosen], low)
                    keep.append(_as_bytes(made)[:count])
                    low = images.to_float(_as_bytes(made))
                bar.update(count)
        return [np.concatenate(keep) for keep in kept]


def _as_bytes(x: np.ndarray) -> np.ndarray:
    """uint8; what is not finite becomes black, which the caller's quality gate recognises."""
    return images.to_uint8(np.where(np.isfinite(x), x, -1.0).astype(np.float32))
