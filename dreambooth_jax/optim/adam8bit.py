"""Adam with its two moments in 8 bits each, after Dettmers et al. 2022 (arXiv:2110.02861).

Blocks of at most 256 numbers along the last axis share one float32 scale, their largest magnitude.
Codes are spread by a power law, finer near zero: the first moment is ±(code/127)² of the scale, the
second (code/255)⁴. The second changes by a thousandth per step, less than the distance of two
codes, so it is rounded up or down at random, in proportion: on average it moves as it should.
Codes have the shape of their parameter, so they are split over devices as it is.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

BLOCK = 256
SMALLEST = 4096  # numbers; smaller leaves keep float32 moments


class Codes(NamedTuple):
    """One moment of one leaf: 8-bit codes in its shape, float32 scales `[…, blocks]`."""

    code: jax.Array
    scale: jax.Array


class Adam8bitState(NamedTuple):
    """Steps so far, and both moments by path."""

    steps: jax.Array
    mu: dict[str, Any]
    nu: dict[str, Any]


def _blocks(x: jax.Array) -> jax.Array:
    """`[…, n]` -> `[…, blocks, block]`; one block where 256 does not divide n."""
    size = BLOCK if x.shape[-1] % BLOCK == 0 else x.shape[-1]
    return x.reshape(*x.shape[:-1], -1, size)


def _scaled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """X over its block's largest magnitude, in [-1, 1], and these magnitudes."""
    blocks = _blocks(x)
    scale = jnp.abs(blocks).max(-1)
    return (blocks / jnp.where(scale > 0, scale, 1.0)[..., None]).reshape(x.shape), scale


def _unscaled(x: jax.Array, scale: jax.Array) -> jax.Array:
    return (_blocks(x) * scale[..., None]).reshape(x.shape)


def encode_signed(x: jax.Array) -> Codes:
    """The nearest codes of a first moment."""
    share, scale = _scaled(x)
    code = jnp.round(127 * jnp.sign(share) * jnp.sqrt(jnp.abs(share)))
    return Codes(code.astype(jnp.int8), scale)


def decode_signed(codes: Codes) -> jax.Array:
    """What `encode_signed` left, float32."""
    root = codes.code.astype(jnp.float32) / 127
    return _unscaled(jnp.sign(root) * jnp.square(root), codes.scale)


def uniform(shape: tuple[int, ...], seed: jax.Array) -> jax.Array:
    """Numbers in [0, 1) that depend on position and seed (uint32) alone.

    A hash of 32 bits (Wellons 2018, "lowbias32"): good enough to round by, and compiled at once,
    where a generator of jax for each of some hundred leaves takes minutes.
    """
    x = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        x = x * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = x * np.uint32(0x9E3779B9) + seed
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return ((x ^ (x >> 16)) >> 8).astype(jnp.float32) * np.float32(2**-24)


def encode_positive(x: jax.Array, seed: jax.Array) -> Codes:
    """Codes of a second moment, rounded up or down at random; only 0 becomes 0."""
    share, scale = _scaled(x)
    root = 255 * jnp.sqrt(jnp.sqrt(share))
    code = jnp.floor(root + uniform(x.shape, seed))
    code = jnp.where(x > 0, jnp.clip(code, 1, 255), 0)
    return Codes(code.astype(jnp.uint8), scale)


def decode_positive(codes: Codes) -> jax.Array:
    """What `encode_positive` left, float32."""
    return _unscaled((codes.code.astype(jnp.float32) / 255) ** 4, codes.scale)


def scale_by_adam8bit(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """As `optax.scale_by_adam`, for flat dictionaries, with 8-bit moments of large leaves."""

    def zeros(leaf: jax.Array, dtype: Any) -> Any:
        if leaf.size < SMALLEST:
            return jnp.zeros(leaf.shape, jnp.float32)
        scale = jnp.zeros(_blocks(jnp.zeros(leaf.shape, jnp.int8)).shape[:-1], jnp.float32)
        return Codes(jnp.zeros(leaf.shape, dtype), scale)

    def init(params: dict[str, jax.Array]) -> Adam8bitState:
        return Adam8bitState(
            jnp.zeros((), jnp.int32),
            {path: zeros(leaf, jnp.int8) for path, leaf in params.items()},
            {path: zeros(leaf, jnp.uint8) for path, leaf in params.items()},
        )

    def update(
        updates: dict[str, jax.Array], state: Adam8bitState, params: Any = None
    ) -> tuple[dict[str, jax.Array], Adam8bitState]:
        del params
        count = state.steps + 1
        seeds = jax.random.bits(jax.random.fold_in(jax.random.key(8), count), (len(updates),))
        moved, mu, nu = {}, {}, {}
        for number, (path, grad) in enumerate(sorted(updates.items())):
            m, v = state.mu[path], state.nu[path]
            coded = isinstance(m, Codes)
            m, v = (decode_signed(m), decode_positive(v)) if coded else (m, v)
            m = b1 * m + (1 - b1) * grad
            v = b2 * v + (1 - b2) * jnp.square(grad)
            first, second = m / (1 - b1**count), v / (1 - b2**count)
            moved[path] = first / (jnp.sqrt(second) + eps)
            if coded:
                m, v = encode_signed(m), encode_positive(v, seeds[number])
            mu[path], nu[path] = m, v
        return moved, Adam8bitState(count, mu, nu)

    return optax.GradientTransformation(init, update)
