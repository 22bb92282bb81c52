"""One train step of many subjects: the base once, small leaves and optimizer state of each.

The pure step of one subject under `jax.vmap`. Subjects are split over the mesh's `data` axis, so a
device has the state of its own subjects alone. All draw the same random numbers, those of a run of
their own, since these are a function of (seed, step, name).
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dreambooth_jax import optim, sharding
from dreambooth_jax.adapt import Adapter
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.train.step import Recipe, TrainState, initial_state, train_step


def mesh_of(devices: Sequence[Any], *, subjects: int) -> Mesh:
    """A mesh whose `data` axis has as many devices as divide the subjects evenly."""
    count = _shared(subjects, len(devices))
    return sharding.make_mesh(data=count, fsdp=1, tensor=1, devices=devices[:count])


def places(count: int, *, at_once: int, devices: int) -> int:
    """The number of subjects of one program, at most `at_once`, for all rounds of `count`.

    One size, so that it is compiled once; that with which a device has the fewest subjects to
    train, those that fill up the last round included, and of these sizes the fewest rounds.
    """

    def cost(size: int) -> tuple[int, int, int]:
        turns = -(-count // size)
        return turns * (size // _shared(size, devices)), turns, size

    return min(range(min(count, at_once // 2 + 1), at_once + 1), key=cost)


def _shared(subjects: int, devices: int) -> int:
    """The most devices that divide the subjects evenly."""
    return max(n for n in range(1, devices + 1) if subjects % n == 0)


def rounds(count: int, *, at_once: int) -> list[list[int]]:
    """The numbers 0 … count - 1 in rounds of at most `at_once`, all of nearly one size."""
    turns = -(-count // at_once)
    return [list(part) for part in np.array_split(np.arange(count), turns)] if count else []


def stacked(trees: Sequence[Any], mesh: Mesh) -> Any:
    """Trees of arrays `[…]` as one of `[subjects, …]`, split over `data`.

    Tables of texts may differ. Those of fewer rows are filled up with their first row, those of
    fewer tokens with zeros, which their masks leave out.
    """

    def stack(*leaves: Any) -> Any:
        arrays = _alike([np.asarray(leaf) for leaf in leaves])
        return sharding.put(np.stack(arrays), NamedSharding(mesh, P("data")))

    return jax.tree.map(stack, *trees)


def _alike(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Arrays of one shape: with more rows, copies of their first, and zeros along other axes."""
    if len({x.shape for x in arrays}) == 1:
        return arrays
    rows, *others = np.max([x.shape for x in arrays], axis=0)
    found = []
    for x in arrays:
        longer = [(0, 0), *((0, n - m) for n, m in zip(others, x.shape[1:], strict=True))]
        found.append(np.pad(np.concatenate([x, np.repeat(x[:1], rows - len(x), 0)]), longer))
    return found


def of_subject(tree: Any, number: int) -> Any:
    """One subject's part of a stacked tree, as jax arrays on the first device."""
    return jax.tree.map(lambda x: jax.numpy.asarray(np.asarray(x[number])), tree)


def first_state(
    trainable: Mapping[str, Any], recipe: Recipe, tx: optax.GradientTransformation
) -> TrainState:
    """The state of one subject before its first step."""
    own = jax.eval_shape(lambda flat: optim.evaluated(tx.init(flat), flat), dict(trainable))
    init = functools.partial(initial_state, tx=tx, ema=recipe.ema_decay > 0 or own is not None)
    return jax.jit(init)(dict(trainable))


def compiled(
    stage: Stage,
    recipe: Recipe,
    adapter: Adapter,
    tx: optax.GradientTransformation,
    *,
    mesh: Mesh,
) -> Any:
    """The jitted step: (states, frozen weights, own frozen parts, batches) -> (states, metrics).

    All but the frozen weights are `stacked`; states are donated.
    """
    one = functools.partial(train_step, stage=stage, recipe=recipe, adapter=adapter, tx=tx)

    def own_subjects(states: Any, weights: Any, own: Any, batches: Any) -> Any:
        def each(state: Any, own: Any, batch: Any) -> Any:
            return one(state, {"weights": weights, **own}, batch)

        return jax.vmap(each)(states, own, batches)

    # By hand: XLA cannot split kernels of attention, and no subject needs another device's.
    parts = (P("data"), P(), P("data"), P("data"))
    step = jax.shard_map(
        own_subjects, mesh=mesh, in_specs=parts, out_specs=P("data"), check_vma=False
    )
    split, whole = NamedSharding(mesh, P("data")), sharding.replicated(mesh)
    return jax.jit(
        sharding.traced_for(mesh, step),
        in_shardings=(split, whole, split, split),
        out_shardings=(split, split),
        donate_argnums=0,
    )
