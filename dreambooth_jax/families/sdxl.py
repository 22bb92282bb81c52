"""Stable Diffusion XL: a UNet of latents that reads two CLIPs and sizes (Podell et al. 2023)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dreambooth_jax.families import original_keys, unet
from dreambooth_jax.models.words import Attend
from dreambooth_jax.pipeline import Conditioner, Family, ModelFolder, SingleFile, Stage
from dreambooth_jax.pipeline.family import Tensors

Array = jax.Array


class PooledText(NamedTuple):
    """Embeddings of a prompt: states `[P,L,D]`, and one vector for the whole prompt `[P,E]`."""

    states: Any
    pooled: Any


def _two_clips(encoders: Mapping[str, Any], tokens: Mapping[str, Array], dtype: Any) -> PooledText:
    """Returns the states before the last layer of two CLIPs, joined (section 2.1).

    The pooled vector is the second one's, projected.
    """
    first = encoders["text_encoder"](tokens["ids"], dtype=dtype)
    second = encoders["text_encoder_2"](tokens["ids_2"], dtype=dtype)
    return PooledText(
        jnp.concatenate([first.penultimate, second.penultimate], -1), second.projected
    )


def whole(height: int, width: int) -> Array:
    """Returns SDXL's size conditioning for an uncropped picture, float32 `[6]`.

    Height and width of the original, rows and columns cropped off at its top and left, height and
    width of the picture (section 2.2).
    """
    return jnp.array([height, width, 0, 0, height, width], jnp.float32)


def _build(folder: ModelFolder) -> Stage:
    config = folder.json("unet", "config.json")
    codec = unet.latent_codec(folder, unet_channels=config.get("in_channels", 4))

    def predict(
        network: Any,
        xt: Array,
        t: Array,
        text: PooledText,
        *,
        remat: str,
        sizes: Array | None = None,
        attend: Attend | None = None,
    ) -> Array:
        height, width = (codec.factor * side for side in xt.shape[1:3])
        given = whole(height, width) if sizes is None else sizes
        time_ids = jnp.broadcast_to(jnp.asarray(given, jnp.float32), (xt.shape[0], 6))
        x = xt.astype(text.states.dtype)
        how: dict[str, Any] = {"pooled": text.pooled, "time_ids": time_ids, "attend": attend}
        return network(x, t, text.states, remat=remat, **how)

    encoders = {f"text_encoder{end}": unet.clip_encoder(folder, suffix=end) for end in ("", "_2")}
    if "text_projection/kernel" not in encoders["text_encoder_2"].network.abstract:
        raise ValueError(
            "text_encoder_2: SDXL needs a CLIP with a projection (CLIPTextModelWithProjection). "
            "Copy that folder of the base model again."
        )
    index = folder.json("model_index.json")
    return Stage(
        kind="base",
        folder=folder.root,
        variant=folder.variant,
        family=FAMILY,
        denoiser=dataclasses.replace(unet.denoiser(config, predict, latent=True), sized=True),
        codec=codec,
        conditioner=Conditioner(
            encoders,
            _two_clips,
            trainable=tuple(encoders),
            zeros_for_empty=bool(index.get("force_zeros_for_empty_prompt", True)),
        ),
        path=unet.path(folder),
        frame=unet.frame(config, factor=codec.factor),
    )


def _layout(stage: Stage, parts: Mapping[str, Tensors]) -> Tensors:
    del stage
    made = {"model.diffusion_model": original_keys.unet(parts["unet"])}
    made["first_stage_model"] = original_keys.vae(parts["vae"])
    made["conditioner.embedders.0"] = original_keys.clip(parts["text_encoder"])
    second = original_keys.open_clip(parts["text_encoder_2"], whole=True)
    made["conditioner.embedders.1.model"] = second
    return original_keys.joined(made)


FAMILY = Family(
    "StableDiffusionXLPipeline",
    "base",
    _build,
    unet.LORA_TARGETS,
    unet.SHARDING_RULES,
    unet.kohya(
        {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
        original=True,
    ),
    single_file=SingleFile(lambda stage: "stable-diffusion-xl-v1-base", _layout, "sgm"),
    size_keys=unet.square_size,
    skips=True,
)
