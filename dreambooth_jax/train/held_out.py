"""A loss that can be compared from step to step: the same rows, levels and noise every time.

The loss of a training step jumps with the levels that it drew, by more than a run changes it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax import rng, sharding, tree
from dreambooth_jax.adapt import Adapter
from dreambooth_jax.diffusion import loss
from dreambooth_jax.pipeline import TOKENS, Stage
from dreambooth_jax.progress import compiling
from dreambooth_jax.train.step import Batch, Compiled, Recipe, loss_fn

LEVELS = 4  # noise levels at which each picture is evaluated


def fixed_rows(
    stage: Stage, recipe: Recipe, batch: Batch, *, levels: int = LEVELS
) -> dict[str, np.ndarray]:
    """Every row of `batch` at `levels` levels, the middles of equal parts of those trained.

    Noise depends on the seed and the row alone; a latent is taken at its mean. What an upscaler
    sees has noise of the first of its levels.
    """
    count = len(batch["is_prior"])
    rows = {
        name: np.repeat(np.asarray(x), levels, axis=0)
        for name, x in batch.items()
        if name not in (*TOKENS, "std")
    }
    rows["x0"] = rows.pop("mean")
    path = stage.path.at(*rows["x0"].shape[1:3])
    middles = path.middles(levels, steps=recipe.time_steps, density=recipe.density)
    rows["t"] = np.tile(middles, count)
    key = rng.key(recipe.seed, 0, f"{stage.kind}/held_out")
    rows["noise"] = np.asarray(jax.random.normal(rng.named(key, "noise"), rows["x0"].shape))
    if "low_res" in rows:
        level = np.full(rows["t"].shape, recipe.aug_levels[0], np.float32)
        noise = jax.random.normal(rng.named(key, "low_res"), rows["x0"].shape)
        seen = stage.condition(jnp.asarray(rows.pop("low_res")), noise, jnp.asarray(level))
        rows |= {"noise_level": level, "condition": np.asarray(seen)}
    return rows


def _weights(batch: Batch, batches: Sequence[Batch], is_prior: np.ndarray) -> dict[str, np.ndarray]:
    """Weights of a batch's rows that make sums over all batches means over their rows, by kind."""
    weights = loss.row_weights(jnp.asarray(is_prior), 1.0)
    found = {}
    for name, own in (("subject", False), ("prior", True)):
        counts = [np.count_nonzero(np.asarray(x["is_prior"]) == own) for x in (batch, *batches)]
        found[name] = np.asarray(weights[name]) * np.float32(counts[0] / max(sum(counts[1:]), 1))
    return found | {"total": found["subject"] + found["prior"]}


class HeldOutLoss:
    """The mean squared error of `fixed_rows`, of photos and class rows apart.

    Compiled once for each shape.

    Neither min-SNR nor λ weigh it, and a learned variance has no part in it, so runs that differ in
    these can be compared.
    """

    def __init__(
        self,
        run: Compiled,
        batches: Sequence[Batch],
        *,
        stage: Stage,
        recipe: Recipe,
        adapter: Adapter,
        rows_at_once: int,
    ) -> None:
        """batches: of one shape each; the loss is the mean over the rows of all of them.

        rows_at_once: rows of one call, which divide over the mesh; as many as a step has.
        """
        split, whole = sharding.rows(run.mesh), sharding.replicated(run.mesh)
        self._parts = []
        for batch in batches:
            rows = fixed_rows(stage, recipe, batch)
            weights = _weights(batch, batches, rows["is_prior"])
            tokens = {n: sharding.put(batch[n], whole) for n in TOKENS if n in batch}
            count = len(rows["t"])
            for start in range(0, count, rows_at_once):
                at = np.arange(start, start + rows_at_once)
                there = at < count  # the last part is filled up with rows that weigh nothing
                part: dict[str, Any] = {
                    name: sharding.put(x[at % count], split) for name, x in rows.items()
                }
                part["weights"] = {
                    name: sharding.put(np.where(there, x[at % count], 0), split)
                    for name, x in weights.items()
                }
                self._parts.append(part | tokens)
        plain = dataclasses.replace(recipe, min_snr_gamma=0.0, learned_variance=False)
        pure = functools.partial(loss_fn, stage=stage, recipe=plain, adapter=adapter)
        places = {path: leaf.sharding for path, leaf in run.state.trainable.items()}
        self._call = jax.jit(
            sharding.traced_for(run.mesh, lambda *args: pure(*args)[1]),
            in_shardings=(places, run.frozen, None),
            out_shardings=whole,
        )
        self._called = False
        has_prior = any(batch["is_prior"].any() for batch in batches)
        self._kinds = ["loss/subject", *(["loss/prior"] if has_prior else [])]

    def __call__(self, trainable: tree.Flat, frozen: Mapping[str, Any]) -> dict[str, float]:
        """`held_out/subject` and, where there are class rows, `held_out/prior`."""
        with nullcontext() if self._called else compiling("the loss on fixed rows"):
            found = [self._call(trainable, frozen, part) for part in self._parts]
        self._called = True
        return {
            name.replace("loss/", "held_out/"): float(sum(float(x[name]) for x in found))
            for name in self._kinds
        }
