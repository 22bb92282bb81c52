"""Attention kernels of accelerators for any number of tokens: Pallas' on TPUs, cuDNN's on NVIDIA.

Both take lengths of their own choice only. So queries and keys are filled up with zeros; the
kernels are told which keys are real, and the answers of queries that are not are cut off.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax import flops

Array = jax.Array

_LANES = 128  # of a TPU's registers: blocks are multiples of them
_BLOCK = 512  # queries or keys of a block of the TPU's kernel, at most
_TURN = 64  # rows of one grid step: a guess, not measured on a TPU
# cuDNN has gradients of even lengths alone (jax 0.10.2, which looks for a bias and always finds
# one); multiples of 8 also are what NVIDIA's tensor cores read at once.
_EVEN = 8
# Masks are the lowest float32, which bfloat16 rounds to infinity: rows of nothing but it are NaN.
_LEAST = -(2.0**40)


def filled(length: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-length // unit) * unit


def flash(q: Array, k: Array, v: Array, *, scale: float) -> Array:
    """FlashAttention (Dao et al. 2022) as jax's Pallas kernel for TPUs has it, without a bias.

    Q `[B,L,H,D]`, k and v `[B,S,H,D]` -> `[B,L,H,D]`. Scores never leave the processor.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as kernels

    a, b = block(q.shape[1]), block(k.shape[1])
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

    def whole_blocks(q: Array, k: Array, v: Array, queries: int, keys: int) -> Array:
        segments = None
        if keys != k.shape[1]:
            # Queries see keys of their own segment alone: what was filled up is of another.
            other = jnp.broadcast_to(jnp.arange(k.shape[1]) >= keys, k.shape[:2])
            own = jnp.zeros(q.shape[:2], jnp.int32)
            segments = kernels.SegmentIds(q=own, kv=other.astype(jnp.int32))
        turned = (jnp.moveaxis(x, 2, 1) for x in (q, k, v))
        answer = kernels.flash_attention(
            *turned, segment_ids=segments, sm_scale=scale, block_sizes=sizes
        )
        return jnp.moveaxis(answer, 1, 2)

    return _fill(whole_blocks, q, k, v, units=(a, b))


def block(length: int) -> int:
    """Multiple of the lanes in which a length is cut, so that little is filled up in few turns."""
    sizes = range(_BLOCK, 0, -_LANES)
    return min(sizes, key=lambda size: filled(length, size) * (1 + _TURN / size))


def cudnn(q: Array, k: Array, v: Array, bias: Array | None, *, scale: float) -> Array:
    """FlashAttention as cuDNN has it, in 16 bits, with heads of at most 128.

    Q `[B,L,H,D]`, k and v `[B,S,H,D]` -> `[B,L,H,D]`; `bias` is broadcast to `[B,H,L,S]` and added
    to the scores in the dtype of q.
    """
    queries, keys = q.shape[1], k.shape[1]
    more = filled(queries, _EVEN) - queries, filled(keys, _EVEN) - keys
    if bias is not None:
        wide = jnp.broadcast_to(bias, (*bias.shape[:2], queries, keys))
        wide = jnp.maximum(wide, _LEAST).astype(q.dtype)
        bias = jnp.pad(wide, ((0, 0), (0, 0), (0, more[0]), (0, more[1])))

    def even(q: Array, k: Array, v: Array, queries: int, keys: int) -> Array:
        lengths: dict[str, Any] = {}
        if any(more):
            # Made of q, for jax.vmap: jax wants lengths of as many rows as it then has queries.
            some = q[:, 0, 0, 0]
            of_each = {"query_seq_lengths": queries, "key_value_seq_lengths": keys}
            lengths = {
                name: jnp.where(some == some, n, n).astype(jnp.int32)  # also where it is NaN
                for name, n in of_each.items()
            }
        return jax.nn.dot_product_attention(
            q, k, v, bias=bias, scale=scale, implementation="cudnn", **lengths
        )

    return _fill(even, q, k, v, units=(_EVEN, _EVEN))


def _fill(
    kernel: Callable[..., Array], q: Array, k: Array, v: Array, *, units: tuple[int, int]
) -> Array:
    """Runs a kernel on queries and keys padded to multiples, with their real numbers.

    `flops.count` counts the real ones.
    """
    queries, keys = q.shape[1], k.shape[1]
    all_queries, all_keys = filled(queries, units[0]), filled(keys, units[1])

    def run(q: Array, k: Array, v: Array) -> Array:
        return kernel(q, k, v, queries, keys)

    q = jnp.pad(q, ((0, 0), (0, all_queries - queries), (0, 0), (0, 0)))
    k, v = (jnp.pad(x, ((0, 0), (0, all_keys - keys), (0, 0), (0, 0))) for x in (k, v))
    if (queries, keys) != (all_queries, all_keys):
        run = flops.counted(run, queries * keys, of=all_queries * all_keys)
    return run(q, k, v)[:, :queries]
