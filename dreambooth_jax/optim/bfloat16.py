"""Adam's two moments in bfloat16, rounded up or down at random.

bfloat16 has 8 bits of precision: neighbours lie 0.4 to 0.8 % apart. With b2 = 0.999 a second moment
changes by at most a thousandth a step on its way down, so the nearest number would always be the
old one, and it could grow but never fall. So both moments are rounded to one of their neighbours in
proportion to the distance from the other (stochastic rounding, Gupta et al. 2015): on average they
move as they should.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.optim.moments import Coding, random_bits


def round_at_random(x: jax.Array, noise: jax.Array) -> jax.Array:
    """Float32 to bfloat16, away from zero or towards it; noise: uint32 below 2^16, of its shape.

    A float32 is a bfloat16 and 16 further bits. They carry over where they and the noise exceed 16
    bits, which is as probable as the share of the way that they are.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)


def zeros(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """Both moments before the first step."""
    return jnp.zeros(shape, jnp.bfloat16), jnp.zeros(shape, jnp.bfloat16)


def encode(m: jax.Array, v: jax.Array, seed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both, rounded by different halves of the same random bits."""
    noise = random_bits(m.shape, seed)
    return round_at_random(m, noise >> 16), round_at_random(v, noise & np.uint32(0xFFFF))


BFLOAT16 = Coding(
    zeros=zeros,
    encode=encode,
    decode=lambda m, v: (m.astype(jnp.float32), v.astype(jnp.float32)),
)
