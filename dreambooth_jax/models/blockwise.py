"""Softmax attention for processors with caches: some queries of one head of one row at a time.

A block's scores stay in a core's cache, and the backward pass computes them again from the
logarithm of their sum (Dao et al. 2022, https://arxiv.org/abs/2205.14135, whose names the code has;
here all keys at once, so nothing is rescaled). Every product is written so that no large matrix is
turned: turning the scores takes a CPU longer than multiplying by them.
"""

import functools

import jax
import jax.numpy as jnp

Array = jax.Array

_QUERIES = 512  # of a block; with 1024 keys 2 MB of scores
_LANES = 8  # float32 numbers of a register


def block(queries: int) -> int:
    """Queries of a block, at most 512: all blocks alike, the last filled up by less than 8 each."""
    turns = -(-queries // _QUERIES)
    return min(_QUERIES, -(-queries // (turns * _LANES)) * _LANES)


def attend(q: Array, k: Array, v: Array, *, scale: float) -> Array:
    """Q `[B,L,H,D]`, k `[B,S,H,D]`, v `[B,S,H,E]` -> `[B,L,H,E]`."""
    rows, queries, heads = q.shape[:3]
    more = -queries % block(queries)  # what they are answered is cut off
    q = jnp.pad(q, ((0, 0), (0, more), (0, 0), (0, 0)))
    # [B·H, tokens, width]
    given = (jnp.moveaxis(x, 2, 1).reshape(rows * heads, *x.shape[1::2]) for x in (q, k, v))
    answer = _attend(*given, scale)
    return jnp.moveaxis(answer.reshape(rows, heads, *answer.shape[1:]), 1, 2)[:, :queries]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(q: Array, k: Array, v: Array, scale: float) -> Array:
    return _forward(q, k, v, scale)[0]


def _forward(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, tuple[Array, ...]]:
    """The answer o `[N,L,E]`, and what the backward pass needs: arguments, o, log-sum-exp."""
    size = block(q.shape[1])

    def of_head(args: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v = args
        k = k.T

        def of_block(q: Array) -> tuple[Array, Array]:
            scores = scale * (q @ k).astype(jnp.float32)
            most = scores.max(-1, keepdims=True)
            p = jnp.exp(scores - most)
            total = p.sum(-1, keepdims=True)
            o = (p.astype(v.dtype) @ v).astype(jnp.float32) / total
            return o.astype(v.dtype), (most + jnp.log(total))[:, 0]

        o, lse = jax.lax.map(of_block, _cut(q, size))
        return o.reshape(-1, o.shape[-1]), lse.reshape(-1)

    o, lse = jax.lax.map(of_head, (q, k, v))
    return o, (q, k, v, o, lse)


def _backward(scale: float, kept: tuple[Array, ...], do: Array) -> tuple[Array, Array, Array]:
    """The gradients for q, k and v from that for the answer, do `[N,L,E]`.

    p = exp(scale·qkᵀ - lse), ds = p·(do·vᵀ - Σ do·o); dv = pᵀdo, dq = scale·ds·k, dk = scale·dsᵀq.
    Those with pᵀ and dsᵀ are computed turned.
    """
    size = block(do.shape[1])
    q, k, v, o, lse = kept
    delta = (do.astype(jnp.float32) * o.astype(jnp.float32)).sum(-1)

    def of_head(args: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        q, k, v, do, lse, delta = args
        turned_k, turned_v = k.T, v.T

        def of_block(
            so_far: tuple[Array, Array], args: tuple[Array, ...]
        ) -> tuple[tuple[Array, Array], Array]:
            dk, dv = so_far
            q, do, lse, delta = args
            p = jnp.exp(scale * (q @ turned_k).astype(jnp.float32) - lse[:, None])
            ds = p * ((do @ turned_v).astype(jnp.float32) - delta[:, None])
            p, ds = p.astype(q.dtype), ds.astype(q.dtype)
            dv = dv + (do.T @ p).astype(jnp.float32)
            dk = dk + (q.T @ ds).astype(jnp.float32)
            return (dk, dv), (scale * (ds @ k).astype(jnp.float32)).astype(q.dtype)

        none = jnp.zeros(turned_k.shape, jnp.float32), jnp.zeros(turned_v.shape, jnp.float32)
        cut = (_cut(q, size), _cut(do, size), lse.reshape(-1, size), delta.reshape(-1, size))
        (dk, dv), dq = jax.lax.scan(of_block, none, cut)
        return dq.reshape(q.shape), (scale * dk).T.astype(k.dtype), dv.T.astype(v.dtype)

    return jax.lax.map(of_head, (q, k, v, do, lse, delta))


def _cut(x: Array, size: int) -> Array:
    """`[L,D]` in blocks `[L/size,size,D]`."""
    return x.reshape(-1, size, x.shape[-1])


_attend.defvjp(_forward, _backward)
