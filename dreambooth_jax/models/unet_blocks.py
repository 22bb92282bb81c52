"""Blocks of the UNet, as DeepFloyd IF and as Stable Diffusion arrange them.

Residual blocks conditioned on time (Dhariwal & Nichol 2021, appendix A), and attention: in IF's its
keys and values are those of the text followed by those of the image (Saharia et al. 2022, Imagen,
section 2.4: "added" keys and values), in Stable Diffusion's it is a transformer (`transformer.py`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, words
from dreambooth_jax.models.layers import Array
from dreambooth_jax.models.transformer import Transformer
from dreambooth_jax.models.words import Attend


def upsample_nearest(x: Array) -> Array:
    """Each pixel becomes 2x2: `[B,H,W,C] -> [B,2H,2W,C]`."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def downsample_mean(x: Array) -> Array:
    """The mean of each 2x2 window: `[B,H,W,C] -> [B,H/2,W/2,C]`."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


# How a part of a block is called: as it is, or so that it is computed again (`REMAT`).
Call = Callable[..., Any]
RESAMPLE = {"none": lambda x: x, "up": upsample_nearest, "down": downsample_mean}


class ResnetBlock(nnx.Module):
    """Two convolutions around a time conditioning, plus the (projected) input.

    x `[B,H,W,in]`, time `[B,E]` -> `[B,H,W,out]`; `resample` "up" or "down" doubles or halves H, W.
    """

    def __init__(
        self,
        size_in: int,
        size_out: int,
        cfg: Any,
        *,
        resample: str = "none",
        out_scale: float = 1.0,
    ):
        self.norm1 = layers.GroupNorm(size_in, groups=cfg.norm_num_groups, eps=cfg.norm_eps)
        self.conv1 = layers.Conv(size_in, size_out)
        self.scale_shift = cfg.resnet_time_scale_shift == "scale_shift"
        size_time = 2 * size_out if self.scale_shift else size_out
        self.time_emb_proj = layers.Linear(cfg.time_embed_dim, size_time)
        self.norm2 = layers.GroupNorm(size_out, groups=cfg.norm_num_groups, eps=cfg.norm_eps)
        self.conv2 = layers.Conv(size_out, size_out)
        same = size_in == size_out
        self.conv_shortcut = None if same else layers.Conv(size_in, size_out, width=1)
        self.act_fn = cfg.act_fn
        self.skip_time_act = cfg.resnet_skip_time_act
        self.resample = resample
        self.out_scale = out_scale

    def __call__(self, x: Array, time: Array) -> Array:
        act, resample = layers.activation(self.act_fn), RESAMPLE[self.resample]
        hidden = self.conv1(resample(act(self.norm1(layers.whole(x)))))
        x = resample(layers.whole(x))
        time = layers.whole(time if self.skip_time_act else act(time))
        time = self.time_emb_proj(time)[:, None, None, :]
        if self.scale_shift:
            scale, shift = jnp.split(time, 2, -1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + time)
        hidden = self.conv2(act(hidden))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return layers.whole((x + hidden) / self.out_scale)


class AddedKVAttention(nnx.Module):
    """x `[B,H,W,C]` plus what its positions get from attention to [text; x]; text `[B,L,D]`."""

    def __init__(self, channels: int, cfg: Any, *, head_dim: int, only_cross: bool):
        if channels % head_dim:
            raise ValueError(
                f"attention: {channels} channels do not divide into heads of {head_dim}."
            )
        self.group_norm = layers.GroupNorm(channels, groups=cfg.norm_num_groups)
        # The file format fixes 32 groups for the text, whatever the image side has.
        self.norm_cross = (
            layers.GroupNorm(cfg.cross_attention_dim, groups=32)
            if cfg.cross_attention_norm == "group_norm"
            else None
        )
        self.to_q = layers.Linear(channels, channels)
        self.to_k = None if only_cross else layers.Linear(channels, channels)
        self.to_v = None if only_cross else layers.Linear(channels, channels)
        self.add_k_proj = layers.Linear(cfg.cross_attention_dim, channels)
        self.add_v_proj = layers.Linear(cfg.cross_attention_dim, channels)
        self.to_out = nnx.List([layers.Linear(channels, channels)])
        self.heads = channels // head_dim

    def __call__(self, x: Array, text: Array, *, attend: Attend = words.plain) -> Array:
        b, h, w, c = x.shape
        hidden = self.group_norm(x).reshape(b, h * w, c)
        text = text if self.norm_cross is None else self.norm_cross(text)
        k, v = self.add_k_proj(text), self.add_v_proj(text)
        if self.to_k is not None and self.to_v is not None:
            k = jnp.concatenate([k, self.to_k(hidden)], 1)
            v = jnp.concatenate([v, self.to_v(hidden)], 1)
        heads = (b, -1, self.heads, c // self.heads)
        q, k, v = (y.reshape(heads) for y in (self.to_q(hidden), k, v))
        answer = attend(q, k, v, text=text.shape[1]).reshape(b, h * w, c)
        return x + layers.whole(self.to_out[0](answer)).reshape(b, h, w, c)


class Downsample(nnx.Module):
    """A convolution of stride 2; time plays no part."""

    def __init__(self, channels: int):
        self.conv = layers.Conv(channels, channels, stride=2)

    def __call__(self, x: Array, time: Array) -> Array:
        del time
        return layers.whole(self.conv(x))


class Upsample(nnx.Module):
    """Each pixel becomes 2x2, then a convolution; time plays no part."""

    def __init__(self, channels: int):
        self.conv = layers.Conv(channels, channels)

    def __call__(self, x: Array, time: Array) -> Array:
        del time
        return layers.whole(self.conv(upsample_nearest(x)))


class Kind(NamedTuple):
    """The properties in which the block types of the model files differ."""

    attend: bool  # to the text
    latent: bool  # Stable Diffusion's attention and changes of size, or IF's


def attention_of(kind: Kind, channels: int, cfg: Any, *, level: int, entry: int) -> Any:
    """The attention of a level; `entry` is its place in the file's list of head sizes."""
    if kind.latent:
        return Transformer(channels, cfg, level=level)
    return AddedKVAttention(
        channels,
        cfg,
        head_dim=cfg.attention_head_dim[entry],
        only_cross=cfg.only_cross_attention[level],
    )


