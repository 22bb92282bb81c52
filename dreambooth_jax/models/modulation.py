"""Adaptive layer norms (Peebles & Xie 2023): what the blocks of flow transformers share.

One vector, made of the time and of what else holds for the whole picture, shifts and scales the
norm before each branch and gates what leaves it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers
from dreambooth_jax.models.transformer import Nothing

Array = jax.Array

_WAVES = 256  # numbers of a sinusoid


def layer_norm(x: Array, *, eps: float = 1e-6) -> Array:
    """Layer normalisation over the last axis without parameters, in float32."""
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps)
    return unit.astype(x.dtype)


def modulate(x: Array, shift: Array, scale: Array) -> Array:
    """`layer_norm(x)·(1 + scale) + shift`: tokens `[B,L,D]`, vectors `[B,D]` or `[B,1,D]`."""
    return shift_scale(layer_norm(x), shift, scale)


def shift_scale(x: Array, shift: Array, scale: Array) -> Array:
    """`x·(1 + scale) + shift`: tokens `[B,L,D]`, vectors `[B,D]` or `[B,1,D]`."""
    shift, scale = (y[:, None] if y.ndim == 2 else y for y in (shift, scale))
    return x * (1.0 + scale) + shift


class Modulation(nnx.Module):
    """The vector `[B,D]` -> `count` vectors `[B,1,D]`: shifts, scales and gates of a block."""

    def __init__(self, size: int, count: int):
        self.linear = layers.Linear(size, count * size)
        self.count = count

    def __call__(self, vector: Array) -> list[Array]:
        said = layers.whole(self.linear(jax.nn.silu(vector)))
        return jnp.split(said[:, None], self.count, -1)


class OutputNorm(nnx.Module):
    """Tokens `[B,L,D]`, normed, with scale and shift of the vector; the scale comes first here."""

    def __init__(self, size: int):
        self.linear = layers.Linear(size, 2 * size)

    def __call__(self, x: Array, vector: Array) -> Array:
        scale, shift = jnp.split(layers.whole(self.linear(jax.nn.silu(vector))), 2, -1)
        return modulate(x, shift, scale)


class MLP(nnx.Module):
    """Two linear layers: `[B,in] -> [B,D]`."""

    def __init__(self, size_in: int, size: int):
        self.linear_1 = layers.Linear(size_in, size)
        self.linear_2 = layers.Linear(size, size)

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.linear_2(jax.nn.silu(self.linear_1(x))))


class TimeText(nnx.Module):
    """Time, pooled text and, where `guided`, the strength of guidance -> the vector `[B,D]`.

    t `[B]` is 1000 times the level of noise; guidance `[B]` as pipelines name it, such as 3.5.
    Both are float32 up to their sinusoids, whatever the network computes in.
    """

    def __init__(self, size: int, pooled: int, *, guided: bool = False):
        self.timestep_embedder = MLP(_WAVES, size)
        self.text_embedder = MLP(pooled, size)
        self.guidance_embedder = MLP(_WAVES, size) if guided else None

    def __call__(self, t: Array, pooled: Array, guidance: Array | None, *, dtype: Any) -> Array:
        vector = self.timestep_embedder(waves(t, len(pooled)).astype(dtype))
        if self.guidance_embedder is not None:
            if guidance is None:
                raise ValueError(
                    "this transformer (guidance_embeds true) needs guidance [B], such as 3.5."
                )
            strength = waves(1000.0 * jnp.asarray(guidance, jnp.float32), len(pooled))
            vector = vector + self.guidance_embedder(strength.astype(dtype))
        elif guidance is not None:
            raise ValueError(
                "this transformer (guidance_embeds false) takes no guidance; leave it out."
            )
        return vector + self.text_embedder(pooled.astype(dtype))


def waves(t: Array, rows: int) -> Array:
    """Sinusoid of a number per row, or one for all: `[B]` or `[]` -> float32 `[B,256]`."""
    of = layers.time_sinusoid(jnp.atleast_1d(t), _WAVES, flip_sin_to_cos=True, freq_shift=0.0)
    return jnp.broadcast_to(of, (rows, _WAVES))


class Gelu(nnx.Module):
    """A linear layer, then GELU in its tanh form."""

    def __init__(self, size_in: int, size_out: int):
        self.proj = layers.Linear(size_in, size_out)

    def __call__(self, x: Array) -> Array:
        return jax.nn.gelu(self.proj(x), approximate=True)


class FeedForward(nnx.Module):
    """Two linear layers, four times as wide inside."""

    def __init__(self, size: int):
        last = layers.Linear(4 * size, size)
        self.net: nnx.List[Any] = nnx.List([Gelu(size, 4 * size), Nothing(), last])

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.net[2](self.net[0](x)))
