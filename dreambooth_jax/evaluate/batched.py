"""A network over many pictures: one compiled program, rows shared by the devices of a mesh."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from dreambooth_jax import sharding, tree
from dreambooth_jax.progress import progress

# Row numbers [B] -> the arguments of the network, host arrays with B rows each.
Rows = Callable[[np.ndarray], Sequence[np.ndarray]]


class Batched:
    """`pure(params, *arguments)` for any number of rows, `batch_size` at a time.

    The batch is rounded up so that all devices get as much; a short one is filled up with repeats.
    Without a mesh one device does all.
    """

    def __init__(
        self,
        pure: Callable[..., Any],
        params: tree.Flat,
        *,
        batch_size: int,
        mesh: Mesh | None = None,
    ):
        self.mesh = sharding.make_mesh(devices=jax.local_devices()[:1]) if mesh is None else mesh
        self.batch_size = sharding.whole_rows(batch_size, self.mesh)
        whole = sharding.replicated(self.mesh)
        self._params = {path: sharding.put(leaf, whole) for path, leaf in params.items()}
        self._call = jax.jit(pure, out_shardings=sharding.rows(self.mesh))

    def also(self, pure: Callable[..., Any]) -> "Batched":
        """Another function of the same parameters, which are on the devices once."""
        other = copy.copy(self)
        other._call = jax.jit(pure, out_shardings=sharding.rows(self.mesh))
        return other

    def __call__(
        self, count: int, rows: Rows, *, label: str | None = None, unit: str = "image"
    ) -> Any:
        """Returns the network's output for rows 0 … count - 1, on the host; float32 `[N,…]`.

        A progress bar that counts `unit`s is shown under `label` when there is one.
        """
        if count < 1:
            raise ValueError(f"{label or 'a network'} was given no {unit}; expected at least 1.")
        kept = []
        split = sharding.rows(self.mesh)
        with progress(count, label, unit) as update:
            for start in range(0, count, self.batch_size):
                index = np.arange(start, start + self.batch_size) % count
                real = min(self.batch_size, count - start)
                made = self._call(self._params, *(sharding.put(x, split) for x in rows(index)))
                kept.append(jax.tree.map(lambda x, real=real: sharding.fetch(x)[:real], made))
                update(real, None)
        return jax.tree.map(lambda *parts: np.concatenate(parts), *kept)
