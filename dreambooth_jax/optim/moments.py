"""Adam (Kingma & Ba 2015) whose two moments are kept in fewer than 32 bits.

Each step reads them as float32, updates them, moves by them, and only then rounds them for the
next. What a `Coding` keeps has the shape of its parameter, so it is split over devices as that is.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

SMALLEST = 4096  # numbers; smaller leaves keep float32 moments


class Coding(NamedTuple):
    """Codec of the two float32 moments of a large leaf, as functions of arrays."""

    zeros: Callable[[tuple[int, ...]], tuple[Any, Any]]  # shape -> both
    encode: Callable[[jax.Array, jax.Array, jax.Array], tuple[Any, Any]]  # m, v, seed (uint32)
    decode: Callable[[Any, Any], tuple[jax.Array, jax.Array]]


class AdamState(NamedTuple):
    """Steps so far, and both moments by path."""

    steps: jax.Array
    mu: dict[str, Any]
    nu: dict[str, Any]


def random_bits(shape: tuple[int, ...], seed: jax.Array) -> jax.Array:
    """uint32 that depend on position and seed (uint32) alone.

    A hash of 32 bits (Wellons 2018, "lowbias32"): good enough to round by, and compiled at once,
    where a generator of jax for each of some hundred leaves takes minutes.
    """
    x = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        x = x * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = x * np.uint32(0x9E3779B9) + seed
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def uniform(shape: tuple[int, ...], seed: jax.Array) -> jax.Array:
    """Numbers in [0, 1), float32, of `random_bits`."""
    return (random_bits(shape, seed) >> 8).astype(jnp.float32) * np.float32(2**-24)


def scale_by_adam(
    b1: float, b2: float, eps: float, *, coding: Coding
) -> optax.GradientTransformation:
    """`optax.scale_by_adam` for flat dictionaries, with coded moments of large leaves."""

    def init(params: dict[str, jax.Array]) -> AdamState:
        zero = jnp.zeros
        both = {
            path: coding.zeros(x.shape) if x.size >= SMALLEST else (zero(x.shape), zero(x.shape))
            for path, x in params.items()
        }
        mu, nu = ({path: moments[i] for path, moments in both.items()} for i in (0, 1))
        return AdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(
        updates: dict[str, jax.Array], state: AdamState, params: Any = None
    ) -> tuple[dict[str, jax.Array], AdamState]:
        del params
        count = state.steps + 1
        seeds = jax.random.bits(jax.random.fold_in(jax.random.key(8), count), (len(updates),))
        moved, mu, nu = {}, {}, {}
        for number, (path, grad) in enumerate(sorted(updates.items())):
            m, v = state.mu[path], state.nu[path]
            coded = grad.size >= SMALLEST
            m, v = coding.decode(m, v) if coded else (m, v)
            m = b1 * m + (1 - b1) * grad
            v = b2 * v + (1 - b2) * jnp.square(grad)
            first, second = m / (1 - b1**count), v / (1 - b2**count)
            moved[path] = first / (jnp.sqrt(second) + eps)
            mu[path], nu[path] = coding.encode(m, v, seeds[number]) if coded else (m, v)
        return moved, AdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)
