"""The conditional UNet of diffusers' `UNet2DConditionModel`: DeepFloyd IF's and Stable Diffusion's.

Down levels, a middle, up levels with skips; time, noise level of the low-res image, pooled text and
sizes of the picture are summed into one conditioning vector; the text enters by attention. Facts of
the layout: the models' `config.json`; Imagen (Saharia et al. 2022), appendix F; latent diffusion
(Rombach et al. 2022); SDXL (Podell et al. 2023), table 1.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import layers, read_config, unet_blocks
from dreambooth_jax.models.layers import Array
from dreambooth_jax.models.words import Attend

# Keys of config.json that this network does not have, with the only value under which leaving them
# out is right.
_INERT: dict[str, Any] = {
    "center_input_sample": False,
    "downsample_padding": 1,
    "dropout": 0.0,
    "reverse_transformer_layers_per_block": None,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
}
_CHOICES: dict[str, tuple[Any, ...]] = {
    "mid_block_type": tuple(unet_blocks.MID_BLOCKS),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "cross_attention_norm": (None, "group_norm"),
    "encoder_hid_dim_type": (None, "text_proj"),
    "addition_embed_type": (None, "text", "text_time"),
    "class_embed_type": (None, "timestep"),
    "act_fn": tuple(layers.ACTIVATIONS),
    "time_embedding_act_fn": (None, *layers.ACTIVATIONS),
}
# Keys that hold one value per level, or one for all, with what a file without them means.
_UNIFORM: dict[str, Any] = {
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "only_cross_attention": False,
    "transformer_layers_per_block": 1,
}
# Here null means something else than leaving the key out: no normalisation at all.
_NOT_NULL = ("norm_num_groups", "norm_eps")
_NO_KIND = unet_blocks.Kind(attend=False, latent=False)  # of an unknown block type


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The keys of `unet/config.json` that shape the network.

    Where the file may give one number for all levels, here is one per level.
    """

    in_channels: int
    out_channels: int
    block_out_channels: tuple[int, ...]
    down_block_types: tuple[str, ...]
    up_block_types: tuple[str, ...]
    layers_per_block: tuple[int, ...]
    attention_head_dim: tuple[int, ...]
    only_cross_attention: tuple[bool, ...]
    transformer_layers_per_block: tuple[int, ...]
    cross_attention_dim: int
    mid_block_type: str = "UNetMidBlock2DCrossAttn"
    mid_block_only_cross_attention: bool = False
    mid_block_scale_factor: float = 1.0
    resnet_time_scale_shift: str = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    act_fn: str = "silu"
    cross_attention_norm: str | None = None
    encoder_hid_dim: int | None = None
    encoder_hid_dim_type: str | None = None
    addition_embed_type: str | None = None
    addition_embed_type_num_heads: int = 64
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None
    use_linear_projection: bool = False
    upcast_attention: bool = False
    class_embed_type: str | None = None
    time_embedding_dim: int | None = None
    time_embedding_act_fn: str | None = None
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0

    @property
    def time_embed_dim(self) -> int:
        """Width of the conditioning vector."""
        return self.time_embedding_dim or 4 * self.block_out_channels[0]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "UNetConfig":
        """Reads `config.json` of a UNet.

        Raises:
          ValueError: every key whose value this network cannot honour, in one message; nothing is
            guessed.
        """
        # The size of its pictures is no part of a network.
        left_out = ("_", "sample_size")
        raw = {key: value for key, value in raw.items() if not key.startswith(left_out)}
        fields = {field.name: field for field in dataclasses.fields(cls)}
        wrong = read_config.kinds(cls, raw, single=_UNIFORM)
        read_config.refuse("unet/config.json", wrong)
        problems = read_config.missing(cls, raw, but=_UNIFORM)
        for key, value in raw.items():
            if key in _CHOICES and value not in _CHOICES[key]:
                choices = ", ".join(map(repr, _CHOICES[key]))
                problems.append(f"{key} = {value!r}; supported: {choices}")
            elif key in _INERT and value != _INERT[key]:
                problems.append(f"{key} = {value!r}; supported: {_INERT[key]!r}")
            elif key not in _INERT and key not in fields:
                problems.append(f"{key} = {value!r}; the key is not known")
            elif key in _NOT_NULL and value is None:
                problems.append(f"{key} = None; supported: a number")
        for key, known in (
            ("down_block_types", unet_blocks.DOWN_BLOCKS),
            ("up_block_types", unet_blocks.UP_BLOCKS),
        ):
            unknown = [name for name in raw.get(key, ()) if name not in known]
            if unknown:
                problems.append(f"{key} has {', '.join(unknown)}; supported: {', '.join(known)}")
        hid_type = raw.get("encoder_hid_dim_type")
        if hid_type is not None and raw.get("encoder_hid_dim") is None:
            problems.append(
                f"encoder_hid_dim_type = {hid_type!r} needs encoder_hid_dim, which is missing"
            )
        if raw.get("addition_embed_type") == "text_time":
            for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
                if raw.get(key) is None:
                    problems.append(f"addition_embed_type = 'text_time' needs {key}")
        if raw.get("only_cross_attention") not in (None, False) and any(
            (unet_blocks.DOWN_BLOCKS | unet_blocks.UP_BLOCKS).get(name, _NO_KIND).latent
            for name in (*raw.get("down_block_types", ()), *raw.get("up_block_types", ()))
        ):
            problems.append(
                "only_cross_attention is set; supported only with SimpleCrossAttn blocks"
            )
        read_config.refuse("unet/config.json", problems)
        values = read_config.given(cls, raw)
        levels = len(values["block_out_channels"])
        if isinstance(raw.get("only_cross_attention"), bool):
            values.setdefault("mid_block_only_cross_attention", raw["only_cross_attention"])
        if values.get("encoder_hid_dim"):
            values.setdefault("encoder_hid_dim_type", "text_proj")  # as old files mean it
        for key, default in _UNIFORM.items():
            value = values.get(key, default)
            values[key] = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
        for key in ("block_out_channels", "down_block_types", "up_block_types"):
            values[key] = tuple(values[key])
        lists = {key: value for key, value in values.items() if isinstance(value, tuple)}
        wrong = [key for key, value in lists.items() if len(value) != levels]
        if wrong:
            raise ValueError(
                f"unet/config.json: {', '.join(wrong)} must have {levels} entries, one per level."
            )
        return cls(**values)