class DownBlock(nnx.Module):
    """Residual blocks, each with attention where the level has it, then a halving of H and W.

    Returns x and the skips for `UpBlock`.
    """

    def __init__(
        self, size_in: int, size_out: int, cfg: Any, *, level: int, kind: Kind, resample: bool
    ):
        inputs = [size_in] + [size_out] * (cfg.layers_per_block[level] - 1)
        resnet = functools.partial(
            ResnetBlock, size_out=size_out, cfg=cfg, out_scale=cfg.resnet_out_scale_factor
        )
        attention = functools.partial(attention_of, kind, size_out, cfg, level=level, entry=level)
        self.resnets = nnx.List([resnet(size) for size in inputs])
        self.attentions = nnx.List([attention() for _ in inputs]) if kind.attend else None
        down = Downsample(size_out) if kind.latent else resnet(size_out, resample="down")
        self.downsamplers: Any = nnx.List([down]) if resample else None

    def __call__(
        self, x: Array, time: Array, text: Array, *, call: Call
    ) -> tuple[Array, list[Array]]:
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = call(resnet, x, time)
            x = x if self.attentions is None else call(self.attentions[i], x, text)
            skips.append(x)
        if self.downsamplers is not None:
            x = call(self.downsamplers[0], x, time)
            skips.append(x)
        return x, skips


