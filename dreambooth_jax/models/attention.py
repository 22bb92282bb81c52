"""Softmax attention, in the form that suits the device for which a program is traced.

On TPUs (`target.device`) it is a Pallas kernel where scores are many, on NVIDIA's GPUs cuDNN's, on
CPU some queries of a head at a time, else what XLA makes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from dreambooth_jax.models import blockwise, target

Array = jax.Array

# Score matrices above this many numbers no longer fit a core's cache: then parts of them at a time
# are faster on CPU.
_CPU_SCORES_AT_ONCE = 2**20
# Queries from which on the kernel moves fewer bytes than XLA on TPU, and needs less memory:
# `python tools/tpu_attention.py`, docs/tpu.md.
_TPU_QUERIES = 1024
_TPU_KEYS = 512
_BLOCK = 512  # queries or keys of a block of the kernel
_LANES = 128  # of a TPU's registers: blocks are multiples of them


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
    """Which of `FORMS` queries `[B,L,H,D]` get; `plain`: no bias."""
    rows, queries, heads, size = shape
    platform, kind = target.device()
    if platform == "cpu":
        few = rows * queries * keys * heads <= _CPU_SCORES_AT_ONCE
        if few:
            return "whole"
        even = rows % target.parts()[0] == 0 and blockwise.block(queries) > 0
        return "blockwise" if plain and even else "by head"
    if platform == "tpu" and plain and queries >= _TPU_QUERIES and keys >= _TPU_KEYS:
        even = rows % target.parts()[0] == 0 and queries % _LANES == 0
        return "pallas" if even and size <= 256 else "xla"
    # Turing and before have no such kernel; head sizes are those of the oldest that do.
    if "NVIDIA" in kind and plain and jnp.dtype(dtype).itemsize == 2 and _since_ampere():
        return "cudnn" if size % 8 == 0 and size <= 128 else "xla"
    return "xla"


def _since_ampere() -> bool:
    capability = getattr(jax.local_devices()[0], "compute_capability", "0.0")
    return float(capability) >= 8.0


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
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=scale, implementation="cudnn")


def _pallas(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    assert bias is None
    return _on_each(functools.partial(flash, scale=scale), q, k, v)


def _blockwise(q: Array, k: Array, v: Array, bias: Array | None, scale: float) -> Array:
    assert bias is None
    return _on_each(functools.partial(blockwise.attend, scale=scale), q, k, v)


def _on_each(form: Callable[..., Array], q: Array, k: Array, v: Array) -> Array:
    """A form on each device's own rows and heads, none of which needs another's.

    XLA cannot split kernels and loops. The last axis of the mesh shares heads, the others rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1:
        return form(q, k, v)
    *rows, last = mesh.axis_names
    own = P(tuple(rows), None, last if q.shape[2] % target.parts()[1] == 0 else None)
    return jax.shard_map(form, in_specs=(own,) * 3, out_specs=own, check_vma=False)(q, k, v)


def flash(q: Array, k: Array, v: Array, *, scale: float) -> Array:
    """FlashAttention (Dao et al. 2022) as jax's Pallas kernel for TPUs has it, without a bias.

    Scores never leave the processor. Keys are filled up to whole registers, and masked there.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as kernels

    queries, keys = q.shape[1], k.shape[1]
    whole = -(-keys // _LANES) * _LANES
    q, k, v = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
    segments = None
    if whole != keys:
        k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, whole - keys), (0, 0))) for x in (k, v))
        # Queries see keys of their own segment alone: that of what was filled up has none.
        filled = jnp.broadcast_to(jnp.arange(whole) >= keys, (len(k), whole))
        own = jnp.zeros((len(q), queries), jnp.int32)
        segments = kernels.SegmentIds(q=own, kv=filled.astype(jnp.int32))
    a, b = _block(queries), _block(whole)
    sizes = kernels.BlockSizes(
        block_q=a,
        block_k_major=b,
        block_k=b,
        block_b=1,
        block_q_major_dkv=a,
        block_k_major_dkv=b,
        block_k_dkv=b,
        block_q_dkv=a,
        block_k_major_dq=b,
        block_k_dq=b,
        block_q_dq=a,
    )
    answer = kernels.flash_attention(
        q, k, v, segment_ids=segments, sm_scale=scale, block_sizes=sizes
    )
    return jnp.moveaxis(answer, 1, 2)


def _block(length: int) -> int:
    """The largest multiple of the lanes up to `_BLOCK` that divides `length`."""
    return next(size for size in range(_BLOCK, 0, -_LANES) if length % size == 0)


FORMS = {
    "whole": _whole,
    "by head": _by_head,
    "blockwise": _blockwise,
    "xla": _xla,
    "cudnn": _cudnn,
    "pallas": _pallas,
}
