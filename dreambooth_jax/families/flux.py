"""FLUX.1: a flow transformer that reads a T5 and one vector of a CLIP (Black Forest Labs 2024).

FLUX.1-dev takes the scale of guidance as an input, FLUX.1-schnell has no guidance.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.families import flow, original_flow_keys, unet
from dreambooth_jax.families.flow import FlowText
from dreambooth_jax.models import flux
from dreambooth_jax.pipeline import Conditioner, Denoiser, Family, ModelFolder, SingleFile, Stage
from dreambooth_jax.pipeline.family import Tensors

Array = jax.Array

T5_TOKENS = 512
# The distilled network predicts what guidance of a larger scale would; at 1.0 the loss asks for
# what it can say: black-forest-labs/flux, issue 79.
_TRAINED_AT = 1.0
_DISTILLED = (
    "FLUX.1-schnell was distilled to four steps without guidance, and fine-tuning undoes it. Train "
    "--config.base_model=black-forest-labs/FLUX.1-dev."
)


def _text(encoders: Mapping[str, Any], tokens: Mapping[str, Array], dtype: Any) -> FlowText:
    """Returns the states of T5, its padding unmasked as in training, and CLIP's last end mark."""
    clip = encoders["text_encoder"](tokens["ids"], dtype=dtype)
    return FlowText(encoders["text_encoder_2"](tokens["ids_2"], dtype=dtype), clip.pooled)


def _build(folder: ModelFolder) -> Stage:
    config = folder.json(flow.COMPONENT, "config.json")
    network = flux.build(config)
    guided = bool(config.get("guidance_embeds", False))

    def predict(
        module: Any,
        xt: Array,
        t: Array,
        text: FlowText,
        *,
        remat: str,
        guidance: Array | None = None,
    ) -> Array:
        given = jnp.float32(_TRAINED_AT) if guided and guidance is None else guidance
        x = xt.astype(text.states.dtype)
        return module(x, t, text.states, text.pooled, guidance=given, remat=remat)

    codec = unet.latent_codec(folder)
    clip = flow.clip_encoder(folder, suffix="")
    t5 = flow.t5_encoder(folder, suffix="_2", length=T5_TOKENS)
    return Stage(
        kind="base",
        folder=folder.root,
        variant=folder.variant,
        family=dataclasses.replace(FAMILY, guidance="embedded" if guided else "none"),
        denoiser=Denoiser(
            flow.COMPONENT, network, predict, channels=int(config.get("in_channels", 64)) // 4
        ),
        codec=codec,
        conditioner=Conditioner(
            {"text_encoder": clip, "text_encoder_2": t5}, _text, trainable=("text_encoder",)
        ),
        distilled="" if guided else _DISTILLED,
        path=dataclasses.replace(flow.path(folder), timestep_spacing="trailing"),
        frame=flow.frame(config, factor=codec.factor),
    )


def _architecture(stage: Stage) -> str:
    return "flux-1-dev" if stage.family.guidance == "embedded" else "flux-1-schnell"


def _layout(stage: Stage, parts: Mapping[str, Tensors]) -> Tensors:
    """Returns the transformer alone: text encoders and autoencoder have files of their own."""
    del stage
    return original_flow_keys.flux(parts[flow.COMPONENT])


FAMILY = Family(
    "FluxPipeline",
    "base",
    _build,
    flow.LORA_TARGETS,
    flow.SHARDING_RULES,
    original_flow_keys.kohya(
        original_flow_keys.FLUX, {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"}
    ),
    guidance="embedded",
    single_file=SingleFile(_architecture, _layout),
)
