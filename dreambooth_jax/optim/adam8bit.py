"""Adam with its two moments in 8 bits each, after Dettmers et al. 2022 (arXiv:2110.02861).

Blocks of at most 256 numbers along the last axis share one float32 scale, their largest magnitude.
Codes are spread by a power law, finer near zero: the first moment is ±(code/127)² of the scale, the
second (code/255)⁴. The second changes by a thousandth per step, less than the distance of two
codes, so it is rounded up or down at random, in proportion: on average it moves as it should.
Codes have the shape of their parameter, so they are split over devices as it is.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from dreambooth_jax.optim.moments import Coding, uniform

BLOCK = 256


class Codes(NamedTuple):
    """One moment of one leaf: 8-bit codes in its shape, float32 scales `[…, blocks]`."""

    code: jax.Array
    scale: jax.Array


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
    """Decodes the result of `encode_signed`, float32."""
    root = codes.code.astype(jnp.float32) / 127
    return _unscaled(jnp.sign(root) * jnp.square(root), codes.scale)


def encode_positive(x: jax.Array, seed: jax.Array) -> Codes:
    """Codes of a second moment, rounded up or down at random; only 0 becomes 0."""
    share, scale = _scaled(x)
    root = 255 * jnp.sqrt(jnp.sqrt(share))
    code = jnp.floor(root + uniform(x.shape, seed))
    code = jnp.where(x > 0, jnp.clip(code, 1, 255), 0)
    return Codes(code.astype(jnp.uint8), scale)


def decode_positive(codes: Codes) -> jax.Array:
    """Decodes the result of `encode_positive`, float32."""
    return _unscaled((codes.code.astype(jnp.float32) / 255) ** 4, codes.scale)


def zeros(shape: tuple[int, ...]) -> tuple[Codes, Codes]:
    """Both moments before the first step."""
    scale = jnp.zeros(_blocks(jnp.zeros(shape, jnp.int8)).shape[:-1], jnp.float32)
    return Codes(jnp.zeros(shape, jnp.int8), scale), Codes(jnp.zeros(shape, jnp.uint8), scale)


EIGHT_BITS = Coding(
    zeros=zeros,
    encode=lambda m, v, seed: (encode_signed(m), encode_positive(v, seed)),
    decode=lambda m, v: (decode_signed(m), decode_positive(v)),
)
