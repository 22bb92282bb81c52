"""Softmax attention, in the form that suits the device for which a program is traced.

On TPUs (`target.device`) it is a Pallas kernel where scores are many, on NVIDIA's GPUs cuDNN's; on
CPU, and where scores are many and no kernel takes them, some queries of a head at a time; else what
XLA makes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dreambooth_jax.models import blockwise, kernels, target

Array = jax.Array

# Score matrices above this many numbers no longer fit a core's cache: then parts of them at a time
# are faster on CPU.
_CPU_SCORES_AT_ONCE = 2**20
# Of a head of a row: from here on no device keeps whole scores.
_SCORES_AT_ONCE = 2**22
# Queries from which on the kernel moves fewer bytes than XLA on TPU, and needs less memory:
# `python tools/tpu_attention.py`, docs/tpu.md.
_TPU_QUERIES = 1024
_TPU_KEYS = 512
_TPU_SIZE = 256  # of a head
_CUDNN_SIZE = 128  # of a head: on all GPUs that have the kernel
# Scores of a head from which on a bias, which cuDNN takes in 16 bits alone, is worth its rounding.
_CUDNN_BIAS = 2**18
_AMPERE = 8.0  # compute capability: Turing and before have no such kernel


def attention(
    q: Array, k: Array, v: Array, *, bias: Array | None = None, scale: float | None = None
) -> Array:
    """Softmax attention (Vaswani et al. 2017): q `[B,L,H,D]`, k and v `[B,S,H,D]` -> `[B,L,H,D]`.

    `bias` is broadcast to `[B,H,L,S]` and added to the scores; `scale` multiplies them before, 1/√D
    when not given. Softmax in float32; returns the dtype of q.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    form = FORMS[chosen(q.shape, k.shape[1], q.dtype, plain=bias is None)]
    return form(q, k, v, bias, scale)


def chosen(shape: tuple[int, ...], keys: int, dtype: Any, *, plain: bool) -> str:
    """Returns the name in `FORMS` for queries `[B,L,H,D]`; `plain`: no bias."""
    rows, queries, heads, size = shape
    platform, _ = target.device()
    even = rows % target.parts()[0] == 0  # else devices do not have whole rows
    if platform == "cpu":
        few = rows * queries * keys * heads <= _CPU_SCORES_AT_ONCE
        if few:
            return "whole"
        return "blockwise" if plain and even else "by head"
    long = queries >= _TPU_QUERIES and keys >= _TPU_KEYS
    if platform == "tpu" and long and plain and even and size <= _TPU_SIZE:
        return "pallas"
    if even and _cudnn_takes(size, dtype) and (plain or queries * keys >= _CUDNN_BIAS):
        return "cudnn"
    if queries * keys >= _SCORES_AT_ONCE:
        return "blockwise" if plain and even else "by head"
    return "xla"


def _cudnn_takes(size: int, dtype: Any) -> bool:
    fits = jnp.dtype(dtype).itemsize == 2 and size % 8 == 0 and size <= _CUDNN_SIZE
    return fits and target.capability() >= _AMPERE


def _whole(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    scores = jnp.einsum("blhd,bshd->bhls", q, k).astype(jnp.float32) * scale
    scores = scores if bias is None else scores + bias.astype(jnp.float32)
    return jnp.einsum("bhls,bshd->blhd", jax.nn.softmax(scores).astype(v.dtype), v)


def _by_head(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    """One head after the other, their scores computed again in the backward pass: with a bias.

    Where devices share the heads, one of each device.
    """
    heads = q.shape[2]
    parts = target.parts()[1] if heads % target.parts()[1] == 0 else 1

    def some(args: tuple[Array, Array, Array, Array | None]) -> Array:
        return _whole(*args, scale)

    def turns(x: Array, axis: int) -> Array:
        cut = x.reshape(*x.shape[:axis], parts, heads // parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(cut, axis + 1, 0)

    if bias is not None:
        bias = turns(jnp.broadcast_to(bias, (bias.shape[0], heads, *bias.shape[2:])), 1)
    given = (*(turns(x, 2) for x in (q, k, v)), bias)
    answer = jax.lax.map(jax.checkpoint(some), given)  # [heads / parts, B, L, parts, D]
    return jnp.moveaxis(answer, 0, 3).reshape(q.shape[:-1] + v.shape[-1:])


def _xla(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=scale, implementation="xla")


def _cudnn(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    return _on_each(functools.partial(kernels.cudnn, scale=scale), q, k, v, bias)


def _pallas(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    assert bias is None
    return _on_each(functools.partial(kernels.flash, scale=scale), q, k, v)


def _blockwise(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    assert bias is None
    return _on_each(functools.partial(blockwise.attend, scale=scale), q, k, v)


def _on_each(
    form: Callable[..., Array], q: Array, k: Array, v: Array, *bias: Array | None
) -> Array:
    """A form on each device's own rows and heads, none of which needs another's.

    XLA cannot split kernels and loops. The last axis of the mesh shares heads, the others rows.
    """
    if target.is_one_device():
        return form(q, k, v, *bias)
    *first, last = jax.sharding.get_abstract_mesh().axis_names
    rows, heads = tuple(first), last if q.shape[2] % target.parts()[1] == 0 else None
    own = P(rows, None, heads)
    of_bias = [
        # What is broadcast is whole everywhere.
        None if b is None else P(rows if len(b) > 1 else None, heads if b.shape[1] > 1 else None)
        for b in bias
    ]
    specs = (own, own, own, *of_bias)
    split = jax.shard_map(form, in_specs=specs, out_specs=own, check_vma=False)
    return split(q, k, v, *bias)


FORMS = {
    "whole": _whole,
    "by head": _by_head,
    "blockwise": _blockwise,
    "xla": _xla,
    "cudnn": _cudnn,
    "pallas": _pallas,
}