class UNet(nnx.Module):
    """x `[B,H,W,in]`, time steps `[B]`, text `[B,L,D]` -> `[B,H,W,out]`.

    An upscaler also needs the noise level of the low-res image, `[B]`; SDXL's the pooled text
    `[B,P]`, and the sizes `time_ids` `[B,6]` in pixels. `attend` takes the place of attention.
    """

    def __init__(self, cfg: UNetConfig):
        channels, width = cfg.block_out_channels, cfg.time_embed_dim
        last = len(channels) - 1
        self.conv_in = layers.Conv(cfg.in_channels, channels[0])
        self.time_embedding = unet_blocks.TimeMLP(channels[0], width, act_fn=cfg.act_fn)
        self.class_embedding = (
            unet_blocks.TimeMLP(channels[0], width, act_fn=cfg.act_fn)
            if cfg.class_embed_type == "timestep"
            else None
        )
        text_size = cfg.encoder_hid_dim or cfg.cross_attention_dim
        self.encoder_hid_proj = (
            layers.Linear(text_size, cfg.cross_attention_dim)
            if cfg.encoder_hid_dim_type == "text_proj"
            else None
        )
        self.add_embedding = self._added(cfg, text_size)
        self.down_blocks = nnx.List(
            [
                unet_blocks.DownBlock(
                    channels[max(i - 1, 0)],
                    channels[i],
                    cfg,
                    level=i,
                    kind=unet_blocks.DOWN_BLOCKS[kind],
                    resample=i < last,
                )
                for i, kind in enumerate(cfg.down_block_types)
            ]
        )
        self.mid_block = unet_blocks.MidBlock(
            channels[-1], cfg, kind=unet_blocks.MID_BLOCKS[cfg.mid_block_type]
        )
        self.up_blocks = nnx.List(
            [
                unet_blocks.UpBlock(
                    channels[min(i + 1, last)],
                    channels[max(i - 1, 0)],
                    channels[i],
                    cfg,
                    level=i,
                    kind=unet_blocks.UP_BLOCKS[kind],
                    resample=i > 0,
                )
                for i, kind in zip(range(last, -1, -1), cfg.up_block_types, strict=True)
            ]
        )
        groups, eps = cfg.norm_num_groups, cfg.norm_eps
        self.conv_norm_out = layers.GroupNorm(channels[0], groups=groups, eps=eps)
        self.conv_out = layers.Conv(channels[0], cfg.out_channels)
        self.cfg = cfg

    @staticmethod
    def _added(cfg: UNetConfig, text_size: int) -> Any:
        """The other summands of the conditioning vector: the pooled text, or that and sizes."""
        if cfg.addition_embed_type == "text":
            heads = cfg.addition_embed_type_num_heads
            return unet_blocks.TextTimeEmbedding(text_size, cfg.time_embed_dim, heads=heads)
        if cfg.addition_embed_type == "text_time":
            size = cfg.projection_class_embeddings_input_dim
            assert size is not None
            return unet_blocks.TimeMLP(size, cfg.time_embed_dim, act_fn=cfg.act_fn)
        return None

    def __call__(
        self,
        x: Array,
        t: Array,
        text: Array,
        *,
        noise_level: Array | None = None,
        pooled: Array | None = None,
        time_ids: Array | None = None,
        remat: str = "none",
        attend: Attend | None = None,
    ) -> Array:
        if attend is not None and remat != "none":
            raise ValueError(f"attend: expected remat 'none', found {remat!r}.")
        cfg = self.cfg
        text = text.astype(x.dtype)  # one float32 input would turn the whole network to float32
        call = unet_blocks.REMAT[remat] if attend is None else unet_blocks.attending(attend)
        time = self.time_embedding(self._sinusoid(t).astype(x.dtype))
        if self.class_embedding is not None:
            if noise_level is None:
                raise ValueError(
                    "this UNet (class_embed_type 'timestep') needs noise_level [B] of the low-res "
                    "image."
                )
            time = time + self.class_embedding(self._sinusoid(noise_level).astype(x.dtype))
        if cfg.addition_embed_type == "text":
            time = time + self.add_embedding(text)
        elif cfg.addition_embed_type == "text_time":
            if pooled is None or time_ids is None:
                raise ValueError(
                    "this UNet (addition_embed_type 'text_time') needs pooled [B,P] and time_ids "
                    "[B,6]."
                )
            assert cfg.addition_time_embed_dim is not None
            sizes = self._sinusoid(time_ids.reshape(-1), cfg.addition_time_embed_dim)
            sizes = sizes.reshape(x.shape[0], -1).astype(x.dtype)
            time = time + self.add_embedding(jnp.concatenate([pooled.astype(x.dtype), sizes], -1))
        if cfg.time_embedding_act_fn is not None:
            time = layers.activation(cfg.time_embedding_act_fn)(time)
        text = text if self.encoder_hid_proj is None else self.encoder_hid_proj(text)

        x = self.conv_in(x)
        skips = [x]
        for down in self.down_blocks:
            x, new = down(x, time, text, call=call)
            skips += new
        x = self.mid_block(x, time, text, call=call)
        for up in self.up_blocks:
            taken = [skips.pop() for _ in up.resnets][::-1]
            x = up(x, taken, time, text, call=call)
        return self.conv_out(layers.activation(cfg.act_fn)(self.conv_norm_out(x)))

    def _sinusoid(self, t: Array, size: int | None = None) -> Array:
        return layers.time_sinusoid(
            jnp.atleast_1d(t),
            size or self.cfg.block_out_channels[0],
            flip_sin_to_cos=self.cfg.flip_sin_to_cos,
            freq_shift=self.cfg.freq_shift,
        )


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `unet/config.json` describes."""
    return layers.take_apart(UNet(UNetConfig.from_dict(config)))
