"""Automatic masks: the places of a photo that show a word, or in which two prompts differ."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dreambooth_jax import rng, sharding, tree
from dreambooth_jax.diffusion import guidance, process, sampler
from dreambooth_jax.models import words
from dreambooth_jax.pipeline import Stage

Array = jax.Array

NOISES = 10  # of each photo, over which maps are averaged (Couairon et al. 2022, section 3.2)
LEVEL = 0.5  # share of the way into noise
_POSITIONS = 256  # of layers whose heat makes a mask: 16²
HOT = 0.3  # of the largest heat, above which a place shows the word (Hertz et al. 2022)
_GUIDANCE = 7.5  # of both prompts, where there is guidance
_MOST = 3.0  # times its mean, at which a difference is cut off
_DIFFERENT = 0.5  # of that, above which a place differs


def _noised(stage: Stage, rows: Mapping[str, Array], num_steps: int) -> tuple[Array, Array, Any]:
    """Noised copies of x0, the level `[B]`, and the path."""
    known = rows["known"]
    path = stage.path.at(*known.shape[1:3])
    times = path.times(num_steps)
    t = jnp.full(len(known), times[num_steps - round(LEVEL * num_steps)], jnp.float32)
    keys = jax.vmap(lambda seed: rng.named(jax.random.key(seed), "regions"))(rows["seed"])
    noise = sampler.first_noise(keys, known.shape[1:])
    return process.add_noise(path, known, noise, t), t, path


def heat(
    params: Mapping[str, Array],
    table: Any,
    rows: Mapping[str, Array],
    *,
    stage: Stage,
    num_steps: int,
) -> Array:
    """The attention `[B,H,W]` that places of noised pictures pay to words; pure, to be jitted.

    The mean over layers of at most 16² positions, as in the paper, or where a network has none
    over those of the fewest that `words.recording` keeps; each is enlarged to H, W.

    rows: `known` `[B,H,W,C]`, x0; `prompt` and `seed` `[B]`; `columns` `[B,T]`, 1 for the tokens of
      the words.
    """
    xt, t, path = _noised(stage, rows, num_steps)
    heats: list[Array] = []
    text = jax.tree.map(lambda x: x[rows["prompt"]], table)
    attend = words.recording(rows["columns"], heats)
    stage.predict(params, xt, path.told(t), text, attend=attend)
    if not heats:
        raise ValueError(
            f"{stage.folder}: no attention of at most 1024 positions to take a mask from. Write "
            "--config.edit.masks=difference, or leave out edit.local_blend."
        )
    height, width = xt.shape[1:3]
    most = max(_POSITIONS, min(one.shape[1] for one in heats))
    large = []
    for one in (each for each in heats if each.shape[1] <= most):
        scale = (height * width / one.shape[1]) ** 0.5
        small = one.reshape(len(one), round(height / scale), round(width / scale))
        large.append(jax.image.resize(small, (len(one), height, width), "linear"))
    return jnp.stack(large).mean(0)


def difference(
    params: Mapping[str, Array],
    table: Any,
    rows: Mapping[str, Array],
    *,
    stage: Stage,
    num_steps: int,
) -> Array:
    """Difference of the noise that two prompts read from noised pictures, `[B,H,W]`; pure.

    The mean over channels of its absolute value, with guidance where the family has it (Couairon et
    al. 2022, section 3.2).

    rows: `known` `[B,H,W,C]`, x0; `prompt`, `source` and `seed` `[B]`.
    """
    xt, t, path = _noised(stage, rows, num_steps)
    told = path.told(t)
    kind = stage.family.guidance
    extra: dict[str, Any] = {}
    if kind == "embedded":
        extra["guidance"] = jnp.full(len(xt), _GUIDANCE, jnp.float32)

    def noise_hat(text: Any) -> Array:
        output = stage.predict(params, xt, told, text, **extra)
        if kind == "classifier_free":
            empty = jax.tree.map(
                lambda x, y: jnp.broadcast_to(y, x.shape), text, stage.conditioner.empty(table)
            )
            plain = stage.predict(params, xt, told, empty, **extra)
            output = guidance.classifier_free(output, plain, _GUIDANCE, channels=stage.channels)
        return process.readings(path, output[..., : stage.channels], xt, t)[1]

    of_edit, of_source = (
        noise_hat(jax.tree.map(lambda x, name=name: x[rows[name]], table))
        for name in ("prompt", "source")
    )
    return jnp.abs(of_edit - of_source).mean(-1)


MAPS = {"word": heat, "difference": difference}


def marked(found: np.ndarray, kind: str) -> np.ndarray:
    """The mask bool `[H,W]` that a mean map `[H,W]` makes."""
    if kind == "word":
        return found > HOT * found.max()
    return np.minimum(found, _MOST * found.mean()) > _DIFFERENT * _MOST * found.mean()


class Finder:
    """The jitted map of one stage; every photo is seen with some noises, `NOISES` as a rule."""

    def __init__(self, stage: Stage, kind: str, *, num_steps: int, mesh: Mesh):
        self.stage, self.kind, self.mesh = stage, kind, mesh
        pure = functools.partial(MAPS[kind], stage=stage, num_steps=num_steps)
        self.program = jax.jit(sharding.traced_for(mesh, pure), out_shardings=sharding.rows(mesh))

    def mask(self, *given: Any, **how: Any) -> np.ndarray:
        """The mask bool `[H,W]` of an x0, as `map` is asked for it."""
        return marked(self.map(*given, **how), self.kind)

    def map(
        self,
        params: tree.Flat,
        table: Any,
        known: np.ndarray,
        prompts: Mapping[str, int],
        *,
        seeds: Sequence[int],
        columns: np.ndarray | None = None,
    ) -> np.ndarray:
        """The map float64 `[H,W]` of an x0 `[H,W,C]`, a mean over noises.

        prompts: rows of the table, "prompt" and, for the difference, "source". columns: float32
        `[T]`, 1 for the tokens of the word. seeds: one for each noise; rows that fill up the mesh
        are not counted, so the map is the same on any number of devices.
        """
        count = sharding.whole_rows(len(seeds), self.mesh)
        filled = np.resize(np.asarray(seeds, np.uint32), count)
        rows: dict[str, np.ndarray] = {
            name: np.full(count, row, np.int32) for name, row in prompts.items()
        }
        rows |= {"known": np.stack([known] * count), "seed": filled}
        if columns is not None:
            rows["columns"] = np.stack([columns] * count)
        split = functools.partial(sharding.put, sharding=sharding.rows(self.mesh))
        drawing = {path: x for path, x in params.items() if path.startswith(self.stage.drawing)}
        given = {name: split(row) for name, row in rows.items()}
        found = sharding.fetch(self.program(drawing, table, given))[: len(seeds)]
        return np.asarray(found.mean(0, dtype=np.float64))
