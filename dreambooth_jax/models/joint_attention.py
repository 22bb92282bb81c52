"""Attention of text and image to each other (Esser et al. 2024, section 4).

Both are one sequence in the scores, each projected by its own weights.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, rope

Array = jax.Array

_EPS = 1e-6


def _norm(size: int, wanted: bool) -> layers.RMSNorm | None:
    return layers.RMSNorm(size, eps=_EPS) if wanted else None


class Heads(nnx.Module):
    """Queries, keys and values of tokens, under the names of the weight file.

    Queries and keys are normed per head where `qk_norm` (Henry et al. 2020; Dehghani et al. 2023).
    """

    def __init__(self, size: int, *, heads: int, qk_norm: bool):
        self.to_q = layers.Linear(size, size)
        self.to_k = layers.Linear(size, size)
        self.to_v = layers.Linear(size, size)
        self.norm_q = _norm(size // heads, qk_norm)
        self.norm_k = _norm(size // heads, qk_norm)
        self.heads = heads

    def split(self, x: Array) -> tuple[Array, Array, Array]:
        """Tokens `[B,L,D]` -> q, k, v `[B,L,H,D/H]`."""
        q, k, v = (_by_head(project(x), self.heads) for project in self._projections())
        return _normed(q, self.norm_q), _normed(k, self.norm_k), v

    def _projections(self) -> tuple[layers.Linear, layers.Linear, layers.Linear]:
        return self.to_q, self.to_k, self.to_v


def _by_head(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1)


def _normed(x: Array, norm: layers.RMSNorm | None) -> Array:
    return x if norm is None else norm(x)


class SelfAttention(Heads):
    """Attention of tokens `[B,L,D]` to each other, turned by `turns` `[1,L,D/2H]` where given.

    Without `out` the answer is not projected.
    """

    def __init__(self, size: int, *, heads: int, qk_norm: bool, out: bool = True):
        super().__init__(size, heads=heads, qk_norm=qk_norm)
        self.to_out = nnx.List([layers.Linear(size, size)]) if out else None

    def __call__(self, x: Array, turns: Array | None = None) -> Array:
        answer = _attend(*self.split(x), turns).reshape(x.shape)
        return answer if self.to_out is None else layers.whole(self.to_out[0](answer))


class JointAttention(Heads):
    """Attention of text `[B,T,D]` and image `[B,N,D]` to both; text comes first in `turns`.

    Without `answers_text` what the text would get is not projected, and None.
    """

    def __init__(self, size: int, *, heads: int, qk_norm: bool, answers_text: bool = True):
        super().__init__(size, heads=heads, qk_norm=qk_norm)
        self.to_out = nnx.List([layers.Linear(size, size)])
        self.add_q_proj = layers.Linear(size, size)
        self.add_k_proj = layers.Linear(size, size)
        self.add_v_proj = layers.Linear(size, size)
        self.norm_added_q = _norm(size // heads, qk_norm)
        self.norm_added_k = _norm(size // heads, qk_norm)
        self.to_add_out = layers.Linear(size, size) if answers_text else None

    def __call__(
        self, text: Array, image: Array, turns: Array | None = None
    ) -> tuple[Array | None, Array]:
        added = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        q, k, v = (_by_head(project(text), self.heads) for project in added)
        of_text = (_normed(q, self.norm_added_q), _normed(k, self.norm_added_k), v)
        of_image = self.split(image)
        q, k, v = (jnp.concatenate(both, 1) for both in zip(of_text, of_image, strict=True))
        answer = _attend(q, k, v, turns)
        answer = answer.reshape(*answer.shape[:2], -1)
        length = text.shape[1]
        to_image = layers.whole(self.to_out[0](answer[:, length:]))
        if self.to_add_out is None:
            return None, to_image
        return layers.whole(self.to_add_out(answer[:, :length])), to_image


def _attend(q: Array, k: Array, v: Array, turns: Array | None) -> Array:
    if turns is not None:
        q, k = rope.turn_pairs(q, turns), rope.turn_pairs(k, turns)
    return layers.attention(q, k, v)
