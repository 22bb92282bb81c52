"""Products of float32 arrays whose factors are rounded to bfloat16, and summed in float32.

A CPU with avx512_bf16 multiplies those twice as fast. `rounded` is for what is traced inside;
layers ask `are_rounded`. It is for drawing: where gradients are taken, value and gradient are those
of the plain product in float32, since XLA's products with a turned factor gain nothing there.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

Array = jax.Array

_ROUNDED = contextvars.ContextVar("products of rounded factors", default=False)
# Channels from which on a convolution is faster as a product for each of its kernel's positions.
_CHANNELS = 128


@contextlib.contextmanager
def rounded(on: bool) -> Iterator[None]:
    """Rounds the factors of products of float32 arrays that are traced inside."""
    before = _ROUNDED.set(on)
    try:
        yield
    finally:
        _ROUNDED.reset(before)


def are_rounded(x: Array) -> bool:
    """Returns True where products of this array are to be rounded."""
    return _ROUNDED.get() and x.dtype == jnp.float32


def gain_as_products(kernel: Array) -> bool:
    """Returns True for a kernel `[k,k,in,out]` whose convolution is to be one of `by_position`."""
    return min(kernel.shape[2:]) >= _CHANNELS


@jax.custom_vjp
def multiply(x: Array, kernel: Array) -> Array:
    """`x @ kernel`: `[..., in]` and `[in, out]` -> `[..., out]`, float32."""
    flat = x.reshape(-1, x.shape[-1])  # XLA's fast product is one of matrices
    return _product(flat, kernel).reshape(*x.shape[:-1], kernel.shape[-1])


def _product(x: Array, kernel: Array) -> Array:
    half = jnp.bfloat16
    return jnp.dot(x.astype(half), kernel.astype(half), preferred_element_type=jnp.float32)


multiply.defvjp(
    lambda x, kernel: (x @ kernel, (x, kernel)),
    lambda kept, dy: jax.vjp(jnp.matmul, *kept)[1](dy),
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def by_position(
    x: Array, kernel: Array, padding: tuple[int, int], plain: Callable[[Array, Array], Array]
) -> Array:
    """Convolution `[B,H,W,in]` of stride 1 that keeps H, W, with a kernel `[k,k,in,out]`, float32.

    A product for each position of the kernel, added up. `plain` is the same in float32, for
    gradients.
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


def _by_position_forward(
    x: Array, kernel: Array, padding: tuple[int, int], plain: Callable[[Array, Array], Array]
) -> tuple[Array, tuple[Array, Array]]:
    return plain(x, kernel), (x, kernel)


def _by_position_backward(
    padding: tuple[int, int],
    plain: Callable[[Array, Array], Array],
    kept: tuple[Array, Array],
    dy: Array,
) -> tuple[Array, Array]:
    return jax.vjp(plain, *kept)[1](dy)


by_position.defvjp(_by_position_forward, _by_position_backward)
