"""The attention of latent diffusion's UNets: transformer layers over the positions of an image.

Rombach et al. 2022, section 3.3: self-attention, cross-attention to the text, feed-forward.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, words
from dreambooth_jax.models.layers import Array
from dreambooth_jax.models.words import Attend


class Attention(nnx.Module):
    """Multi-head attention from `[B,L,C]` to `others` `[B,S,D]`; float32 scores with `upcast`.

    The first `text` of the others are the prompt's tokens (`words.Attend`).
    """

    def __init__(self, channels: int, size_others: int, *, heads: int, upcast: bool):
        if channels % heads:
            raise ValueError(f"attention: {channels} channels do not divide into {heads} heads.")
        self.to_q = layers.Linear(channels, channels, bias=False)
        self.to_k = layers.Linear(size_others, channels, bias=False)
        self.to_v = layers.Linear(size_others, channels, bias=False)
        self.to_out = nnx.List([layers.Linear(channels, channels)])
        self.heads = heads
        self.upcast = upcast

    def __call__(self, x: Array, others: Array, *, attend: Attend, text: int) -> Array:
        b, length, c = x.shape
        q, k, v = self.to_q(x), self.to_k(others), self.to_v(others)
        q, k, v = (y.reshape(b, -1, self.heads, c // self.heads) for y in (q, k, v))
        if self.upcast:
            q, k, v = (y.astype(jnp.float32) for y in (q, k, v))
        answer = attend(q, k, v, text=text).astype(x.dtype)
        return layers.whole(self.to_out[0](answer.reshape(b, length, c)))


class GatedGelu(nnx.Module):
    """A linear layer times an activated twin of itself, both in one kernel (Shazeer 2020)."""

    def __init__(self, size_in: int, size_out: int):
        self.proj = layers.Linear(size_in, 2 * size_out)

    def __call__(self, x: Array) -> Array:
        # Halves of the weights, not of what they give: a device that has some of the columns then
        # makes hidden values and their gates, and moves weights at most.
        hidden, gate = (half(x) for half in self.proj.halves())
        return hidden * jax.nn.gelu(gate, approximate=False)


class Nothing(nnx.Module):
    """Placeholder for dropout, so that indices match the weight file."""


class FeedForward(nnx.Module):
    """Four times as wide inside."""

    def __init__(self, channels: int):
        inner = 4 * channels
        last = layers.Linear(inner, channels)
        self.net: nnx.List[Any] = nnx.List([GatedGelu(channels, inner), Nothing(), last])

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.net[2](self.net[0](x)))


class Layer(nnx.Module):
    """Self-attention, cross-attention, feed-forward, each added to its input."""

    def __init__(self, channels: int, size_text: int, *, heads: int, upcast: bool):
        self.norm1 = layers.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads=heads, upcast=upcast)
        self.norm2 = layers.LayerNorm(channels)
        self.attn2 = Attention(channels, size_text, heads=heads, upcast=upcast)
        self.norm3 = layers.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def __call__(self, x: Array, text: Array, *, attend: Attend) -> Array:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed, attend=attend, text=0)
        x = x + self.attn2(self.norm2(x), text, attend=attend, text=text.shape[1])
        return x + self.ff(self.norm3(x))


class Transformer(nnx.Module):
    """x `[B,H,W,C]` plus what transformer layers make of its positions and the text `[B,L,D]`.

    Projected in and out by 1x1 convolutions (SD 1) or by the same as linear layers (SD 2, XL).
    """

    def __init__(self, channels: int, cfg: Any, *, level: int):
        self.norm = layers.GroupNorm(channels, groups=cfg.norm_num_groups, eps=1e-6)
        self.proj_in = self._projection(channels, cfg)
        # The key means the number of heads in this family's files, whatever its name says.
        heads = cfg.attention_head_dim[level]
        self.transformer_blocks = nnx.List(
            [
                Layer(channels, cfg.cross_attention_dim, heads=heads, upcast=cfg.upcast_attention)
                for _ in range(cfg.transformer_layers_per_block[level])
            ]
        )
        self.proj_out = self._projection(channels, cfg)

    @staticmethod
    def _projection(channels: int, cfg: Any) -> Any:
        if cfg.use_linear_projection:
            return layers.Linear(channels, channels)
        return layers.Conv(channels, channels, width=1)

    def __call__(self, x: Array, text: Array, *, attend: Attend = words.plain) -> Array:
        b, h, w, c = x.shape
        tokens = layers.whole(self.proj_in(self.norm(x)).reshape(b, h * w, c))
        for layer in self.transformer_blocks:
            tokens = layer(tokens, text, attend=attend)
        return layers.whole(x + self.proj_out(tokens.reshape(x.shape)))
