"""Pictures from prompts: the jitted sampler of one stage, and the cascade of two.

Batches are spread over the mesh. Image i is a function of its own seed alone: neither the batch it
is drawn in nor the number of devices changes it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dreambooth_jax import rng, sharding, tree
from dreambooth_jax.data import images
from dreambooth_jax.diffusion import editing, guidance, sampler
from dreambooth_jax.models import rounded, words
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.progress import compiling, progress

Array = jax.Array
TEXTS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sampling settings of a stage.

    noise_level: of an upscaler's low-res input, as a time step.
    size: height and width in pixels, instead of the stage's own.
    spacing: of the levels that are visited, "model" or one that `sampler.levels` knows.
    guidance_rescale: share, 0 to 1, of `guidance.classifier_free`.
    guidance_interval: shares of the steps between which there is guidance.
    products: "bfloat16" rounds the factors of products of float32 networks (`models.rounded`).
    """

    name: str
    num_steps: int
    guidance_scale: float
    threshold: str = "model"
    noise_level: int = 0
    size: tuple[int, int] | None = None
    spacing: str = "model"
    guidance_rescale: float = 0.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    products: str = "float32"

    def told(self) -> dict[str, Any]:
        """The settings as they are kept beside pictures; without the later ones at their defaults.

        So pictures that were drawn before these settings existed are still known by theirs.
        """
        later = ("spacing", "guidance_rescale", "guidance_interval", "products")
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        told = dataclasses.asdict(self)
        told = {k: v for k, v in told.items() if k not in later or v != usual[k]}
        return {k: list(v) if k in later and isinstance(v, tuple) else v for k, v in told.items()}


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
    encoders = {path: leaf for path, leaf in params.items() if stage.is_text(path)}
    jitted = jax.jit(functools.partial(stage.encode_text, dtype=dtype))
    count, block = len(unique), min(len(unique), TEXTS_AT_ONCE)
    # The last block begins earlier rather than be shorter: one program for all.
    starts = [min(start, count - block) for start in range(0, count, block)]
    with compiling(f"the text encoder of {stage.kind}"):
        parts = [
            jitted(encoders, {name: x[start : start + block] for name, x in tokens.items()})
            for start in starts
        ]
    if len(parts) > 1:
        parts[-1] = jax.tree.map(lambda x: x[starts[-2] + block - starts[-1] :], parts[-1])
    table = parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
    return Text(unique, table)


def _noised(
    stage: Stage, rows: Mapping[str, Array], keys: Array, settings: Settings
) -> dict[str, Any]:
    """The upscaler's other input: the low-res picture with noise."""
    if "low_res" not in rows:
        return {}
    level = jnp.full(rows["prompt"].shape, settings.noise_level, jnp.float32)
    low_keys = jax.vmap(lambda key: rng.named(key, "low_res"))(keys)
    noise = sampler.first_noise(low_keys, sample_shape(stage, settings))
    return {"condition": stage.condition(rows["low_res"], noise, level), "noise_level": level}


def _twice(x: Array, y: Array) -> Array:
    """Rows of x and y in turn, so that each device keeps its own."""
    return jnp.stack([x, y], 1).reshape(-1, *x.shape[1:])


def sample_shape(stage: Stage, settings: Settings) -> tuple[int, int, int]:
    """Height, width and channels of the x0 that is drawn.

    Raises:
      ValueError: the model cannot make pictures of `settings.size`.
    """
    return (stage if settings.size is None else stage.at(settings.size)).sample_shape


def sample_batch(
    params: Mapping[str, Array],
    table: Any,
    rows: Mapping[str, Array],
    *,
    stage: Stage,
    settings: Settings,
    shards: int = 1,
) -> Array:
    """Pictures `[B,H,W,3]` in [-1, 1]; pure, to be jitted.

    Args:
      rows: of each picture `prompt`, its row of the table, int32 `[B]`, and `seed`, uint32 `[B]`;
        `negative`, the row of what guidance leads away from, where it is not the empty prompt;
        an upscaler's `low_res` `[B,h,w,3]`. Image-to-image: `start` `[B,H,W,C]`, an x0, and
        `strength` float32 `[B]` (`sampler.begun`). Inpainting: `mask` `[B,H,W,1]`, 1 where
        something is drawn, and `known`, an x0 (`sampler.blended`). Both may be asked for at once.
        Other rows of edits: `editing.of_rows`; `words`, `own`, `cross_steps` and `self_steps` of
        edits that follow their sources, which stand before them (`words.swap_at`).
      shards: how many devices share the rows.
    """
    with rounded.products(settings.products == "bfloat16"):
        keys = jax.vmap(lambda seed: rng.named(jax.random.key(seed), f"sample/{stage.kind}"))(
            rows["seed"]
        )
        shape = sample_shape(stage, settings)
        path = stage.path.at(*shape[:2])
        times = sampler.levels(settings.name, path, settings.num_steps, spacing=settings.spacing)
        x = noise = sampler.first_noise(keys, shape)
        begin = None
        if "start" in rows:
            x, begin = sampler.begun(
                path, rows["start"], noise, times=times, strength=rows["strength"]
            )
        x0 = sampler.sample(
            _denoiser(params, table, rows, keys, times, stage=stage, settings=settings),
            x,
            keys,
            path=path,
            rule=editing.of_rows(
                sampler.SAMPLERS[settings.name], rows, noise, editing.ratios(path, times)
            ),
            times=times,
            threshold=guidance.THRESHOLDS[settings.threshold](path),
            begin=begin,
        )
        return jnp.clip(stage.decode(params, x0, shards=shards), -1.0, 1.0)


