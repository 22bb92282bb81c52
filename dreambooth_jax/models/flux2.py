"""The transformer of FLUX.2 (Black Forest Labs 2025): diffusers' `Flux2Transformer2DModel`.

Text and image first keep their own weights and share each attention, then are one sequence whose
attention and feed-forward layers stand side by side. One modulation of each kind serves all blocks.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dreambooth_jax.models import layers, read_config, rope, unet_blocks
from dreambooth_jax.models.layers import Array
from dreambooth_jax.models.modulation import layer_norm

# Keys of config.json with the only values that this network honours.
_ONLY: dict[str, list[Any]] = {"patch_size": [1], "guidance_embeds": [False]}
_DEV = (
    "FLUX.2 dev is another model, with guidance_embeds and Mistral's text encoder. Write "
    "--config.base_model=black-forest-labs/FLUX.2-klein-base-4B."
)


@dataclasses.dataclass(frozen=True)
class Flux2Config:
    """The keys of `transformer/config.json` that shape the network."""

    num_layers: int
    num_single_layers: int
    num_attention_heads: int
    joint_attention_dim: int
    in_channels: int = 128
    attention_head_dim: int = 128
    mlp_ratio: float = 3.0
    timestep_guidance_channels: int = 256
    axes_dims_rope: tuple[int, ...] = (32, 32, 32, 32)
    rope_theta: float = 2000.0
    eps: float = 1e-6

    @property
    def size(self) -> int:
        """Width of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def inner(self) -> int:
        """Width inside the feed-forward layers."""
        return int(self.size * self.mlp_ratio)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "Flux2Config":
        """Reads `config.json`.

        Raises:
          ValueError: every key that is missing or that this network cannot honour, in one message.
        """
        read_config.refuse("transformer/config.json", read_config.kinds(cls, raw))
        channels = raw.get("in_channels", cls.in_channels)
        only = _ONLY | {"out_channels": [None, channels]}
        problems = [
            *read_config.missing(cls, raw),
            *read_config.other_than(raw, only),
            *read_config.unknown(cls, raw, beside=only),
        ]
        axes = tuple(raw.get("axes_dims_rope") or cls.axes_dims_rope)
        head = raw.get("attention_head_dim", cls.attention_head_dim)
        if len(axes) != 4 or sum(axes) != head:
            problems.append(
                f"axes_dims_rope = {axes}; expected four numbers that add up to "
                f"attention_head_dim, {head}"
            )
        remedy = _DEV if raw.get("guidance_embeds") else ""
        read_config.refuse("transformer/config.json", problems, remedy)
        return cls(**read_config.given(cls, raw) | {"axes_dims_rope": axes})


class TimeMLP(nnx.Module):
    """Sinusoids `[B,S]` -> the vector of the time `[B,D]`."""

    def __init__(self, size_in: int, size: int):
        self.linear_1 = layers.Linear(size_in, size, bias=False)
        self.linear_2 = layers.Linear(size, size, bias=False)

    def __call__(self, x: Array) -> Array:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class TimeEmbedding(nnx.Module):
    """The place of `TimeMLP` in the weight file; FLUX.2 dev has another one beside it."""

    def __init__(self, cfg: Flux2Config):
        self.timestep_embedder = TimeMLP(cfg.timestep_guidance_channels, cfg.size)


class Modulation(nnx.Module):
    """The time's vector `[B,D]` -> shift, scale and gate `[B,1,D]` of each of `count` branches."""

    def __init__(self, size: int, count: int):
        self.linear = layers.Linear(size, 3 * count * size, bias=False)
        self.count = count

    def __call__(self, c: Array) -> list[Array]:
        return jnp.split(self.linear(jax.nn.silu(c))[:, None], 3 * self.count, -1)


class FeedForward(nnx.Module):
    """Two layers, the first holding values and their gates, gates first (Shazeer 2020)."""

    def __init__(self, cfg: Flux2Config):
        self.linear_in = layers.Linear(cfg.size, 2 * cfg.inner, bias=False)
        self.linear_out = layers.Linear(cfg.inner, cfg.size, bias=False)

    def __call__(self, x: Array) -> Array:
        gate, value = (half(x) for half in self.linear_in.halves())
        return layers.whole(self.linear_out(jax.nn.silu(gate) * value))


