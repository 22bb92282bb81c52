"""The transformer of FLUX.1 (Black Forest Labs 2024): diffusers' `FluxTransformer2DModel`.

Text and image first keep their own weights and share each attention, then are one sequence whose
attention and feed-forward layers stand side by side (Dehghani et al. 2023). Positions are rotary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import layers, read_config, rope, unet_blocks
from dreambooth_jax.models.joint_attention import JointAttention, SelfAttention
from dreambooth_jax.models.modulation import (
    FeedForward,
    Modulation,
    OutputNorm,
    TimeText,
    modulate,
)

Array = jax.Array

_CLASS = "FluxTransformer2DModel"
_SIDE = 2  # of a patch, which config.json counts into in_channels: its patch_size is 1
_THETA = 10_000.0
# Variants that read other pictures beside the noisy one, by what enters a patch.
_OTHERS = {384: "FLUX.1 Fill", 128: "FLUX.1 Canny or Depth"}
_REMEDY = (
    "Write --config.base_model=black-forest-labs/FLUX.1-dev, or copy the folder transformer again."
)


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """The keys of `transformer/config.json` that shape the network."""

    num_layers: int
    num_single_layers: int
    num_attention_heads: int
    in_channels: int = 64
    attention_head_dim: int = 128
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    @property
    def size(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "FluxConfig":
        """Reads `config.json`; older files lack `axes_dims_rope`.

        Raises:
          ValueError: every key that is missing or that this network cannot honour, in one message.
        """
        wrong = read_config.kinds(cls, raw)
        read_config.refuse("transformer/config.json of FLUX.1", wrong, _REMEDY)
        channels = raw.get("in_channels") or cls.in_channels
        only: dict[str, list[Any]] = {
            "_class_name": [_CLASS],
            "out_channels": [channels, None],
            "patch_size": [1],
        }
        problems = [
            *read_config.missing(cls, raw),
            *read_config.other_than(raw, only),
            *read_config.unknown(cls, raw, beside=only),
        ]
        if channels in _OTHERS:
            problems.append(
                f"in_channels = {channels} is that of {_OTHERS[channels]}, which also reads other "
                "pictures; not supported"
            )
        elif channels % _SIDE**2:
            problems.append(f"in_channels = {channels}; expected a multiple of {_SIDE**2}")
        axes = tuple(raw.get("axes_dims_rope") or cls.axes_dims_rope)
        head = raw.get("attention_head_dim") or cls.attention_head_dim
        if len(axes) != 3 or sum(axes) != head or any(size % 2 for size in axes):
            problems.append(
                f"axes_dims_rope = {axes}; expected three even numbers that add up to "
                f"attention_head_dim, {head}"
            )
        read_config.refuse("transformer/config.json of FLUX.1", problems, _REMEDY)
        return cls(**read_config.given(cls, raw) | {"axes_dims_rope": axes})


class DoubleBlock(nnx.Module):
    """One attention of text and image, then each its feed-forward layers; all is modulated."""

    def __init__(self, cfg: FluxConfig):
        size = cfg.size
        self.norm1 = Modulation(size, 6)
        self.norm1_context = Modulation(size, 6)
        self.attn = JointAttention(size, heads=cfg.num_attention_heads, qk_norm=True)
        self.ff = FeedForward(size)
        self.ff_context = FeedForward(size)

    def __call__(
        self, text: Array, image: Array, vector: Array, turns: Array
    ) -> tuple[Array, Array]:
        shift, scale, gate, *rest = self.norm1(vector)
        shift_t, scale_t, gate_t, *rest_t = self.norm1_context(vector)
        to_text, to_image = self.attn(
            modulate(text, shift_t, scale_t), modulate(image, shift, scale), turns
        )
        image = image + gate * to_image
        image = image + rest[2] * self.ff(modulate(image, *rest[:2]))
        assert to_text is not None
        text = text + gate_t * to_text
        text = text + rest_t[2] * self.ff_context(modulate(text, *rest_t[:2]))
        return text, image


class SingleBlock(nnx.Module):
    """Tokens `[B,L,D]` plus attention and feed-forward layers of the same modulated norm."""

    def __init__(self, cfg: FluxConfig):
        size = cfg.size
        self.norm = Modulation(size, 3)
        self.proj_mlp = layers.Linear(size, 4 * size)
        self.proj_out = layers.Linear(5 * size, size)
        self.attn = SelfAttention(size, heads=cfg.num_attention_heads, qk_norm=True, out=False)

    def __call__(self, x: Array, vector: Array, turns: Array) -> Array:
        shift, scale, gate = self.norm(vector)
        normed = modulate(x, shift, scale)
        hidden = jax.nn.gelu(self.proj_mlp(normed), approximate=True)
        both = jnp.concatenate([self.attn(normed, turns), hidden], -1)
        return x + gate * layers.whole(self.proj_out(both))


class Flux(nnx.Module):
    """x `[B,H,W,C]`, t `[B]`, text `[B,T,E]`, pooled `[B,P]` -> velocity noise - x0 `[B,H,W,C]`.

    t is float32, 1000 times the level of noise in [0, 1]; H and W are even. All of the text is
    read, its padding too. FLUX.1-dev also needs the strength of guidance `[B]`.
    """

    def __init__(self, cfg: FluxConfig):
        size = cfg.size
        self.time_text_embed = TimeText(size, cfg.pooled_projection_dim, guided=cfg.guidance_embeds)
        self.context_embedder = layers.Linear(cfg.joint_attention_dim, size)
        self.x_embedder = layers.Linear(cfg.in_channels, size)
        self.transformer_blocks = nnx.List([DoubleBlock(cfg) for _ in range(cfg.num_layers)])
        self.single_transformer_blocks = nnx.List(
            [SingleBlock(cfg) for _ in range(cfg.num_single_layers)]
        )
        self.norm_out = OutputNorm(size)
        self.proj_out = layers.Linear(size, cfg.in_channels)
        self.cfg = cfg

    def __call__(
        self,
        x: Array,
        t: Array,
        text: Array,
        pooled: Array,
        *,
        guidance: Array | None = None,
        remat: str = "none",
    ) -> Array:
        call, (_, height, width, _), length = unet_blocks.REMAT[remat], x.shape, text.shape[1]
        if height % _SIDE or width % _SIDE:
            raise ValueError(f"a latent of {height}x{width} has no whole patches; sides are even.")
        if x.dtype == jnp.float16:
            raise ValueError(
                "FLUX.1 overflows in float16; write --config.dtype=bfloat16 or float32."
            )
        vector = self.time_text_embed(t, pooled, guidance, dtype=x.dtype)
        turns = jnp.asarray(self._turns(length, height // _SIDE, width // _SIDE))[None]
        image = layers.whole(self.x_embedder(patches(x)))
        words = layers.whole(self.context_embedder(text.astype(x.dtype)))
        for block in self.transformer_blocks:
            words, image = call(block, words, image, vector, turns)
        both = jnp.concatenate([words, image], 1)
        for single in self.single_transformer_blocks:
            both = call(single, both, vector, turns)
        return picture(self.proj_out(self.norm_out(both[:, length:], vector)), height, width)

    def _turns(self, length: int, rows: int, columns: int) -> np.ndarray:
        """Angles of text tokens, all at the origin, then of image tokens: `[T+N,d/2]`."""
        where = np.zeros((length + rows * columns, 3), np.int64)
        where[length:, 1:] = np.indices((rows, columns)).reshape(2, -1).T
        return rope.axes_angles(where, self.cfg.axes_dims_rope, theta=_THETA)


def patches(x: Array) -> Array:
    """`[B,H,W,C] -> [B, H·W/4, 4C]`: channel, row, column, the column fastest."""
    b, h, w, c = x.shape
    parts = x.reshape(b, h // _SIDE, _SIDE, w // _SIDE, _SIDE, c).transpose(0, 1, 3, 5, 2, 4)
    return parts.reshape(b, h // _SIDE * (w // _SIDE), -1)


def picture(tokens: Array, height: int, width: int) -> Array:
    """The inverse of `patches`: `[B, H·W/4, 4C] -> [B,H,W,C]`."""
    parts = tokens.reshape(len(tokens), height // _SIDE, width // _SIDE, -1, _SIDE, _SIDE)
    return parts.transpose(0, 1, 4, 2, 5, 3).reshape(len(tokens), height, width, -1)


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `transformer/config.json` describes."""
    return layers.take_apart(Flux(FluxConfig.from_dict(config)))
