"""The encoder of T5 v1.1 (Raffel et al. 2020; Shazeer 2020 for the gated feed-forward layers).

Relative positions instead of absolute ones, shared by all layers; RMS norms before each sub-layer;
unscaled attention.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import layers, read_config
from dreambooth_jax.models.layers import Array

_GATED = {"gated-gelu": "gelu_new", "gated-silu": "silu"}
_REMEDY = (
    "The text encoders of Imagen and IF are of T5 v1.1, which is gated; the first T5, with plain "
    "'relu', is none of them. Copy the folder text_encoder of the base model again."
)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The keys of `text_encoder/config.json` that shape the encoder."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "T5Config":
        """Reads `config.json`; keys of the decoder and of text generation are not needed.

        Raises:
          ValueError: a key is missing, or a feed-forward layer is not one of T5 v1.1, gated.
        """
        given, only = read_config.given(cls, raw), {"feed_forward_proj": list(_GATED)}
        problems = [*read_config.kinds(cls, raw), *read_config.missing(cls, raw)]
        problems += [*read_config.other_than(given, only)]
        read_config.refuse("text_encoder/config.json of a T5", problems, _REMEDY)
        return cls(**given)


def position_buckets(length: int, *, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each (query, key) pair, int32 `[L, L]` (Raffel et al. 2020, section 2.1).

    Exact when near, logarithmic when far.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    near = half // 2
    distance = np.abs(offset)
    ratio = np.maximum(distance, 1).astype(np.float32) / near
    far = (np.log(ratio) / np.log(max_distance / near)).astype(np.float32)
    far = np.minimum(near + (far * (half - near)).astype(np.int32), half - 1)
    return ((offset > 0) * half + np.where(distance < near, distance, far)).astype(np.int32)


class SelfAttention(nnx.Module):
    """Attention of all tokens to each other, `[B,L,D]`; `bias` holds positions and mask."""

    def __init__(self, cfg: T5Config, *, with_positions: bool):
        inner = cfg.num_heads * cfg.d_kv
        self.q = layers.Linear(cfg.d_model, inner, bias=False)
        self.k = layers.Linear(cfg.d_model, inner, bias=False)
        self.v = layers.Linear(cfg.d_model, inner, bias=False)
        self.o = layers.Linear(inner, cfg.d_model, bias=False)
        # Only the first layer's file holds the table; all layers use it.
        self.relative_attention_bias = (
            layers.Embedding(cfg.relative_attention_num_buckets, cfg.num_heads)
            if with_positions
            else None
        )
        self.heads = cfg.num_heads

    def __call__(self, x: Array, bias: Array) -> Array:
        heads = (*x.shape[:2], self.heads, -1)
        q, k, v = (project(x).reshape(heads) for project in (self.q, self.k, self.v))
        answer = layers.attention(q, k, v, bias=bias, scale=1.0)
        return layers.whole(self.o(answer.reshape(*x.shape[:2], -1)))


class GatedFeedForward(nnx.Module):
    """Two layers, the first times an activated twin of itself (Shazeer 2020)."""

    def __init__(self, cfg: T5Config):
        self.wi_0 = layers.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.wi_1 = layers.Linear(cfg.d_model, cfg.d_ff, bias=False)
        self.wo = layers.Linear(cfg.d_ff, cfg.d_model, bias=False)
        self.act_fn = _GATED[cfg.feed_forward_proj]

    def __call__(self, x: Array) -> Array:
        hidden = layers.activation(self.act_fn)(self.wi_0(x)) * self.wi_1(x)
        return layers.whole(self.wo(hidden))


class AttentionLayer(nnx.Module):
    """x plus self-attention of its norm, under the names of the weight file."""

    def __init__(self, cfg: T5Config, *, with_positions: bool):
        self.SelfAttention = SelfAttention(cfg, with_positions=with_positions)
        self.layer_norm = layers.RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon)

    def __call__(self, x: Array, bias: Array) -> Array:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class FeedForwardLayer(nnx.Module):
    """x plus the feed-forward layers of its norm, under the names of the weight file."""

    def __init__(self, cfg: T5Config):
        self.DenseReluDense = GatedFeedForward(cfg)
        self.layer_norm = layers.RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon)

    def __call__(self, x: Array) -> Array:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nnx.Module):
    """One layer of the encoder: attention, then feed-forward."""

    def __init__(self, cfg: T5Config, *, with_positions: bool):
        attention = AttentionLayer(cfg, with_positions=with_positions)
        self.layer: nnx.List[Any] = nnx.List([attention, FeedForwardLayer(cfg)])

    def __call__(self, x: Array, bias: Array) -> Array:
        return self.layer[1](self.layer[0](x, bias))


class Stack(nnx.Module):
    """All layers and the last norm, which `T5Encoder` runs."""

    def __init__(self, cfg: T5Config):
        self.block = nnx.List([Block(cfg, with_positions=i == 0) for i in range(cfg.num_layers)])
        self.final_layer_norm = layers.RMSNorm(cfg.d_model, eps=cfg.layer_norm_epsilon)


class T5Encoder(nnx.Module):
    """Token ids and mask, int `[B,L]` -> states `[B,L,D]` in `dtype`; no token sees masked ones.

    Without a mask padding is read like other tokens: flow models were trained so.
    """

    def __init__(self, cfg: T5Config):
        self.shared = layers.Embedding(cfg.vocab_size, cfg.d_model)
        self.encoder = Stack(cfg)
        self.cfg = cfg

    def __call__(self, ids: Array, mask: Array | None = None, *, dtype: Any = jnp.float32) -> Array:
        x = self.shared(ids).astype(dtype)
        table = self.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
        where = position_buckets(
            ids.shape[1],
            buckets=self.cfg.relative_attention_num_buckets,
            max_distance=self.cfg.relative_attention_max_distance,
        )
        bias = jnp.moveaxis(table(where), -1, 0)[None]
        if mask is not None:
            bias = bias + jnp.where(mask[:, None, None, :] > 0, 0.0, jnp.finfo(jnp.float32).min)
        for block in self.encoder.block:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `text_encoder/config.json` describes."""
    return layers.take_apart(T5Encoder(T5Config.from_dict(config)))
