"""Stable Diffusion 3 and 3.5: a flow transformer that reads two CLIPs and a T5 (Esser et al. 2024).

The T5 may be missing: the folder marks `text_encoder_3` null, and its states are zeros.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.families import flow, original_flow_keys, original_keys, unet
from dreambooth_jax.families.flow import FlowText
from dreambooth_jax.models import mmdit
from dreambooth_jax.pipeline import (
    Conditioner,
    Denoiser,
    Family,
    ModelFolder,
    SingleFile,
    Stage,
)
from dreambooth_jax.pipeline.family import Tensors

Array = jax.Array

T5_TOKENS = 256
_CLIPS = ("", "_2")
_T5 = "_3"


def _join(width: int, *, dtype: Any, states: list[Array], t5: Array | None) -> Array:
    """Returns the tokens of CLIPs, side by side and filled up to `width`, then those of T5."""
    clips = jnp.concatenate(states, -1)
    clips = jnp.pad(clips, ((0, 0), (0, 0), (0, width - clips.shape[-1])))
    if t5 is None:
        t5 = jnp.zeros((len(clips), T5_TOKENS, width), dtype)
    return jnp.concatenate([clips, t5], 1)


def _predict(network: Any, xt: Array, t: Array, text: FlowText, *, remat: str) -> Array:
    return network(xt.astype(text.states.dtype), t, text.states, text.pooled, remat=remat)


def _build(folder: ModelFolder) -> Stage:
    config = folder.json(flow.COMPONENT, "config.json")
    network = mmdit.build(config)
    width = network.abstract["context_embedder/kernel"].shape[0]

    def join(encoders: Mapping[str, Any], tokens: Mapping[str, Array], dtype: Any) -> FlowText:
        read = [encoders[f"text_encoder{end}"](tokens[f"ids{end}"], dtype=dtype) for end in _CLIPS]
        third = encoders.get(f"text_encoder{_T5}")
        # No mask: the transformer was trained on states of T5 that attend to padding.
        states = None if third is None else third(tokens[f"ids{_T5}"], dtype=dtype)
        clips = [one.penultimate for one in read]
        pooled = jnp.concatenate([one.projected for one in read], -1)
        return FlowText(_join(width, dtype=dtype, states=clips, t5=states), pooled)

    encoders = {f"text_encoder{end}": flow.clip_encoder(folder, suffix=end) for end in _CLIPS}
    clips = tuple(encoders)
    unprojected = [
        name for name in clips if "text_projection/kernel" not in encoders[name].network.abstract
    ]
    if unprojected:
        raise ValueError(
            f"{', '.join(unprojected)}: Stable Diffusion 3 needs CLIPs with a projection "
            "(CLIPTextModelWithProjection). Copy those folders of the base model again."
        )
    if folder.json("model_index.json").get(f"text_encoder{_T5}", [None])[0] is not None:
        encoders[f"text_encoder{_T5}"] = flow.t5_encoder(folder, suffix=_T5, length=T5_TOKENS)
    codec = unet.latent_codec(folder)
    return Stage(
        kind="base",
        folder=folder.root,
        variant=folder.variant,
        family=FAMILY,
        denoiser=Denoiser(
            flow.COMPONENT,
            network,
            _predict,
            channels=int(config.get("in_channels", 16)),
            tables=r"pos_embed/pos_embed",
        ),
        codec=codec,
        conditioner=Conditioner(encoders, join, trainable=clips),
        path=flow.path(folder),
        frame=flow.frame(config, factor=codec.factor),
    )


def _architecture(stage: Stage) -> str:
    blocks = stage.denoiser.network.heads
    if not any("norm_q" in path for path in stage.denoiser.network.abstract):
        return "stable-diffusion-3-medium"
    dual = any(path.endswith("attn2") for path in blocks)
    return f"stable-diffusion-3.5-{'medium' if dual else 'large'}"


def _layout(stage: Stage, parts: Mapping[str, Tensors]) -> Tensors:
    made = {"model.diffusion_model": original_flow_keys.sd3(parts[flow.COMPONENT])}
    made["first_stage_model"] = original_keys.vae(parts["vae"])
    names = zip(stage.conditioner.encoders, ("clip_l", "clip_g", "t5xxl"), strict=False)
    for component, name in names:
        made[f"text_encoders.{name}.transformer"] = parts[component]
    return original_keys.joined(made)


FAMILY = Family(
    "StableDiffusion3Pipeline",
    "base",
    _build,
    flow.LORA_TARGETS,
    flow.SHARDING_RULES,
    original_flow_keys.kohya(
        original_flow_keys.SD3,
        {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2", "text_encoder_3": "lora_te3"},
    ),
    single_file=SingleFile(_architecture, _layout),
    skips=True,
)
