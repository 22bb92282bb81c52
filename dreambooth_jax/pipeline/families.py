"""The families of base models: which networks a pipeline class has, and how it reads prompts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreambooth_jax.models import clip, layers, t5

Array = jax.Array
Tokens = Mapping[str, Array]


class PooledText(NamedTuple):
    """What a UNet of SDXL reads: states `[P,L,D]`, and one vector for the whole prompt `[P,E]`."""

    states: Any
    pooled: Any


# Encoders by name, each bound to its weights -> what the UNet reads.
Encode = Callable[[Mapping[str, Any], Tokens, Any], Any]


def _t5_states(encoders: Mapping[str, Any], tokens: Tokens, dtype: Any) -> Array:
    """The last states of a T5 that sees no padding (Saharia et al. 2022)."""
    return encoders["text_encoder"](tokens["ids"], tokens["mask"], dtype=dtype)


def _clip_states(encoders: Mapping[str, Any], tokens: Tokens, dtype: Any) -> Array:
    """The last states of a CLIP, padding included (Rombach et al. 2022)."""
    return encoders["text_encoder"](tokens["ids"], dtype=dtype).last


def _two_clips(encoders: Mapping[str, Any], tokens: Tokens, dtype: Any) -> PooledText:
    """States before the last layer of two CLIPs, side by side (Podell et al. 2023, section 2.1).

    The pooled vector is the second one's, projected.
    """
    first = encoders["text_encoder"](tokens["ids"], dtype=dtype)
    second = encoders["text_encoder_2"](tokens["ids_2"], dtype=dtype)
    return PooledText(
        jnp.concatenate([first.penultimate, second.penultimate], -1), second.projected
    )


@dataclasses.dataclass(frozen=True)
class Family:
    """What is common to all models of one pipeline class of diffusers.

    text_encoders: component -> (component of its tokenizer, builder of its network).
    """

    kind: str  # the stage that such a model is: "base" or "upscaler"
    encode: Encode
    text_encoders: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], layers.Network]]]
    latent: bool = False
    sized: bool = False  # it is told how large the original was and where it was cropped


_T5 = {"text_encoder": ("tokenizer", t5.build)}
_CLIP = {"text_encoder": ("tokenizer", clip.build)}
_TWO_CLIPS = {**_CLIP, "text_encoder_2": ("tokenizer_2", clip.build)}
FAMILIES: dict[str, Family] = {
    "IFPipeline": Family("base", _t5_states, _T5),
    "IFSuperResolutionPipeline": Family("upscaler", _t5_states, _T5),
    "StableDiffusionPipeline": Family("base", _clip_states, _CLIP, latent=True),
    "StableDiffusionXLPipeline": Family("base", _two_clips, _TWO_CLIPS, True, True),
}
