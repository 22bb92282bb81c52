"""The transformer of Z-Image (Z-Image team 2025): diffusers' `ZImageTransformer2DModel`.

Patches of a latent and states of a caption are refined apart, then read each other as one sequence.
Norms stand before and after each branch; the time scales and gates. Sequences are filled up to
multiples of 32 with learned tokens, which are read like others: the model was trained so.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import layers, modulation, read_config, rope, unet_blocks
from dreambooth_jax.models.layers import Array
from dreambooth_jax.models.transformer import Nothing

_MULTIPLE = 32  # of tokens, to which each sequence is filled up
_TIME_WIDTH = 256
_QK_EPS = 1e-5  # whatever norm_eps is
_FINAL_EPS = 1e-6
_PATCH = 2
# Keys of config.json with the only values that this network honours.
_ONLY: dict[str, Any] = {
    "all_patch_size": [[_PATCH]],
    "all_f_patch_size": [[1]],
    "qk_norm": [True],
    "siglip_feat_dim": [None],
}
_OMNI = (
    "A siglip_feat_dim is that of Z-Image Omni, which also reads pictures. Write "
    "--config.base_model=Tongyi-MAI/Z-Image, the base model."
)


@dataclasses.dataclass(frozen=True)
class ZImageConfig:
    """The keys of `transformer/config.json` that shape the network."""

    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    norm_eps: float = 1e-5
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, ...] = (32, 48, 48)
    axes_lens: tuple[int, ...] = (1024, 512, 512)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "ZImageConfig":
        """Reads `config.json`.

        Raises:
          ValueError: every key whose value this network cannot honour, in one message.
        """
        read_config.refuse("transformer/config.json", read_config.kinds(cls, raw))
        found = read_config.given(cls, raw)
        lists = ("axes_dims", "axes_lens")
        cfg = cls(**found | {key: tuple(found[key]) for key in lists if key in found})
        only = _ONLY | {"n_kv_heads": [cfg.n_heads]}
        problems = [
            *read_config.other_than(raw, only),
            *read_config.unknown(cls, raw, beside=only),
        ]
        if len(cfg.axes_dims) != 3 or len(cfg.axes_lens) != 3:
            problems.append("axes_dims and axes_lens need three numbers each: caption, row, column")
        elif cfg.n_heads * sum(cfg.axes_dims) != cfg.dim:
            problems.append(
                f"axes_dims {cfg.axes_dims} add up to {sum(cfg.axes_dims)}; expected dim / n_heads "
                f"= {cfg.dim / cfg.n_heads:g}"
            )
        remedy = "" if raw.get("siglip_feat_dim") is None else _OMNI
        read_config.refuse("transformer/config.json", problems, remedy)
        return cfg


class TimeMLP(nnx.Module):
    """Sinusoids of the time `[B,256]` -> the vector that scales and gates, `[B, min(D,256)]`."""

    def __init__(self, size: int):
        first, last = layers.Linear(_TIME_WIDTH, 1024), layers.Linear(1024, size)
        self.mlp: nnx.List[Any] = nnx.List([first, Nothing(), last])

    def __call__(self, x: Array) -> Array:
        return self.mlp[2](jax.nn.silu(self.mlp[0](x)))


class Attention(nnx.Module):
    """Attention of tokens `[B,L,D]` to each other at their positions; `bias` hides keys."""

    def __init__(self, cfg: ZImageConfig):
        size = cfg.dim
        self.to_q = layers.Linear(size, size, bias=False)
        self.to_k = layers.Linear(size, size, bias=False)
        self.to_v = layers.Linear(size, size, bias=False)
        self.norm_q = layers.RMSNorm(size // cfg.n_heads, eps=_QK_EPS)
        self.norm_k = layers.RMSNorm(size // cfg.n_heads, eps=_QK_EPS)
        self.to_out = nnx.List([layers.Linear(size, size, bias=False)])
        self.heads = cfg.n_heads

    def __call__(self, x: Array, turns: Array, bias: Array | None) -> Array:
        heads = (*x.shape[:2], self.heads, -1)
        q, k, v = (project(x).reshape(heads) for project in (self.to_q, self.to_k, self.to_v))
        q = rope.turn_pairs(self.norm_q(q), turns)
        k = rope.turn_pairs(self.norm_k(k), turns)
        answer = layers.attention(q, k, v, bias=bias)
        return layers.whole(self.to_out[0](answer.reshape(x.shape)))


class FeedForward(nnx.Module):
    """Two layers, the first times an activated twin of itself (Shazeer 2020)."""

    def __init__(self, size: int):
        inner = int(size / 3 * 8)
        self.w1 = layers.Linear(size, inner, bias=False)
        self.w2 = layers.Linear(inner, size, bias=False)
        self.w3 = layers.Linear(size, inner, bias=False)

    def __call__(self, x: Array) -> Array:
        return layers.whole(self.w2(jax.nn.silu(self.w1(x)) * self.w3(x)))


class Block(nnx.Module):
    """x plus attention, then plus feed-forward layers, each normed before and after.

    Where `timed`, the time's vector `c` scales what enters a branch and gates what leaves it.
    """

    def __init__(self, cfg: ZImageConfig, *, timed: bool):
        size, eps = cfg.dim, cfg.norm_eps
        self.attention = Attention(cfg)
        self.feed_forward = FeedForward(size)
        self.attention_norm1 = layers.RMSNorm(size, eps=eps)
        self.attention_norm2 = layers.RMSNorm(size, eps=eps)
        self.ffn_norm1 = layers.RMSNorm(size, eps=eps)
        self.ffn_norm2 = layers.RMSNorm(size, eps=eps)
        width = min(size, _TIME_WIDTH)
        self.adaLN_modulation = nnx.List([layers.Linear(width, 4 * size)]) if timed else None

    def __call__(self, x: Array, turns: Array, bias: Array | None, c: Array | None) -> Array:
        scale_a: Any = 1.0
        gate_a, scale_f, gate_f = scale_a, scale_a, scale_a
        if self.adaLN_modulation is not None and c is not None:
            said = self.adaLN_modulation[0](c)[:, None]
            scale_a, gate_a, scale_f, gate_f = jnp.split(said, 4, -1)
            scale_a, scale_f = 1.0 + scale_a, 1.0 + scale_f
            gate_a, gate_f = jnp.tanh(gate_a), jnp.tanh(gate_f)
        answer = self.attention(self.attention_norm1(x) * scale_a, turns, bias)
        x = x + gate_a * self.attention_norm2(answer)
        return x + gate_f * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * scale_f))


class FinalLayer(nnx.Module):
    """Tokens `[B,L,D]`, normed and scaled by the time -> patches `[B,L,out]`."""

    def __init__(self, size: int, size_out: int):
        self.linear = layers.Linear(size, size_out)
        scale = layers.Linear(min(size, _TIME_WIDTH), size)
        self.adaLN_modulation: nnx.List[Any] = nnx.List([Nothing(), scale])

    def __call__(self, x: Array, c: Array) -> Array:
        scale = self.adaLN_modulation[1](jax.nn.silu(c))[:, None]
        return self.linear(modulation.layer_norm(x, eps=_FINAL_EPS) * (1.0 + scale))


class ZImage(nnx.Module):
    """x `[B,h,w,C]`, t `[B]`, text `[B,L,D]` and its mask `[B,L]` -> `[B,h,w,C]`.

    t float32 from 0, pure noise, to 1, clean; h and w are even. The output is x0 - noise. A caption
    stands at the beginning of its row; rows of other lengths do not change it.
    """

    def __init__(self, cfg: ZImageConfig):
        size, patch = cfg.dim, _PATCH**2 * cfg.in_channels
        self.all_x_embedder = nnx.Dict({"2-1": layers.Linear(patch, size)})
        self.all_final_layer = nnx.Dict({"2-1": FinalLayer(size, patch)})
        self.t_embedder = TimeMLP(min(size, _TIME_WIDTH))
        self.cap_embedder = nnx.List(
            [
                layers.RMSNorm(cfg.cap_feat_dim, eps=cfg.norm_eps),
                layers.Linear(cfg.cap_feat_dim, size),
            ]
        )
        self.x_pad_token = layers.param(1, size)
        self.cap_pad_token = layers.param(1, size)
        refiners = range(cfg.n_refiner_layers)
        self.noise_refiner = nnx.List([Block(cfg, timed=True) for _ in refiners])
        self.context_refiner = nnx.List([Block(cfg, timed=False) for _ in refiners])
        self.layers = nnx.List([Block(cfg, timed=True) for _ in range(cfg.n_layers)])
        self.cfg = cfg

    def __call__(
        self, x: Array, t: Array, text: Array, mask: Array, *, remat: str = "none"
    ) -> Array:
        call, (rows, h, w, _) = unet_blocks.REMAT[remat], x.shape
        count, lengths, longest = h // _PATCH * (w // _PATCH), _filled(mask), _up(text.shape[1])
        self._check_reach(longest, h, w)
        c = layers.time_sinusoid(
            jnp.atleast_1d(t) * self.cfg.t_scale, _TIME_WIDTH, flip_sin_to_cos=True, freq_shift=0.0
        )
        c = self.t_embedder(jnp.broadcast_to(c, (rows, _TIME_WIDTH)).astype(x.dtype))
        # All captions are equally long where even the longest fills one multiple only.
        hidden = jnp.arange(longest)[None] >= lengths[:, None]
        bias = jnp.where(hidden, jnp.finfo(jnp.float32).min, 0.0)[:, None, None]
        alike = longest == _MULTIPLE
        image_turns, caption_turns = self._turns(lengths, longest, h // _PATCH, w // _PATCH)

        image = self._with_padding(self.all_x_embedder["2-1"](_patches(x)))
        for block in self.noise_refiner:
            image = call(block, image, image_turns, None, c)
        caption = self._caption(text.astype(x.dtype), mask, longest)
        for block in self.context_refiner:
            caption = call(block, caption, caption_turns, None if alike else bias, None)

        both = jnp.concatenate([image, caption], 1)
        turns = jnp.concatenate([image_turns, caption_turns], 1)
        seen = jnp.zeros((rows, 1, 1, image.shape[1]), bias.dtype)
        joint = None if alike else jnp.concatenate([seen, bias], -1)
        for block in self.layers:
            both = call(block, both, turns, joint, c)
        return _picture(self.all_final_layer["2-1"](both[:, :count], c), h, w)

    def _check_reach(self, longest: int, h: int, w: int) -> None:
        needed, lens = (longest + 2, h // _PATCH, w // _PATCH), self.cfg.axes_lens
        if h % _PATCH or w % _PATCH:
            raise ValueError(f"a latent of {h}x{w} has no whole patches; sides must be even.")
        if any(n > length for n, length in zip(needed, lens, strict=True)):
            raise ValueError(
                f"a caption of {longest} tokens and a latent of {h}x{w} need axes_lens of at least "
                f"{needed}; transformer/config.json has {lens}. Write a shorter prompt or a "
                "smaller resolution."
            )

    def _with_padding(self, image: Array) -> Array:
        shape = (len(image), _up(image.shape[1]) - image.shape[1], image.shape[2])
        padding = jnp.broadcast_to(self.x_pad_token[...].astype(image.dtype), shape)
        return jnp.concatenate([image, padding], 1)

    def _caption(self, text: Array, mask: Array, longest: int) -> Array:
        more = ((0, 0), (0, longest - text.shape[1]))
        embedded = self.cap_embedder[1](self.cap_embedder[0](text))
        embedded = jnp.pad(embedded, (*more, (0, 0)))
        real = jnp.pad(mask, more)[..., None] > 0
        return jnp.where(real, embedded, self.cap_pad_token[...].astype(embedded.dtype))

    def _turns(self, lengths: Array, longest: int, rows: int, columns: int) -> tuple[Array, Array]:
        """Angles of image tokens `[B,N,d/2]` and caption tokens `[1,L,d/2]`.

        An image's first coordinate follows its own caption; what fills it up is at the origin.
        """
        cfg = self.cfg
        count = rows * columns
        where = np.zeros((_up(count), 3), np.int64)
        where[:count, 1:] = np.indices((rows, columns)).reshape(2, -1).T
        fixed = rope.axes_angles(where, cfg.axes_dims, theta=cfg.rope_theta)
        first = cfg.axes_dims[0] // 2
        place = np.arange(longest + 2)  # looked up, since float32 products would be less exact
        along = jnp.asarray(rope.angles(place, cfg.axes_dims[0], theta=cfg.rope_theta))
        own = along[lengths + 1][:, None] * (np.arange(_up(count)) < count)[None, :, None]
        rest = jnp.broadcast_to(fixed[None, :, first:], (len(lengths), *fixed[:, first:].shape))
        still = jnp.zeros((1, longest, fixed.shape[1] - first))
        return (
            jnp.concatenate([own, rest], -1),
            jnp.broadcast_to(
                jnp.concatenate([along[None, 1 : longest + 1], still], -1),
                (len(lengths), longest, fixed.shape[1]),
            ),
        )


def _up(length: int) -> int:
    """The next multiple of 32."""
    return -(-length // _MULTIPLE) * _MULTIPLE


def _filled(mask: Array) -> Array:
    """Tokens of each caption once it is filled up, int32 `[B]`."""
    real = jnp.sum(mask > 0, -1, dtype=jnp.int32)
    return (real + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE


def _patches(x: Array) -> Array:
    """`[B,h,w,C] -> [B, h·w/4, 4C]`: row, column, channel, the channel fastest."""
    b, h, w, c = x.shape
    parts = x.reshape(b, h // _PATCH, _PATCH, w // _PATCH, _PATCH, c).transpose(0, 1, 3, 2, 4, 5)
    return parts.reshape(b, h // _PATCH * (w // _PATCH), -1)


def _picture(patches: Array, h: int, w: int) -> Array:
    b = len(patches)
    parts = patches.reshape(b, h // _PATCH, w // _PATCH, _PATCH, _PATCH, -1)
    return parts.transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `transformer/config.json` describes."""
    return layers.take_apart(ZImage(ZImageConfig.from_dict(config)))
