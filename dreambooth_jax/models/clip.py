"""The text encoder of CLIP (Radford et al. 2021), as Stable Diffusion 1, 2 and XL use it.

A causal transformer with learned positions. Padding is not masked: those models were trained so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, read_config
from dreambooth_jax.models.layers import Array

ARCHITECTURES = {"CLIPTextModel": False, "CLIPTextModelWithProjection": True}
OLD_EOS = 2  # files older than the true id have this one, and mean the largest id of the prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class StackConfig:
    """The keys of a `config.json` that shape the layers, of texts and of pictures alike."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def problems(cls, raw: Mapping[str, Any]) -> list[str]:
        """Returns the keys that the file lacks, and an activation that is not known here."""
        only = {"hidden_act": sorted(layers.ACTIVATIONS)}
        problems = [*read_config.kinds(cls, raw), *read_config.missing(cls, raw)]
        return [*problems, *read_config.other_than(raw, only)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig(StackConfig):
    """The keys of `text_encoder/config.json` that shape the encoder."""

    vocab_size: int
    projection_dim: int = 512
    max_position_embeddings: int = 77
    eos_token_id: int = 49407
    projects: bool = False
    skip: int = 0  # last layers that neither `last` nor `penultimate` have passed

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ClipConfig":
        """Reads `config.json`; keys that are about pictures or training are not needed.

        Raises:
          ValueError: a key is missing, or has a value that this network does not know.
        """
        problems = cls.problems(raw)
        architecture = (raw.get("architectures") or ["CLIPTextModel"])[0]
        if architecture not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            problems.append(f"architectures = [{architecture!r}]; supported: {known}")
        read_config.refuse("text_encoder/config.json of a CLIP", problems)
        return cls(**read_config.given(cls, raw) | {"projects": ARCHITECTURES[architecture]})


class ClipText(NamedTuple):
    """Outputs that a denoiser may use: states `[P,L,D]`, vectors `[P,D]` and `[P,projection]`.

    last: after the last norm; penultimate: before the last layer, not normed; both `skip` layers
    earlier. pooled: the end mark's last state, after all layers; projected: the same, projected
    (None where the file has no projection).
    """

    last: Array
    penultimate: Array
    pooled: Array
    projected: Array | None


class SelfAttention(nnx.Module):
    """Attention of each token to others, `[B,L,D]`; `bias` says to which, None to all."""

    def __init__(self, cfg: StackConfig):
        size = cfg.hidden_size
        self.q_proj = layers.Linear(size, size)
        self.k_proj = layers.Linear(size, size)
        self.v_proj = layers.Linear(size, size)
        self.out_proj = layers.Linear(size, size)
        self.heads = cfg.num_attention_heads

    def __call__(self, x: Array, bias: Array | None) -> Array:
        heads = (*x.shape[:2], self.heads, -1)
        q, k, v = (project(x).reshape(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        answer = layers.attention(q, k, v, bias=bias).reshape(x.shape)
        return layers.whole(self.out_proj(answer))


class FeedForward(nnx.Module):
    """Two linear layers around an activation."""

    def __init__(self, cfg: StackConfig):
        self.fc1 = layers.Linear(cfg.hidden_size, cfg.intermediate_size)
        self.fc2 = layers.Linear(cfg.intermediate_size, cfg.hidden_size)
        self.act_fn = cfg.hidden_act

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.fc2(layers.activation(self.act_fn)(self.fc1(x))))


class Layer(nnx.Module):
    """x plus attention of its norm, then plus feed-forward layers of its norm."""

    def __init__(self, cfg: StackConfig):
        self.layer_norm1 = layers.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.self_attn = SelfAttention(cfg)
        self.layer_norm2 = layers.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.mlp = FeedForward(cfg)

    def __call__(self, x: Array, bias: Array | None) -> Array:
        x = x + self.self_attn(self.layer_norm1(x), bias)
        return x + self.mlp(self.layer_norm2(x))


class Embeddings(nnx.Module):
    """Tokens and positions: int `[B,L] -> [B,L,D]`."""

    def __init__(self, cfg: ClipConfig):
        self.token_embedding = layers.Embedding(cfg.vocab_size, cfg.hidden_size)
        self.position_embedding = layers.Embedding(cfg.max_position_embeddings, cfg.hidden_size)

    def __call__(self, ids: Array) -> Array:
        return self.token_embedding(ids) + self.position_embedding(jnp.arange(ids.shape[1]))[None]


class Stack(nnx.Module):
    """All layers, under the name of the weight file."""

    def __init__(self, cfg: StackConfig):
        self.layers = nnx.List([Layer(cfg) for _ in range(cfg.num_hidden_layers)])


class TextModel(nnx.Module):
    """Embeddings, layers and the last norm, which `ClipEncoder` runs."""

    def __init__(self, cfg: ClipConfig):
        self.embeddings = Embeddings(cfg)
        self.encoder = Stack(cfg)
        self.final_layer_norm = layers.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)


class ClipEncoder(nnx.Module):
    """Token ids int `[P,L]` -> `ClipText` in `dtype`."""

    def __init__(self, cfg: ClipConfig):
        self.text_model = TextModel(cfg)
        self.text_projection = (
            layers.Linear(cfg.hidden_size, cfg.projection_dim, bias=False) if cfg.projects else None
        )
        self.cfg = cfg

    def __call__(self, ids: Array, *, dtype: Any = jnp.float32) -> ClipText:
        x = self.text_model.embeddings(ids).astype(dtype)
        length = ids.shape[1]
        later = jnp.arange(length)[None, :] > jnp.arange(length)[:, None]
        bias = jnp.where(later, jnp.finfo(jnp.float32).min, 0.0)[None, None]
        states = [x]
        for layer in self.text_model.encoder.layers:
            states.append(layer(states[-1], bias))
        norm, skipped = self.text_model.final_layer_norm, self.cfg.skip
        last = norm(states[-1])
        is_end = ids if self.cfg.eos_token_id == OLD_EOS else ids == self.cfg.eos_token_id
        pooled = last[jnp.arange(ids.shape[0]), jnp.argmax(is_end, -1)]
        projected = None if self.text_projection is None else self.text_projection(pooled)
        shown = norm(states[-1 - skipped]) if skipped else last
        return ClipText(shown, states[-2 - skipped], pooled, projected)


def build(config: Mapping[str, Any], *, skip: int = 0) -> layers.Network:
    """The network that `text_encoder/config.json` describes.

    Args:
      skip: its last layers that the states leave out, as `clip_skip` of diffusers.

    Raises:
      ValueError: as `ClipConfig.from_dict`, or it has no more layers than are to be left out.
    """
    read = ClipConfig.from_dict(config)
    if skip >= read.num_hidden_layers:
        raise ValueError(
            f"clip_skip = {skip}: expected less than the CLIP's {read.num_hidden_layers} layers."
        )
    return layers.take_apart(ClipEncoder(dataclasses.replace(read, skip=skip)))