def _denoiser(
    params: Mapping[str, Array],
    table: Any,
    rows: Mapping[str, Array],
    keys: Array,
    times: np.ndarray,
    *,
    stage: Stage,
    settings: Settings,
) -> sampler.Denoise:
    """The stage's network with the rows' prompts and inputs bound, guidance included."""
    scale = settings.guidance_scale
    extra = _noised(stage, rows, keys, settings)
    text = jax.tree.map(lambda x: x[rows["prompt"]], table)
    guided = is_guided(stage, scale)
    if stage.family.guidance == "embedded":
        extra["guidance"] = jnp.full(keys.shape, scale, jnp.float32)
    if guided:
        away = stage.conditioner.empty(table)
        if "negative" in rows:
            away = jax.tree.map(lambda x: x[rows["negative"]], table)
        text = jax.tree.map(lambda x, y: _twice(x, jnp.broadcast_to(y, x.shape)), text, away)
        extra = {name: _twice(value, value) for name, value in extra.items()}
    path = stage.path.at(*sample_shape(stage, settings)[:2])

    def denoise(xt: Array, t: Array) -> Array:
        how = extra | _attending(rows, t[0], times, every=1 + guided)
        told = path.told(t)
        if not guided:
            return stage.predict(params, xt, told, text, **how)
        output = stage.predict(params, _twice(xt, xt), _twice(told, told), text, **how)
        return _guided(output, _strength(settings, t, times), stage, settings)

    return denoise


def _attending(
    rows: Mapping[str, Array], t: Array, times: np.ndarray, *, every: int
) -> dict[str, Any]:
    """The attention of edits that follow their sources at the level t, as an argument."""
    if "words" not in rows:
        return {}
    swap = words.swap_at(rows, t, [*np.unique(times)[::-1]])
    return {"attend": words.swapped(swap, every=every)}


def _guided(output: Array, strength: float | Array, stage: Stage, settings: Settings) -> Array:
    """The guided output of rows that have the prompt and that have not, in turn (`_twice`)."""
    pairs = output.reshape(-1, 2, *output.shape[1:])
    return guidance.classifier_free(
        pairs[:, 0],
        pairs[:, 1],
        strength,
        channels=stage.channels,
        rescale=settings.guidance_rescale,
    )


def _strength(settings: Settings, t: Array, times: np.ndarray) -> float | Array:
    """The scale of guidance at the levels t `[B]`, 1 outside its interval."""
    scale = settings.guidance_scale
    if settings.guidance_interval == (0.0, 1.0):
        return scale
    on = guidance.in_interval(t, times, settings.guidance_interval)
    return jnp.where(on, scale, 1.0)[:, None, None, None]


def check(stages: Mapping[str, Stage], settings: Mapping[str, Settings]) -> None:
    """Checks that every stage can be sampled as its settings ask.

    Raises:
      ValueError: what was found, expected, and what to write instead.
    """
    guided = False
    for kind, stage in stages.items():
        own = settings[kind]
        guided |= is_guided(stage, own.guidance_scale)
        path = stage.path.at(*sample_shape(stage, own)[:2])
        sampler.levels(own.name, path, own.num_steps, spacing=own.spacing)
        if stage.codec.component is not None and own.threshold in ("static", "dynamic"):
            raise ValueError(
                f"sampler.threshold = {own.threshold!r}: it holds pixels in their range, and "
                f"{stage.folder} draws latents, which have none. Write "
                "--config.sampler.threshold=model."
            )
    usual = {"guidance_rescale": 0.0, "guidance_interval": (0.0, 1.0)}
    for name, value in usual.items():
        if not guided and any(getattr(own, name) != value for own in settings.values()):
            found = next(iter(settings.values()))
            raise ValueError(
                f"sampler.{name} = {getattr(found, name)}: expected {value}, because no stage "
                "predicts without the prompt as well (sampler.guidance_scale is 1, or the model "
                f'has no such guidance). Write --config.sampler.{name}="{value}".'
            )


