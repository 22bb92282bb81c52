"""CLIP whole (Radford et al. 2021): pictures and prompts to vectors of one space.

The text side is `models/clip.py`; attribute names are the keys of `CLIPModel` in published files.
Only for evaluation: pictures have the size that the network was trained with.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from dreambooth_jax.models import clip, layers, read_config
from dreambooth_jax.models.layers import Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig(clip.StackConfig):
    """The keys of `vision_config` in `config.json` that shape the network."""

    image_size: int
    patch_size: int

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> "VisionConfig":
        """Reads `vision_config`.

        Raises:
          ValueError: a key is missing, or has a value that this network does not know.
        """
        read_config.refuse("vision_config of a CLIP", cls.problems(raw))
        return cls(**read_config.given(cls, raw))


class Embeddings(nnx.Module):
    """The class token and one token per square of the picture, each with its position."""

    def __init__(self, cfg: VisionConfig):
        self.class_embedding = layers.param(cfg.hidden_size)
        self.patch_embedding = layers.Conv(
            3,
            cfg.hidden_size,
            width=cfg.patch_size,
            stride=cfg.patch_size,
            padding=(0, 0),
            bias=False,
        )
        tokens = (cfg.image_size // cfg.patch_size) ** 2 + 1
        self.position_embedding = layers.Embedding(tokens, cfg.hidden_size)

    def __call__(self, x: Array) -> Array:
        patches = self.patch_embedding(x)
        patches = patches.reshape(patches.shape[0], -1, patches.shape[-1])
        first = self.class_embedding[...][None, None]
        first = jnp.broadcast_to(first, (x.shape[0], 1, first.shape[-1]))
        tokens = jnp.concatenate([first, patches], 1)
        return tokens + self.position_embedding(jnp.arange(tokens.shape[1]))[None]


class VisionModel(nnx.Module):
    """Normalised pictures `[B,S,S,3]` to `[B,D]`: the class token after the last norm."""

    def __init__(self, cfg: VisionConfig):
        self.embeddings = Embeddings(cfg)
        # The files spell it so.
        self.pre_layrnorm = layers.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)
        self.encoder = clip.Stack(cfg)
        self.post_layernorm = layers.LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps)

    def __call__(self, x: Array) -> Array:
        tokens = self.pre_layrnorm(self.embeddings(x))
        for layer in self.encoder.layers:
            tokens = layer(tokens, None)
        return self.post_layernorm(tokens[:, 0])


class ClipPair(clip.ClipEncoder):
    """Pictures `[B,S,S,3]` and token ids `[P,L]` to vectors `[B,projection]`, `[P,projection]`."""

    def __init__(self, text: clip.ClipConfig, vision: VisionConfig):
        super().__init__(text)
        self.vision_model = VisionModel(vision)
        self.visual_projection = layers.Linear(vision.hidden_size, text.projection_dim, bias=False)
        self.logit_scale = layers.param()  # of its training; cosines do not need it

    def images(self, x: Array) -> Array:
        return self.visual_projection(self.vision_model(x))

    def texts(self, ids: Array) -> Array:
        projected = self(ids).projected
        assert projected is not None
        return projected


def build(config: Mapping[str, Any]) -> layers.Network:
    """The network that `config.json` describes.

    Raises:
      ValueError: it is no CLIP, or not one that this network knows.
    """
    text, vision = config.get("text_config"), config.get("vision_config")
    if not text or not vision:
        raise ValueError("config.json of a CLIP: text_config or vision_config is missing.")
    own = {"architectures": ["CLIPTextModelWithProjection"]}
    own["projection_dim"] = config.get("projection_dim", 512)
    return layers.take_apart(
        ClipPair(clip.ClipConfig.from_dict({**text, **own}), VisionConfig.from_dict(vision))
    )
