"""Estimate of the memory of a step on each device, before it is compiled."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from dreambooth_jax import sharding, tree
from dreambooth_jax.adapt import Adapter
from dreambooth_jax.pipeline import TOKENS, Stage
from dreambooth_jax.train.step import Compiled, Recipe, loss_fn, rows_of


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes on each device.

    `activations` is what the backward pass finds of the forward one, as it is traced, weights in
    the dtype of the networks included: compilers keep less where they compute something again, and
    need more for what lives for a moment. Gradients come while activations go.
    """

    parameters: float  # trained
    gradients: float
    optimizer: float  # its state, and averages
    frozen: float
    activations: float
    summed: bool  # gradients are summed over parts of the batch, and there from the start

    @property
    def total(self) -> float:
        """The most that is there at once, roughly."""
        state = self.parameters + self.optimizer + self.frozen
        return state + self.summed * self.gradients + max(self.gradients, self.activations)

    def __str__(self) -> str:
        named = {
            "trained parameters": self.parameters,
            "optimizer": self.optimizer,
            "frozen weights": self.frozen,
        }
        if self.summed:
            named["sums of gradients"] = self.gradients
        sizes = " + ".join(f"{name} {size / 2**30:.2f}" for name, size in named.items())
        return (
            f"{self.total / 2**30:.2f} GiB ({sizes} + the larger of gradients "
            f"{self.gradients / 2**30:.2f} and activations {self.activations / 2**30:.2f})"
        )


def estimate(
    run: Compiled,
    frozen: Mapping[str, Any],
    batch: Mapping[str, Any],
    *,
    stage: Stage,
    recipe: Recipe,
    adapter: Adapter,
) -> Estimate:
    """Estimates the memory of the step of `run`; `frozen` and `batch` by shape or as they are."""
    parameters = per_device(run.state.trainable)
    placed = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=place),
        dict(frozen),
        run.frozen,
    )

    def forward(trainable: tree.Flat, frozen: Any, part: Mapping[str, Any]) -> Any:
        rows = rows_of(stage, recipe, part, jnp.int32(0))
        loss = functools.partial(loss_fn, stage=stage, recipe=recipe, adapter=adapter)
        return jax.vjp(lambda trainable: loss(trainable, frozen, rows)[0], trainable)[1]

    part = {
        name: jax.ShapeDtypeStruct(_shape(name, x, recipe.accumulate), x.dtype)
        for name, x in batch.items()
    }
    args = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (run.state.trainable, placed)
    )
    of_rows, of_weights = saved(sharding.traced_for(run.mesh, forward), *args, part)
    return Estimate(
        parameters=parameters,
        gradients=parameters,
        optimizer=per_device((run.state.opt_state, run.state.ema)),
        frozen=per_device(placed),
        activations=of_rows / sharding.row_shards(run.mesh) + of_weights,
        summed=recipe.accumulate > 1,
    )


def of_state(run: Compiled) -> float:
    """Bytes on each device of all that a step changes, and of gradients."""
    return per_device(run.state) + per_device(run.state.trainable)


def per_device(shapes: Any) -> float:
    """Bytes on one device of a tree of arrays, or of `ShapeDtypeStruct`s with shardings."""
    leaves = jax.tree.leaves(shapes)
    return float(sum(np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves))


def _shape(name: str, x: Any, parts: int) -> tuple[int, ...]:
    rows = x.shape[0] if name in TOKENS else x.shape[0] // parts
    return (rows, *x.shape[1:])


def saved(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    """Bytes of what a function returns: of what depends on its last argument, and of the rest.

    Arguments that it hands through are not counted, and nothing twice.
    """
    program = jax.make_jaxpr(function)(*args).jaxpr
    last = len(jax.tree.leaves(args[-1]))
    of_rows = set(program.invars[len(program.invars) - last :])
    made: set[Any] = set()
    for equation in program.eqns:
        made |= {*equation.outvars}
        read = {var for var in equation.invars if not isinstance(var, core.Literal)}
        if read & of_rows:
            of_rows |= {*equation.outvars}
    kept = {var for var in program.outvars if not isinstance(var, core.Literal)} & made
    sizes = {var: float(np.prod(var.aval.shape)) * _itemsize(var.aval) for var in kept}
    with_rows = sum(size for var, size in sizes.items() if var in of_rows)
    return with_rows, sum(sizes.values()) - with_rows


def _itemsize(aval: Any) -> int:
    return getattr(aval.dtype, "itemsize", 4)  # keys of random numbers have none
