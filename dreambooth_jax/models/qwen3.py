"""Qwen3, a causal language model, as a text encoder (Qwen team 2025): Z-Image's and FLUX.2 klein's.

RMS norms before each sub-layer, of queries and keys as well; rotary positions; fewer heads of keys
and values than of queries (Ainslie et al. 2023). Image models read the residual stream after some
of its layers, so that the layers above them, the last norm and the output layer are not built.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import layers, read_config, rope
from dreambooth_jax.models.layers import Array

# Keys of config.json with the only values under which leaving them out is right.
_INERT: dict[str, tuple[Any, ...]] = {
    "model_type": ("qwen3",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "use_sliding_window": (False, None),
    "rope_scaling": (None,),
}
_REMEDY = (
    "Z-Image and FLUX.2 klein come with plain Qwen3-4B or 8B: copy the folder text_encoder of the "
    "base model again."
)


@dataclasses.dataclass(frozen=True)
class Qwen3Config:
    """The keys of `text_encoder/config.json` that shape the encoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float = 1e-6

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Qwen3Config":
        """Reads `config.json`; keys that are about generating text are not needed.

        Raises:
          ValueError: every key that is missing or that this network cannot honour, in one message.
        """
        positions = dict(raw.get("rope_parameters") or {})
        raw = {**raw}
        if raw.get("rope_theta") is None:  # transformers 5 writes it into `rope_parameters`
            raw["rope_theta"] = positions.get("rope_theta")
        wrong = read_config.kinds(cls, raw)
        read_config.refuse("text_encoder/config.json of a Qwen3", wrong, _REMEDY)
        problems = [*read_config.missing(cls, raw), *read_config.other_than(raw, _INERT)]
        kind = positions.get("rope_type", "default")
        if kind != "default":
            problems.append(f"rope_parameters has rope_type {kind!r}; supported: 'default'")
        if set(raw.get("layer_types") or ()) - {"full_attention"}:
            problems.append("layer_types has others than 'full_attention'; supported: that alone")
        heads, fewer = raw.get("num_attention_heads"), raw.get("num_key_value_heads")
        if heads and fewer and heads % fewer:
            problems.append(
                f"num_attention_heads = {heads} does not divide by num_key_value_heads = {fewer}"
            )
        read_config.refuse("text_encoder/config.json of a Qwen3", problems, _REMEDY)
        return cls(**read_config.given(cls, raw))


class SelfAttention(nnx.Module):
    """Attention of each token to itself and those before it, `[B,L,D]`."""

    def __init__(self, cfg: Qwen3Config):
        size, inner = cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim
        fewer = cfg.num_key_value_heads * cfg.head_dim
        self.q_proj = layers.Linear(size, inner, bias=False)
        self.k_proj = layers.Linear(size, fewer, bias=False)
        self.v_proj = layers.Linear(size, fewer, bias=False)
        self.o_proj = layers.Linear(inner, size, bias=False)
        self.q_norm = layers.RMSNorm(cfg.head_dim, eps=cfg.rms_norm_eps)
        self.k_norm = layers.RMSNorm(cfg.head_dim, eps=cfg.rms_norm_eps)
        self.heads = cfg.num_key_value_heads  # those in which all four kernels are whole
        self.queries_per_key = cfg.num_attention_heads // cfg.num_key_value_heads
        self.head_dim = cfg.head_dim

    def __call__(self, x: Array, turns: Array, bias: Array) -> Array:
        q, k, v = (
            project(x).reshape(*x.shape[:2], -1, self.head_dim)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q = rope.turn_halves(self.q_norm(q), turns)
        k = rope.turn_halves(self.k_norm(k), turns)
        k, v = (jnp.repeat(y, self.queries_per_key, axis=2) for y in (k, v))
        answer = layers.attention(q, k, v, bias=bias)
        return layers.whole(self.o_proj(answer.reshape(*x.shape[:2], -1)))


class FeedForward(nnx.Module):
    """Two layers, the first times an activated twin of itself (Shazeer 2020)."""

    def __init__(self, cfg: Qwen3Config):
        self.gate_proj = layers.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = layers.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = layers.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)))


class Layer(nnx.Module):
    """x plus attention of its norm, then plus feed-forward layers of its norm."""

    def __init__(self, cfg: Qwen3Config):
        self.input_layernorm = layers.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.self_attn = SelfAttention(cfg)
        self.post_attention_layernorm = layers.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps)
        self.mlp = FeedForward(cfg)

    def __call__(self, x: Array, turns: Array, bias: Array) -> Array:
        x = x + self.self_attn(self.input_layernorm(x), turns, bias)
        return x + self.mlp(self.post_attention_layernorm(x))


class Stack(nnx.Module):
    """Table and layers, under the name of the weight file; the last norm where all are built."""

    def __init__(self, cfg: Qwen3Config, count: int):
        self.embed_tokens = layers.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.layers = nnx.List([Layer(cfg) for _ in range(count)])
        whole = count == cfg.num_hidden_layers
        self.norm = layers.RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps) if whole else None


class Qwen3Encoder(nnx.Module):
    """Token ids and mask, int `[P,L]` -> states after each number of layers in `after`, `[P,L,D]`.

    Padding stands on the right. No token reads it, but it reads the tokens before it, and its
    states are part of the answer. Only what follows the last layer is normed.
    """

    def __init__(self, cfg: Qwen3Config, count: int):
        self.model = Stack(cfg, count)
        self.cfg = cfg

    def __call__(
        self, ids: Array, mask: Array, *, after: Sequence[int], dtype: Any = jnp.float32
    ) -> list[Array]:
        built = len(self.model.layers)
        if not all(0 <= k <= built for k in after):
            raise ValueError(f"states after {tuple(after)} layers are asked for; built: {built}.")
        x = self.model.embed_tokens(ids).astype(dtype)
        length = ids.shape[1]
        turns = rope.angles(np.arange(length), self.cfg.head_dim, theta=self.cfg.rope_theta)[None]
        earlier = jnp.arange(length)[None, :] <= jnp.arange(length)[:, None]
        seen = earlier[None, None] & (mask[:, None, None, :] > 0)
        bias = jnp.where(seen, 0.0, jnp.finfo(jnp.float32).min)
        states = [x]
        for layer in self.model.layers[: max(after)]:
            states.append(layer(states[-1], jnp.asarray(turns), bias))
        if self.model.norm is not None and len(states) > built:
            states[-1] = self.model.norm(states[-1])
        return [states[k] for k in after]


def build(config: Mapping[str, Any], *, count: int | None = None) -> layers.Network:
    """The network that `text_encoder/config.json` describes, or its first `count` layers.

    Raises:
      ValueError: the file cannot be honoured, or has fewer layers.
    """
    cfg = Qwen3Config.from_dict(config)
    if count is not None and count > cfg.num_hidden_layers:
        raise ValueError(
            f"text_encoder/config.json: num_hidden_layers = {cfg.num_hidden_layers}; {count} are "
            "needed. Is it the text encoder of this base model?"
        )
    return layers.take_apart(Qwen3Encoder(cfg, cfg.num_hidden_layers if count is None else count))


def unread(config: Mapping[str, Any], *, count: int) -> str:
    """A regex of the keys of a whole weight file that the first `count` layers do not read."""
    above = "|".join(map(str, range(count, Qwen3Config.from_dict(config).num_hidden_layers)))
    return rf"lm_head\.weight|(model\.)?(norm\.weight|layers\.({above or '-'})\..*)"