class UpBlock(nnx.Module):
    """A `DownBlock` with a skip joined to each block's input, and a doubling at the end."""

    def __init__(
        self,
        size_in: int,
        size_skip: int,
        size_out: int,
        cfg: Any,
        *,
        level: int,
        kind: Kind,
        resample: bool,
    ):
        count = cfg.layers_per_block[level]
        inputs = [size_in] + [size_out] * count
        skips = [size_out] * count + [size_skip]
        resnet = functools.partial(
            ResnetBlock, size_out=size_out, cfg=cfg, out_scale=cfg.resnet_out_scale_factor
        )
        # The file format lists IF's head sizes in the order of the blocks here, unlike its other
        # lists.
        attention = functools.partial(
            attention_of, kind, size_out, cfg, level=level, entry=-1 - level
        )
        self.resnets = nnx.List([resnet(a + b) for a, b in zip(inputs, skips, strict=True)])
        self.attentions = nnx.List([attention() for _ in inputs]) if kind.attend else None
        up = Upsample(size_out) if kind.latent else resnet(size_out, resample="up")
        self.upsamplers: Any = nnx.List([up]) if resample else None

    def __call__(
        self, x: Array, skips: list[Array], time: Array, text: Array, *, call: Call
    ) -> Array:
        for i, resnet in enumerate(self.resnets):
            x = call(resnet, jnp.concatenate([x, skips.pop()], -1), time)
            x = x if self.attentions is None else call(self.attentions[i], x, text)
        return x if self.upsamplers is None else call(self.upsamplers[0], x, time)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block at the smallest size."""

    def __init__(self, channels: int, cfg: Any, *, kind: Kind):
        scale = cfg.mid_block_scale_factor
        resnets = [ResnetBlock(channels, channels, cfg, out_scale=scale) for _ in range(2)]
        attention: Any
        if kind.latent:
            attention = Transformer(channels, cfg, level=-1)
        else:
            only_cross = cfg.mid_block_only_cross_attention
            head_dim = cfg.attention_head_dim[-1]
            attention = AddedKVAttention(channels, cfg, head_dim=head_dim, only_cross=only_cross)
        self.resnets = nnx.List(resnets)
        self.attentions = nnx.List([attention])

    def __call__(self, x: Array, time: Array, text: Array, *, call: Call) -> Array:
        x = call(self.attentions[0], call(self.resnets[0], x, time), text)
        return call(self.resnets[1], x, time)


class TimeMLP(nnx.Module):
    """Two linear layers over a sinusoidal embedding: `[B, in] -> [B, out]`."""

    def __init__(self, size_in: int, size_out: int, *, act_fn: str):
        self.linear_1 = layers.Linear(size_in, size_out)
        self.linear_2 = layers.Linear(size_out, size_out)
        self.act_fn = act_fn

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.linear_2(layers.activation(self.act_fn)(self.linear_1(x))))


class AttentionPooling(nnx.Module):
    """One vector for a text, `[B,L,D] -> [B,D]`.

    The mean token, moved by a learned vector, asks all tokens and itself.
    """

    def __init__(self, size: int, *, heads: int):
        self.positional_embedding = layers.param(1, size)
        self.q_proj = layers.Linear(size, size)
        self.k_proj = layers.Linear(size, size)
        self.v_proj = layers.Linear(size, size)
        self.heads = heads

    def __call__(self, x: Array) -> Array:
        asking = x.mean(1, keepdims=True) + self.positional_embedding[...][None].astype(x.dtype)
        tokens = jnp.concatenate([asking, x], 1)
        q, k, v = self.q_proj(asking), self.k_proj(tokens), self.v_proj(tokens)
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))
        return layers.attention(q, k, v).reshape(x.shape[0], -1)


class TextTimeEmbedding(nnx.Module):
    """The pooled text that the time embedding gains: `[B,L,D] -> [B,E]` (Imagen, section 2.4)."""

    def __init__(self, size_in: int, size_out: int, *, heads: int):
        self.norm1 = layers.LayerNorm(size_in)
        self.pool = AttentionPooling(size_in, heads=heads)
        self.proj = layers.Linear(size_in, size_out)
        self.norm2 = layers.LayerNorm(size_out)

    def __call__(self, text: Array) -> Array:
        return self.norm2(layers.whole(self.proj(self.pool(self.norm1(text)))))


# Names in the model files. IF's blocks change H and W by residual blocks.
DOWN_BLOCKS: dict[str, Kind] = {
    "ResnetDownsampleBlock2D": Kind(attend=False, latent=False),
    "SimpleCrossAttnDownBlock2D": Kind(attend=True, latent=False),
    "DownBlock2D": Kind(attend=False, latent=True),
    "CrossAttnDownBlock2D": Kind(attend=True, latent=True),
}
MID_BLOCKS: dict[str, Kind] = {
    "UNetMidBlock2DSimpleCrossAttn": Kind(attend=True, latent=False),
    "UNetMidBlock2DCrossAttn": Kind(attend=True, latent=True),
}
UP_BLOCKS: dict[str, Kind] = {
    "ResnetUpsampleBlock2D": Kind(attend=False, latent=False),
    "SimpleCrossAttnUpBlock2D": Kind(attend=True, latent=False),
    "UpBlock2D": Kind(attend=False, latent=True),
    "CrossAttnUpBlock2D": Kind(attend=True, latent=True),
}


def _plainly(block: Any, *args: Any) -> Any:
    return block(*args)


def attending(attend: Attend) -> Call:
    """Returns the call of blocks under which `attend` takes the place of their attention."""

    def call(block: Any, *args: Any) -> Any:
        attends = isinstance(block, Transformer | AddedKVAttention)
        return block(*args, attend=attend) if attends else block(*args)

    return call


def _again(block: Any, *args: Any, policy: Any = None) -> Any:
    """`block(*args)`; of what it computes, the backward pass finds only what `policy` keeps."""
    structure, state = nnx.split(block)
    pure = jax.checkpoint(lambda state, *inner: nnx.merge(structure, state)(*inner), policy=policy)
    return pure(state, *args)


def _products(primitive: Any, *args: Any, **params: Any) -> bool:
    """Remat policy that keeps products of convolutions and linear layers, not of attention."""
    if primitive.name == "conv_general_dilated":
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)


# What is computed a second time in the backward pass, to save memory (Chen et al. 2016): nothing;
# all but the results of convolutions and linear layers; all of each residual block and attention.
REMAT: dict[str, Call] = {
    "none": _plainly,
    "dots": functools.partial(_again, policy=_products),
    "blocks": _again,
}
