"""The transformer of Stable Diffusion 3 and 3.5: diffusers' `SD3Transformer2DModel`.

MMDiT (Esser et al. 2024): patches of a latent and tokens of a text keep their own weights and meet
in each block's attention. Stable Diffusion 3.5 norms queries and keys, and the medium one has a
second attention, of the image alone, in its first blocks (MMDiT-X).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, read_config, unet_blocks
from dreambooth_jax.models.joint_attention import JointAttention, SelfAttention
from dreambooth_jax.models.modulation import (
    FeedForward,
    Modulation,
    OutputNorm,
    TimeText,
    layer_norm,
    modulate,
    shift_scale,
)

Array = jax.Array

# Keys of config.json with the only values that this network honours.
_ONLY: dict[str, list[Any]] = {
    "_class_name": ["SD3Transformer2DModel"],
    "qk_norm": [None, "rms_norm"],
}
_REMEDY = (
    "Copy the folder transformer of stabilityai/stable-diffusion-3-medium-diffusers, 3.5-medium or "
    "3.5-large again."
)


@dataclasses.dataclass(frozen=True)
class MMDiTConfig:
    """The keys of `transformer/config.json` that shape the network."""

    num_layers: int
    num_attention_heads: int
    pos_embed_max_size: int
    attention_head_dim: int = 64
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    sample_size: int = 128
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = None

    @property
    def size(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "MMDiTConfig":
        """Reads `config.json`; files older than Stable Diffusion 3.5 lack its two keys.

        Raises:
          ValueError: every key that is missing or that this network cannot honour, in one message.
        """
        problems = [
            *read_config.kinds(cls, raw),
            *read_config.missing(cls, raw),
            *read_config.other_than(raw, _ONLY),
            *read_config.unknown(cls, raw, beside=_ONLY),
        ]
        if not problems:
            dual = tuple(raw.get("dual_attention_layers") or ())
            cfg = cls(**read_config.given(cls, raw) | {"dual_attention_layers": dual})
            if cfg.caption_projection_dim != cfg.size:
                problems.append(
                    f"caption_projection_dim = {cfg.caption_projection_dim}; supported: "
                    f"num_attention_heads * attention_head_dim = {cfg.size}"
                )
            beyond = [i for i in dual if not 0 <= i < cfg.num_layers]
            if beyond:
                problems.append(
                    f"dual_attention_layers names {beyond}; there are {cfg.num_layers} layers"
                )
        read_config.refuse("transformer/config.json of Stable Diffusion 3", problems, _REMEDY)
        return cfg


class Positions(nnx.Module):
    """Patches of a latent `[B,H,W,C]` as tokens `[B,N,D]`, row by row, with their positions.

    Positions are the middle of a square table, which the weight file holds; it is no parameter.
    """

    def __init__(self, cfg: MMDiTConfig):
        patch = cfg.patch_size
        self.proj = layers.Conv(
            cfg.in_channels, cfg.size, width=patch, stride=patch, padding=(0, 0)
        )
        self.pos_embed = layers.param(1, cfg.pos_embed_max_size**2, cfg.size)
        self.cfg = cfg

    def __call__(self, x: Array) -> Array:
        patch, side = self.cfg.patch_size, self.cfg.pos_embed_max_size
        (b, rows, columns, _), (h, w) = x.shape, (size // patch for size in x.shape[1:3])
        if rows % patch or columns % patch:
            raise ValueError(
                f"a latent of {rows}x{columns} does not divide into patches of {patch}x{patch}."
            )
        if max(h, w) > side:
            raise ValueError(
                f"a latent of {rows}x{columns} has {h}x{w} patches; this model knows positions of "
                f"{side}x{side} (pos_embed_max_size), {side * patch}x{side * patch} in the latent. "
                "Write a smaller resolution."
            )
        top, left = (side - h) // 2, (side - w) // 2
        table = self.pos_embed[...].astype(jnp.float32).reshape(side, side, -1)
        table = table[top : top + h, left : left + w]
        tokens = self.proj(x).astype(jnp.float32) + table[None]
        return layers.whole(tokens.astype(x.dtype).reshape(b, h * w, -1))


class Block(nnx.Module):
    """One attention of text and image, then each its feed-forward layers; all is modulated.

    The last block (`is_last`) gives no text. A `dual` one has a second attention, of the image.
    """

    def __init__(self, cfg: MMDiTConfig, *, dual: bool, is_last: bool):
        size, heads, qk_norm = cfg.size, cfg.num_attention_heads, cfg.qk_norm is not None
        self.norm1 = Modulation(size, 9 if dual else 6)
        self.norm1_context = OutputNorm(size) if is_last else Modulation(size, 6)
        self.attn = JointAttention(size, heads=heads, qk_norm=qk_norm, answers_text=not is_last)
        self.attn2 = SelfAttention(size, heads=heads, qk_norm=qk_norm) if dual else None
        self.ff = FeedForward(size)
        self.ff_context = None if is_last else FeedForward(size)

    def __call__(self, text: Array, image: Array, vector: Array) -> tuple[Array, Array]:
        shift, scale, gate, *rest = self.norm1(vector)
        normed = layer_norm(image)
        seen = shift_scale(normed, shift, scale)
        said: list[Array] = []
        if isinstance(self.norm1_context, OutputNorm):
            of_text = self.norm1_context(text, vector)
        else:
            said = self.norm1_context(vector)
            of_text = modulate(text, *said[:2])
        to_text, to_image = self.attn(of_text, seen)
        image = image + gate * to_image
        if self.attn2 is not None:
            shift, scale, gate = rest[3:]
            image = image + gate * self.attn2(shift_scale(normed, shift, scale))
        image = image + rest[2] * self.ff(modulate(image, *rest[:2]))
        if self.ff_context is not None:
            assert to_text is not None
            text = text + said[2] * to_text
            text = text + said[5] * self.ff_context(modulate(text, *said[3:5]))
        return text, image


class MMDiT(nnx.Module):
    """x `[B,H,W,C]`, t `[B]`, text `[B,T,E]`, pooled `[B,P]` -> velocity noise - x0 `[B,H,W,C]`.

    t is float32, 1000 times the level of noise in [0, 1]. All of the text is read, its padding too.
    """

    def __init__(self, cfg: MMDiTConfig):
        size = cfg.size
        self.pos_embed = Positions(cfg)
        self.time_text_embed = TimeText(size, cfg.pooled_projection_dim)
        self.context_embedder = layers.Linear(cfg.joint_attention_dim, size)
        self.transformer_blocks = nnx.List(
            [
                Block(cfg, dual=i in cfg.dual_attention_layers, is_last=i == cfg.num_layers - 1)
                for i in range(cfg.num_layers)
            ]
        )
        self.norm_out = OutputNorm(size)
        self.proj_out = layers.Linear(size, cfg.patch_size**2 * cfg.out_channels)
        self.cfg = cfg

    def __call__(
        self, x: Array, t: Array, text: Array, pooled: Array, *, remat: str = "none"
    ) -> Array:
        call, (b, height, width, _), patch = unet_blocks.REMAT[remat], x.shape, self.cfg.patch_size
        image = self.pos_embed(x)
        vector = self.time_text_embed(t, pooled, None, dtype=x.dtype)
        words = layers.whole(self.context_embedder(text.astype(x.dtype)))
        for block in self.transformer_blocks:
            words, image = call(block, words, image, vector)
        patches = self.proj_out(self.norm_out(image, vector))
        h, w = height // patch, width // patch
        patches = patches.reshape(b, h, w, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        return patches.reshape(b, height, width, -1)


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `transformer/config.json` describes."""
    return layers.take_apart(MMDiT(MMDiTConfig.from_dict(config)))
