"""Products of float32 arrays whose factors are rounded to bfloat16, and summed in float32.

A CPU with avx512_bf16 multiplies those twice as fast. `products` is for what is traced inside,
layers ask `are_on`. It is for drawing: XLA's products with a turned factor, as gradients are, gain
nothing there.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp

Array = jax.Array

_ON = contextvars.ContextVar("products of rounded factors", default=False)
# Channels from which on a convolution is faster as a product for each of its kernel's positions,
# by `python bench/convolutions.py --rounded`.
_CHANNELS = 256


@contextlib.contextmanager
def products(on: bool) -> Iterator[None]:
    """Rounds the factors of products of float32 arrays that are traced inside, where `on`."""
    before = _ON.set(on)
    try:
        yield
    finally:
        _ON.reset(before)


def are_on(x: Array) -> bool:
    """Returns True where products of this array are to be rounded."""
    return _ON.get() and x.dtype == jnp.float32


def gain_by_position(kernel: Array) -> bool:
    """Returns True for a kernel `[k,k,in,out]` whose convolution is to be one of `by_position`."""
    return min(kernel.shape[2:]) >= _CHANNELS


def multiply(x: Array, kernel: Array) -> Array:
    """`x @ kernel`: `[..., in]` and `[in, out]` -> `[..., out]`, float32."""
    flat = x.reshape(-1, x.shape[-1])  # XLA's fast product is one of matrices
    return _product(flat, kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _product(x: Array, kernel: Array) -> Array:
    half = jnp.bfloat16
    return jnp.dot(x.astype(half), kernel.astype(half), preferred_element_type=jnp.float32)


def by_position(x: Array, kernel: Array, padding: tuple[int, int]) -> Array:
    """Convolution `[B,H,W,in]` of stride 1 that keeps H, W, with a kernel `[k,k,in,out]`, float32.

    A product for each position of the kernel, added up.
    """
    _, height, width, channels = x.shape
    padded = jnp.pad(x.astype(jnp.bfloat16), ((0, 0), padding, padding, (0, 0)))
    side = range(len(kernel))
    total = sum(
        _product(padded[:, i : i + height, j : j + width].reshape(-1, channels), kernel[i, j])
        for i in side
        for j in side
    )
    return jnp.reshape(total, (*x.shape[:3], -1))