def is_guided(stage: Stage, scale: float) -> bool:
    """Returns True where the denoiser also predicts without the prompt, for guidance."""
    kind = stage.family.guidance
    if kind == "none" and scale != 1.0:
        raise ValueError(
            f"sampler.guidance_scale = {scale:g}: {stage.folder} was distilled to do without, and "
            "has no guidance. Write --config.sampler.guidance_scale=1.0."
        )
    return kind == "classifier_free" and scale != 1.0


class Sampler:
    """The jitted sampler of one stage; compiled once per batch size."""

    def __init__(self, stage: Stage, settings: Settings, *, mesh: Mesh):
        self.stage, self.settings, self.mesh = stage, settings, mesh
        shards = sharding.row_shards(mesh)
        pure = functools.partial(sample_batch, stage=stage, settings=settings, shards=shards)
        # A program of params, table of texts and rows.
        self.program = jax.jit(sharding.traced_for(mesh, pure), out_shardings=sharding.rows(mesh))
        self._compiled: set[Any] = set()  # row counts and inputs so far

    def batch(
        self,
        params: tree.Flat,
        text: Text,
        prompts: Sequence[str],
        seeds: Sequence[int],
        low_res: np.ndarray | None,
        **rows: np.ndarray,
    ) -> np.ndarray:
        """Pictures float32 `[B,H,W,C]` in [-1, 1], one per prompt and seed.

        low_res: float32 `[B,h,w,C]` for an upscaler, None for a base. B must divide over the mesh.
        rows: `start` and `strength`, `mask` and `known`; see `sample_batch`.
        """
        split = functools.partial(sharding.put, sharding=sharding.rows(self.mesh))
        drawing = {path: x for path, x in params.items() if path.startswith(self.stage.drawing)}
        rows |= {"prompt": text.rows(prompts), "seed": np.asarray(seeds, np.uint32)}
        if low_res is not None:
            rows["low_res"] = low_res
        given = {name: split(row) for name, row in rows.items()}
        key = len(seeds), *sorted(given)
        first = key not in self._compiled
        with compiling(f"the sampler of {self.stage.kind}") if first else nullcontext():
            drawn = self.program(drawing, text.table, given)
        self._compiled.add(key)
        return sharding.fetch(drawn)


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
        label: str | None,
        negative: str = "",
        on_batch: Callable[[np.ndarray], None] | None = None,
        rows: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> list[np.ndarray]:
        """uint8 pictures `[N,H,W,C]` of every stage, in order; a bar `label` counts images.

        negative: an encoded prompt that guidance leads away from, instead of the empty one.
        on_batch: is given the last stage's pictures of every batch as soon as they are drawn.
        rows: of each stage, `start` and `strength`, `mask` and `known` of the N pictures
          (`sample_batch`); () for none.
        """
        kept: list[list[np.ndarray]] = [[] for _ in self.samplers]
        with progress(len(prompts), label, "image") as update:
            for start in range(0, len(prompts), self.batch_size):
                chosen = [i % len(prompts) for i in range(start, start + self.batch_size)]
                count = min(self.batch_size, len(prompts) - start)
                row_prompts = [prompts[i] for i in chosen]
                row_seeds = [seeds[i] for i in chosen]
                low = None
                more = rows or [{}] * len(self.samplers)
                stages = zip(kept, self.samplers, self.texts, params, more, strict=True)
                for keep, stage_sampler, text, flat, given in stages:
                    own = {name: array[chosen] for name, array in given.items()}
                    if negative:
                        own["negative"] = text.rows([negative] * len(chosen))
                    made = stage_sampler.batch(flat, text, row_prompts, row_seeds, low, **own)
                    keep.append(_as_bytes(made)[:count])
                    low = images.to_float(_as_bytes(made))
                update(count, None)
                if on_batch is not None:
                    on_batch(kept[-1][-1])
        return [np.concatenate(keep) for keep in kept]


def _as_bytes(x: np.ndarray) -> np.ndarray:
    """uint8; what is not finite becomes black, which the caller's quality gate recognises."""
    return images.to_uint8(np.where(np.isfinite(x), x, -1.0).astype(np.float32))
