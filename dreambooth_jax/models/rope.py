"""Rotary positions (Su et al. 2021): queries and keys turned by angles that grow with position."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def angles(positions: np.ndarray, size: int, *, theta: float) -> np.ndarray:
    """Angles `p·theta^(-2i/size)` of positions `[...]`: float32 `[..., size/2]`, from float64."""
    place = np.arange(0, size, 2, dtype=np.float64) / size
    return (np.asarray(positions, np.float64)[..., None] * theta**-place).astype(np.float32)


def axes_angles(positions: np.ndarray, sizes: Sequence[int], *, theta: float) -> np.ndarray:
    """Angles of positions `[..., A]` along A axes side by side: float32 `[..., sum(sizes)/2]`."""
    parts = [angles(positions[..., i], size, theta=theta) for i, size in enumerate(sizes)]
    return np.concatenate(parts, -1)


def turn_pairs(x: Array, turns: Array) -> Array:
    """Heads `[B,L,H,D]` whose neighbouring pairs (2i, 2i+1) are turned by `turns` `[B,L,D/2]`."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    return _turned(pairs[..., 0], pairs[..., 1], turns, axis=-1).reshape(x.shape).astype(x.dtype)


def turn_halves(x: Array, turns: Array) -> Array:
    """Heads `[B,L,H,D]` whose pairs (i, i + D/2) are turned by `turns` `[B,L,D/2]`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    return _turned(first, second, turns, axis=-2).reshape(x.shape).astype(x.dtype)


def _turned(first: Array, second: Array, turns: Array, *, axis: int) -> Array:
    cos, sin = jnp.cos(turns)[:, :, None], jnp.sin(turns)[:, :, None]
    return jnp.stack([first * cos - second * sin, first * sin + second * cos], axis)