class JointAttention(nnx.Module):
    """Attention of text `[B,L,D]` and image `[B,N,D]` to each other, each by its own weights."""

    def __init__(self, cfg: Flux2Config):
        size, head = cfg.size, cfg.attention_head_dim
        self.to_q = layers.Linear(size, size, bias=False)
        self.to_k = layers.Linear(size, size, bias=False)
        self.to_v = layers.Linear(size, size, bias=False)
        self.to_out = nnx.List([layers.Linear(size, size, bias=False)])
        self.norm_q = layers.RMSNorm(head, eps=cfg.eps)
        self.norm_k = layers.RMSNorm(head, eps=cfg.eps)
        self.add_q_proj = layers.Linear(size, size, bias=False)
        self.add_k_proj = layers.Linear(size, size, bias=False)
        self.add_v_proj = layers.Linear(size, size, bias=False)
        self.to_add_out = layers.Linear(size, size, bias=False)
        self.norm_added_q = layers.RMSNorm(head, eps=cfg.eps)
        self.norm_added_k = layers.RMSNorm(head, eps=cfg.eps)
        self.heads = cfg.num_attention_heads

    def __call__(self, text: Array, image: Array, turns: Array) -> tuple[Array, Array]:
        def heads(project: layers.Linear, x: Array) -> Array:
            return project(x).reshape(*x.shape[:2], self.heads, -1)

        q = [self.norm_added_q(heads(self.add_q_proj, text)), self.norm_q(heads(self.to_q, image))]
        k = [self.norm_added_k(heads(self.add_k_proj, text)), self.norm_k(heads(self.to_k, image))]
        v = [heads(self.add_v_proj, text), heads(self.to_v, image)]
        answer = layers.attention(
            rope.turn_pairs(jnp.concatenate(q, 1), turns),
            rope.turn_pairs(jnp.concatenate(k, 1), turns),
            jnp.concatenate(v, 1),
        )
        answer = answer.reshape(*answer.shape[:2], -1)
        of_text, of_image = answer[:, : text.shape[1]], answer[:, text.shape[1] :]
        return layers.whole(self.to_add_out(of_text)), layers.whole(self.to_out[0](of_image))


class DoubleBlock(nnx.Module):
    """One attention of both, then each its feed-forward layers; modulated by `said_…`."""

    def __init__(self, cfg: Flux2Config):
        self.attn = JointAttention(cfg)
        self.ff = FeedForward(cfg)
        self.ff_context = FeedForward(cfg)
        self.eps = cfg.eps

    def __call__(
        self,
        text: Array,
        image: Array,
        turns: Array,
        said_to_text: Sequence[Array],
        said_to_image: Sequence[Array],
    ) -> tuple[Array, Array]:
        shift_t, scale_t, gate_t, *rest_t = said_to_text
        shift_i, scale_i, gate_i, *rest_i = said_to_image
        answers = self.attn(
            _modulated(text, shift_t, scale_t, eps=self.eps),
            _modulated(image, shift_i, scale_i, eps=self.eps),
            turns,
        )
        text, image = text + gate_t * answers[0], image + gate_i * answers[1]
        shift_t, scale_t, gate_t = rest_t
        shift_i, scale_i, gate_i = rest_i
        text = text + gate_t * self.ff_context(_modulated(text, shift_t, scale_t, eps=self.eps))
        image = image + gate_i * self.ff(_modulated(image, shift_i, scale_i, eps=self.eps))
        return text, image


class ParallelAttention(nnx.Module):
    """Attention and feed-forward layers side by side: one product in, one out, `[B,L,D]`."""

    def __init__(self, cfg: Flux2Config):
        size, inner = cfg.size, cfg.inner
        self.to_qkv_mlp_proj = layers.Linear(size, 3 * size + 2 * inner, bias=False)
        self.norm_q = layers.RMSNorm(cfg.attention_head_dim, eps=cfg.eps)
        self.norm_k = layers.RMSNorm(cfg.attention_head_dim, eps=cfg.eps)
        self.to_out = layers.Linear(size + inner, size, bias=False)
        self.heads = cfg.num_attention_heads
        self.sizes = (size, size, size, inner, inner)

    def __call__(self, x: Array, turns: Array) -> Array:
        parts = jnp.split(self.to_qkv_mlp_proj(x), np.cumsum(self.sizes)[:-1], -1)
        q, k, v = (y.reshape(*x.shape[:2], self.heads, -1) for y in parts[:3])
        q = rope.turn_pairs(self.norm_q(q), turns)
        k = rope.turn_pairs(self.norm_k(k), turns)
        answer = layers.attention(q, k, v).reshape(x.shape)
        gate, value = parts[3:]
        both = jnp.concatenate([answer, jax.nn.silu(gate) * value], -1)
        return layers.whole(self.to_out(both))


