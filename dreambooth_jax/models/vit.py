"""The vision transformer (Dosovitskiy et al. 2021) with the features of DINO (Caron et al. 2021).

Attribute names are the keys of `ViTModel` in published weight files. Only for evaluation: pictures
have the size that the network was trained with.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, read_config
from dreambooth_jax.models.layers import Array


@dataclasses.dataclass(frozen=True)
class VitConfig:
    """The keys of `config.json` that shape the network."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "VitConfig":
        """Reads `config.json`; keys that are about training are not needed.

        Raises:
          ValueError: a key is missing, or has a value that this network does not know.
        """
        only = {"model_type": ["vit"], "hidden_act": sorted(layers.ACTIVATIONS)}
        problems = [*read_config.kinds(cls, raw), *read_config.missing(cls, raw)]
        problems += read_config.other_than(raw, only)
        read_config.refuse("config.json of a vision transformer", problems)
        return cls(**read_config.given(cls, raw))


class SelfAttention(nnx.Module):
    """Queries, keys and values of all tokens, `[B,L,D]`."""

    def __init__(self, cfg: VitConfig):
        size = cfg.hidden_size
        self.query = layers.Linear(size, size, bias=cfg.qkv_bias)
        self.key = layers.Linear(size, size, bias=cfg.qkv_bias)
        self.value = layers.Linear(size, size, bias=cfg.qkv_bias)
        self.heads = cfg.num_attention_heads

    def __call__(self, x: Array) -> Array:
        heads = (*x.shape[:2], self.heads, -1)
        q, k, v = (project(x).reshape(heads) for project in (self.query, self.key, self.value))
        return layers.attention(q, k, v).reshape(x.shape)


class Dense(nnx.Module):
    """A linear layer under the name that the files give it."""

    def __init__(self, size_in: int, size_out: int):
        self.dense = layers.Linear(size_in, size_out)

    def __call__(self, x: Array) -> Array:
        return self.dense(x)


class Attention(nnx.Module):
    """Self-attention and its output layer."""

    def __init__(self, cfg: VitConfig):
        self.attention = SelfAttention(cfg)
        self.output = Dense(cfg.hidden_size, cfg.hidden_size)

    def __call__(self, x: Array) -> Array:
        return self.output(self.attention(x))


class Layer(nnx.Module):
    """x plus attention of its norm, then plus feed-forward layers of its norm."""

    def __init__(self, cfg: VitConfig):
        self.layernorm_before = layers.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.attention = Attention(cfg)
        self.layernorm_after = layers.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.intermediate = Dense(cfg.hidden_size, cfg.intermediate_size)
        self.output = Dense(cfg.intermediate_size, cfg.hidden_size)
        self.act = cfg.hidden_act

    def __call__(self, x: Array) -> Array:
        x = x + self.attention(self.layernorm_before(x))
        inner = layers.activation(self.act)(self.intermediate(self.layernorm_after(x)))
        return x + self.output(inner)


class Patches(nnx.Module):
    """One token per square of the picture."""

    def __init__(self, cfg: VitConfig):
        self.projection = layers.Conv(
            cfg.num_channels,
            cfg.hidden_size,
            width=cfg.patch_size,
            stride=cfg.patch_size,
            padding=(0, 0),
        )

    def __call__(self, x: Array) -> Array:
        y = self.projection(x)
        return y.reshape(y.shape[0], -1, y.shape[-1])


class Embeddings(nnx.Module):
    """The class token and the patches, each with its learned position."""

    def __init__(self, cfg: VitConfig):
        tokens = (cfg.image_size // cfg.patch_size) ** 2 + 1
        self.cls_token = layers.param(1, 1, cfg.hidden_size)
        self.position_embeddings = layers.param(1, tokens, cfg.hidden_size)
        self.patch_embeddings = Patches(cfg)

    def __call__(self, x: Array) -> Array:
        first = jnp.broadcast_to(
            self.cls_token[...], (x.shape[0], 1, self.cls_token[...].shape[-1])
        )
        tokens = jnp.concatenate([first, self.patch_embeddings(x)], 1)
        return tokens + self.position_embeddings[...]


class Stack(nnx.Module):
    """All layers, under the name of the weight file."""

    def __init__(self, cfg: VitConfig):
        self.layer = nnx.List([Layer(cfg) for _ in range(cfg.num_hidden_layers)])


class Vit(nnx.Module):
    """Normalised pictures `[B,S,S,3]` to features `[B,D]`: the class token after the last norm."""

    def __init__(self, cfg: VitConfig):
        self.embeddings = Embeddings(cfg)
        self.encoder = Stack(cfg)
        self.layernorm = layers.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def __call__(self, x: Array) -> Array:
        tokens = self.embeddings(x)
        for layer in self.encoder.layer:
            tokens = layer(tokens)
        return self.layernorm(tokens[:, 0])


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `config.json` describes."""
    return layers.take_apart(Vit(VitConfig.from_dict(config)))
