"""Small pytrees that stand in an array's place: a kernel is whatever can be multiplied.

`adapt` and `weights` put them into flat dictionaries, `models.layers` multiplies, convolves and
looks up with them. Networks do not know of them. `fused` is the array that each stands for.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array
_LARGEST = 127  # of 8 bits with a sign, the same on both sides of 0


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "down", "up", "stretch"],
    meta_fields=["scale"],
)
@dataclasses.dataclass(frozen=True)
class LowRank:
    """`(kernel + scale·down·up)·stretch`: down `[…,in,r]`, up `[r,out]`, stretch `[out]` or None.

    The kernel is an array, `Int8` or `LowRank`. The sum is never made: products and convolutions
    are computed with each part, so that gradients of the small parts need no gradient of a whole
    kernel.
    """

    kernel: Any
    down: Array
    up: Array
    stretch: Array | None = None
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return tuple(self.kernel.shape)

    @property
    def scaled_up(self) -> Array:
        """The second factor, times `scale`."""
        return self.up if self.scale == 1.0 else self.scale * self.up


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Int8:
    """`values·scale`: int8 `[…,in,out]` and float32 `[out]`, one scale per output channel."""

    values: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the kernel."""
        return tuple(self.values.shape)

    @property
    def dtype(self) -> Any:
        """The dtype of nearly all of it."""
        return self.values.dtype


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["table", "rows"], meta_fields=["ids"]
)
@dataclasses.dataclass(frozen=True)
class NewRows:
    """A table of embeddings `[V,D]` in which `rows` `[n,D]` stand in the places `ids`."""

    table: Any
    rows: Array
    ids: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the table."""
        return tuple(self.table.shape)


def rounded_to_int8(kernel: Any) -> Int8:
    """A kernel `[…,in,out]` in 8 bits, on the host; no value moves by more than half its scale.

    The scale of an output channel is its largest absolute value / 127 (1 where all are 0).
    """
    array = np.asarray(kernel, np.float32)
    largest = np.abs(array).max(axis=tuple(range(array.ndim - 1)), initial=0.0)
    scale = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
    values = np.clip(np.rint(array / scale), -_LARGEST, _LARGEST).astype(np.int8)
    return Int8(values, scale)


def abstract_int8(leaf: Any) -> Int8:
    """Shapes and dtypes of `rounded_to_int8`."""
    return Int8(
        jax.ShapeDtypeStruct(leaf.shape, jnp.int8),
        jax.ShapeDtypeStruct(leaf.shape[-1:], jnp.float32),
    )


def per_channel(values: Array, x: Array) -> Array:
    """`[C]` with its axis written out for products with x: `[1, ..., 1, C]`."""
    return values.reshape((1,) * (len(x.shape) - 1) + values.shape)


def fused(leaf: Any) -> Any:
    """The array that a leaf stands for, in float32 where it is no plain array."""
    match leaf:
        case LowRank(kernel=kernel, stretch=stretch):
            change = leaf.scale * jnp.tensordot(leaf.down, leaf.up, 1)
            total = jnp.asarray(fused(kernel), jnp.float32) + change
            return total if stretch is None else total * per_channel(stretch, total)
        case Int8(values=values, scale=scale):
            return jnp.asarray(values, jnp.float32) * per_channel(jnp.asarray(scale), values)
        case NewRows(table=table, rows=rows):
            return jnp.asarray(table).at[jnp.asarray(leaf.ids)].set(rows.astype(table.dtype))
        case _:
            return leaf


def lengths(kernel: Any) -> Array:
    """The length of each output channel's weights `[out]`, float32.

    Of `LowRank` without the sum, from ‖w + c‖² = ‖w‖² + 2·w·c + ‖c‖², where c = down·u.
    """
    match kernel:
        case LowRank():
            down = _as_matrix(kernel.down)
            up = kernel.scaled_up
            crossed = _times(kernel.kernel, down) * up  # (downᵀ·w)·u, of each rank
            own = (down.T @ down) @ up * up
            square = jnp.square(lengths(kernel.kernel)) + (2 * crossed + own).sum(0)
            return jnp.sqrt(jnp.maximum(square, 0.0))
        case Int8(values=values, scale=scale):
            return lengths(values) * scale
        case _:
            array = jnp.asarray(kernel).astype(jnp.float32)
            return jnp.sqrt(jnp.square(array).sum(tuple(range(array.ndim - 1))))


def _as_matrix(kernel: Any) -> Array:
    """`[in of the whole window, out]`, float32."""
    array = jnp.asarray(kernel).astype(jnp.float32)
    return array.reshape(-1, array.shape[-1])


def _times(kernel: Any, down: Array) -> Array:
    """`downᵀ·kernel` `[r,out]`, float32."""
    if isinstance(kernel, Int8):
        product = down.T @ _as_matrix(kernel.values)
        return product * per_channel(kernel.scale, product)
    return down.T @ _as_matrix(kernel)


def halves(kernel: Any) -> list[Any]:
    """Two kernels: of the first half of the output channels, and of the second."""
    match kernel:
        case LowRank(down=down, scale=scale):
            stretches = [None] * 2 if kernel.stretch is None else jnp.split(kernel.stretch, 2)
            parts = zip(halves(kernel.kernel), jnp.split(kernel.up, 2, -1), stretches, strict=True)
            return [LowRank(part, down, up, stretch, scale) for part, up, stretch in parts]
        case Int8(values=values, scale=scale):
            pairs = zip(jnp.split(values, 2, -1), jnp.split(scale, 2), strict=True)
            return [Int8(*pair) for pair in pairs]
        case _:
            return jnp.split(kernel, 2, -1)


def with_rows(table: Any, rows: Array, ids: Sequence[int]) -> NewRows:
    """`table` with these rows in the places `ids`."""
    return NewRows(table, rows, tuple(int(i) for i in ids))


def all_fused(flat: Mapping[str, Any]) -> dict[str, Any]:
    """`fused` of each leaf."""
    return {path: fused(leaf) for path, leaf in flat.items()}