class SingleBlock(nnx.Module):
    """x plus `ParallelAttention` of its modulated norm."""

    def __init__(self, cfg: Flux2Config):
        self.attn = ParallelAttention(cfg)
        self.eps = cfg.eps

    def __call__(self, x: Array, turns: Array, said: Sequence[Array]) -> Array:
        shift, scale, gate = said
        return x + gate * self.attn(_modulated(x, shift, scale, eps=self.eps), turns)


class OutputNorm(nnx.Module):
    """A norm with scale and shift of the time's vector; the scale comes first here."""

    def __init__(self, cfg: Flux2Config):
        self.linear = layers.Linear(cfg.size, 2 * cfg.size, bias=False)
        self.eps = cfg.eps

    def __call__(self, x: Array, c: Array) -> Array:
        c = jax.nn.silu(c)[:, None]
        scale, shift = (half(c) for half in self.linear.halves())
        return _modulated(x, shift, scale, eps=self.eps)


class Flux2(nnx.Module):
    """x `[B,h,w,128]`, t `[B]`, text `[B,L,D]` -> velocity noise - x0, `[B,h,w,128]`.

    x are patches of a latent; t is float32, 1000 times the level of noise in [0, 1]. All of the
    text is read, its padding as well.
    """

    def __init__(self, cfg: Flux2Config):
        size = cfg.size
        self.x_embedder = layers.Linear(cfg.in_channels, size, bias=False)
        self.context_embedder = layers.Linear(cfg.joint_attention_dim, size, bias=False)
        self.time_guidance_embed = TimeEmbedding(cfg)
        self.double_stream_modulation_img = Modulation(size, 2)
        self.double_stream_modulation_txt = Modulation(size, 2)
        self.single_stream_modulation = Modulation(size, 1)
        self.transformer_blocks = nnx.List([DoubleBlock(cfg) for _ in range(cfg.num_layers)])
        self.single_transformer_blocks = nnx.List(
            [SingleBlock(cfg) for _ in range(cfg.num_single_layers)]
        )
        self.norm_out = OutputNorm(cfg)
        self.proj_out = layers.Linear(size, cfg.in_channels, bias=False)
        self.cfg = cfg

    def __call__(self, x: Array, t: Array, text: Array, *, remat: str = "none") -> Array:
        call, (b, h, w, _), length = unet_blocks.REMAT[remat], x.shape, text.shape[1]
        width = self.cfg.timestep_guidance_channels
        waves = layers.time_sinusoid(jnp.atleast_1d(t), width, flip_sin_to_cos=True, freq_shift=0.0)
        waves = jnp.broadcast_to(waves, (b, width)).astype(x.dtype)
        c = self.time_guidance_embed.timestep_embedder(waves)
        of_image, of_text = (
            said(c)
            for said in (self.double_stream_modulation_img, self.double_stream_modulation_txt)
        )
        of_both = self.single_stream_modulation(c)
        turns = jnp.asarray(self._turns(length, h, w))[None]

        image = self.x_embedder(x.reshape(b, h * w, -1))
        words = self.context_embedder(text.astype(x.dtype))
        for block in self.transformer_blocks:
            words, image = call(block, words, image, turns, of_text, of_image)
        both = jnp.concatenate([words, image], 1)
        for single in self.single_transformer_blocks:
            both = call(single, both, turns, of_both)
        return self.proj_out(self.norm_out(both[:, length:], c)).reshape(x.shape)

    def _turns(self, length: int, rows: int, columns: int) -> np.ndarray:
        """Angles of text, then image tokens, `[L+N,d/2]`; positions are time, row, column, word."""
        where = np.zeros((length + rows * columns, 4), np.int64)
        where[:length, 3] = np.arange(length)
        where[length:, 1:3] = np.indices((rows, columns)).reshape(2, -1).T
        return rope.axes_angles(where, self.cfg.axes_dims_rope, theta=self.cfg.rope_theta)


def _modulated(x: Array, shift: Array, scale: Array, *, eps: float) -> Array:
    return layer_norm(x, eps=eps) * (1.0 + scale) + shift


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `transformer/config.json` describes."""
    return layers.take_apart(Flux2(Flux2Config.from_dict(config)))
