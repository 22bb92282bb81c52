"""The autoencoder of latent diffusion (Rombach et al. 2022): diffusers' `AutoencoderKL`.

Pictures `[B,H,W,3]` in [-1, 1] become latents `[B,h,w,C]`, Gaussian with a mean and a standard
deviation for each number, and back. The scale of latents in diffusion is not applied here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, read_config
from dreambooth_jax.models.layers import Array
from dreambooth_jax.models.unet_blocks import upsample_nearest

_EPS = 1e-6
_LOG_VARIANCE = (-30.0, 20.0)  # as the encoder is read: beyond, its exponential means nothing
# Keys of config.json with the only values that this network honours.
_ONLY: dict[str, list[Any]] = {
    "latents_mean": [None],
    "latents_std": [None],
    "mid_block_add_attention": [True],
    "act_fn": sorted(layers.ACTIVATIONS),
}
_TYPES = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
# Of the pictures' size, of the diffusion, of a precision that is always float32 here: any value.
_INERT = ("sample_size", "scaling_factor", "shift_factor", "force_upcast")


@dataclasses.dataclass(frozen=True)
class VaeConfig:
    """The keys of `vae/config.json` that shape the network."""

    block_out_channels: tuple[int, ...]
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    layers_per_block: int = 1
    norm_num_groups: int = 32
    act_fn: str = "silu"
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "VaeConfig":
        """Reads `config.json`.

        Raises:
          ValueError: every key whose value this network cannot honour, in one message.
        """
        channels = raw.get("block_out_channels") or None  # an empty list is none
        raw = {**raw, "block_out_channels": channels}
        read_config.refuse("vae/config.json", read_config.kinds(cls, raw))
        problems = [
            *read_config.missing(cls, raw),
            *read_config.other_than(raw, _ONLY),
            *read_config.unknown(cls, raw, beside=(*_ONLY, *_TYPES, *_INERT)),
        ]
        for key, kind in _TYPES.items():
            if key not in raw:
                continue
            if set(raw[key]) != {kind}:
                problems.append(f"{key} = {raw[key]!r}; supported: {kind!r} alone")
            elif channels is not None and len(raw[key]) != len(channels):
                problems.append(f"{key} has not one entry per level")
        read_config.refuse("vae/config.json", problems)
        return cls(**read_config.given(cls, raw) | {"block_out_channels": tuple(channels or ())})


def _norm(channels: int, cfg: VaeConfig) -> layers.GroupNorm:
    return layers.GroupNorm(channels, groups=cfg.norm_num_groups, eps=_EPS)


class ResnetBlock(nnx.Module):
    """Two convolutions plus the (projected) input: `[B,H,W,in] -> [B,H,W,out]`."""

    def __init__(self, size_in: int, size_out: int, cfg: VaeConfig):
        self.norm1 = _norm(size_in, cfg)
        self.conv1 = layers.Conv(size_in, size_out)
        self.norm2 = _norm(size_out, cfg)
        self.conv2 = layers.Conv(size_out, size_out)
        same = size_in == size_out
        self.conv_shortcut = None if same else layers.Conv(size_in, size_out, width=1)
        self.act_fn = cfg.act_fn

    def __call__(self, x: Array) -> Array:
        act = layers.activation(self.act_fn)
        hidden = self.conv2(act(self.norm2(self.conv1(act(self.norm1(x))))))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return layers.whole(hidden + x)


class Attention(nnx.Module):
    """x plus what its positions get from each other, with one head: `[B,H,W,C]`."""

    def __init__(self, channels: int, cfg: VaeConfig):
        self.group_norm = _norm(channels, cfg)
        self.to_q = layers.Linear(channels, channels)
        self.to_k = layers.Linear(channels, channels)
        self.to_v = layers.Linear(channels, channels)
        self.to_out = nnx.List([layers.Linear(channels, channels)])
        self.heads = 1

    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        hidden = self.group_norm(x).reshape(b, h * w, c)
        q, k, v = (project(hidden)[:, :, None] for project in (self.to_q, self.to_k, self.to_v))
        answer = layers.attention(q, k, v).reshape(b, h * w, c)
        return x + self.to_out[0](answer).reshape(x.shape)


class MidBlock(nnx.Module):
    """Residual block, attention, residual block at the smallest size."""

    def __init__(self, channels: int, cfg: VaeConfig):
        self.resnets = nnx.List([ResnetBlock(channels, channels, cfg) for _ in range(2)])
        self.attentions = nnx.List([Attention(channels, cfg)])

    def __call__(self, x: Array) -> Array:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nnx.Module):
    """A convolution of stride 2 with one row and column of zeros below and to the right."""

    def __init__(self, channels: int):
        self.conv = layers.Conv(channels, channels, stride=2, padding=(0, 1))

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.conv(x))


class Upsample(nnx.Module):
    """Each pixel becomes 2x2, then a convolution."""

    def __init__(self, channels: int):
        self.conv = layers.Conv(channels, channels)

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.conv(upsample_nearest(x)))


class Level(nnx.Module):
    """Residual blocks, then (where `down` or `up`) a change of size."""

    def __init__(
        self,
        size_in: int,
        size_out: int,
        cfg: VaeConfig,
        *,
        count: int,
        down: bool = False,
        up: bool = False,
    ):
        inputs = [size_in] + [size_out] * (count - 1)
        self.resnets = nnx.List([ResnetBlock(size, size_out, cfg) for size in inputs])
        self.downsamplers = nnx.List([Downsample(size_out)]) if down else None
        self.upsamplers = nnx.List([Upsample(size_out)]) if up else None

    def __call__(self, x: Array) -> Array:
        for resnet in self.resnets:
            x = resnet(x)
        for resample in (self.downsamplers, self.upsamplers):
            x = x if resample is None else resample[0](x)
        return x


class Encoder(nnx.Module):
    """`[B,H,W,3] -> [B,h,w,2C]`: mean and logarithm of the variance."""

    def __init__(self, cfg: VaeConfig):
        channels = cfg.block_out_channels
        last = len(channels) - 1
        self.conv_in = layers.Conv(cfg.in_channels, channels[0])
        self.down_blocks = nnx.List(
            [
                Level(
                    channels[max(i - 1, 0)],
                    channels[i],
                    cfg,
                    count=cfg.layers_per_block,
                    down=i < last,
                )
                for i in range(last + 1)
            ]
        )
        self.mid_block = MidBlock(channels[-1], cfg)
        self.conv_norm_out = _norm(channels[-1], cfg)
        self.conv_out = layers.Conv(channels[-1], 2 * cfg.latent_channels)
        self.act_fn = cfg.act_fn

    def __call__(self, x: Array) -> Array:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        x = self.conv_norm_out(self.mid_block(x))
        return self.conv_out(layers.activation(self.act_fn)(x))


class Decoder(nnx.Module):
    """`[B,h,w,C] -> [B,H,W,3]`."""

    def __init__(self, cfg: VaeConfig):
        channels = cfg.block_out_channels[::-1]
        last = len(channels) - 1
        self.conv_in = layers.Conv(cfg.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], cfg)
        self.up_blocks = nnx.List(
            [
                Level(
                    channels[max(i - 1, 0)],
                    channels[i],
                    cfg,
                    count=cfg.layers_per_block + 1,
                    up=i < last,
                )
                for i in range(last + 1)
            ]
        )
        self.conv_norm_out = _norm(channels[-1], cfg)
        self.conv_out = layers.Conv(channels[-1], cfg.out_channels)
        self.act_fn = cfg.act_fn

    def __call__(self, z: Array) -> Array:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(layers.activation(self.act_fn)(self.conv_norm_out(x)))


class Vae(nnx.Module):
    """Encoder and decoder, each with its 1x1 convolution at the latents."""

    def __init__(self, cfg: VaeConfig):
        size = cfg.latent_channels
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = layers.Conv(2 * size, 2 * size, width=1) if cfg.use_quant_conv else None
        self.post_quant_conv = layers.Conv(size, size, width=1) if cfg.use_post_quant_conv else None

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Pictures `[B,H,W,3]` in [-1, 1] -> mean and standard deviation `[B,h,w,C]`, unscaled."""
        moments = self.encoder(x)
        moments = moments if self.quant_conv is None else self.quant_conv(moments)
        return posterior(moments)

    def decode(self, z: Array) -> Array:
        """Unscaled latents `[B,h,w,C]` -> pictures `[B,H,W,3]`, in [-1, 1] but for overshoots."""
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


def posterior(moments: Array) -> tuple[Array, Array]:
    """Mean and standard deviation `[B,h,w,C]` of what an encoder gives, `[B,h,w,2C]`."""
    mean, log_variance = jnp.split(moments, 2, -1)
    return mean, jnp.exp(0.5 * jnp.clip(log_variance, *_LOG_VARIANCE))


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `vae/config.json` describes."""
    return layers.take_apart(Vae(VaeConfig.from_dict(config)))
