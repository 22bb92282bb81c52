"""The autoencoder of FLUX.2 (Black Forest Labs 2025): diffusers' `AutoencoderKLFlux2`.

The network of `models/vae.py`; samples of the diffusion are patches of 2x2 latents, normed by
statistics that the weight file holds.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, vae
from dreambooth_jax.models.layers import Array

_PATCH = 2
_DEFAULTS: dict[str, Any] = {"layers_per_block": 2, "latent_channels": 32}
# Keys that `AutoencoderKL` does not have, with what a file without them means.
_OWN: dict[str, Any] = {
    "batch_norm_eps": 1e-4,
    "batch_norm_momentum": None,  # of training the statistics
    "patch_size": (_PATCH, _PATCH),
    "decoder_block_out_channels": None,
}


class Statistics(nnx.Module):
    """Mean and variance of each channel of a patch."""

    def __init__(self, channels: int):
        self.running_mean = layers.param(channels)
        self.running_var = layers.param(channels)


class Flux2Vae(nnx.Module):
    """Encoder and decoder between pictures and normed patches of latents."""

    def __init__(self, cfg: vae.VaeConfig, decoder: vae.VaeConfig, *, eps: float):
        size = cfg.latent_channels
        self.encoder = vae.Encoder(cfg)
        self.decoder = vae.Decoder(decoder)
        self.quant_conv = layers.Conv(2 * size, 2 * size, width=1) if cfg.use_quant_conv else None
        self.post_quant_conv = layers.Conv(size, size, width=1) if cfg.use_post_quant_conv else None
        self.bn = Statistics(_PATCH**2 * size)
        self.eps = eps

    def _statistics(self) -> tuple[Array, Array]:
        """Mean and deviation of patches, `[1,1,1,4C]`."""
        mean, variance = self.bn.running_mean[...], self.bn.running_var[...]
        return mean[None, None, None], jnp.sqrt(variance + self.eps)[None, None, None]

    def encode(self, x: Array) -> tuple[Array, Array]:
        """Pictures `[B,H,W,3]` in [-1, 1] -> mean and deviation of patches `[B,H/16,W/16,128]`."""
        moments = self.encoder(x)
        moments = moments if self.quant_conv is None else self.quant_conv(moments)
        mean, deviation = vae.posterior(moments)
        centre, unit = self._statistics()
        return (patches(mean) - centre) / unit, patches(deviation) / unit

    def decode(self, z: Array) -> Array:
        """Normed patches `[B,h,w,128]` -> pictures `[B,16h,16w,3]`, in [-1, 1] but overshoots."""
        centre, unit = self._statistics()
        z = latents(z * unit + centre)
        return self.decoder(z if self.post_quant_conv is None else self.post_quant_conv(z))


def patches(z: Array) -> Array:
    """Latents `[B,2h,2w,C]` -> `[B,h,w,4C]` in the order channel, row, column."""
    b, height, width, c = z.shape
    if height % _PATCH or width % _PATCH:
        raise ValueError(
            f"latents of {height}x{width} have no whole patches. Write resolutions that are "
            "multiples of 16."
        )
    parts = z.reshape(b, height // _PATCH, _PATCH, width // _PATCH, _PATCH, c)
    return parts.transpose(0, 1, 3, 5, 2, 4).reshape(b, height // _PATCH, width // _PATCH, -1)


def latents(x: Array) -> Array:
    """`patches`, backwards: `[B,h,w,4C]` -> `[B,2h,2w,C]`."""
    b, height, width, _ = x.shape
    parts = x.reshape(b, height, width, -1, _PATCH, _PATCH).transpose(0, 1, 4, 2, 5, 3)
    return parts.reshape(b, _PATCH * height, _PATCH * width, -1)


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `vae/config.json` describes.

    Raises:
      ValueError: every key whose value this network cannot honour.
    """
    own = {key: config.get(key, default) for key, default in _OWN.items()}
    if tuple(own["patch_size"]) != (_PATCH, _PATCH):
        raise ValueError(
            f"vae/config.json: patch_size = {own['patch_size']!r}; supported: {[_PATCH, _PATCH]}"
        )
    rest = {key: value for key, value in config.items() if key not in _OWN}
    cfg = vae.VaeConfig.from_dict(_DEFAULTS | rest)
    channels = own["decoder_block_out_channels"] or cfg.block_out_channels
    decoder = dataclasses.replace(cfg, block_out_channels=tuple(channels))
    return layers.take_apart(Flux2Vae(cfg, decoder, eps=own["batch_norm_eps"]))
