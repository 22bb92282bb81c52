"""Stable Diffusion 1 and 2: a UNet of latents that reads a CLIP (Rombach et al. 2022)."""

from collections.abc import Mapping
from typing import Any

import jax

from dreambooth_jax.families import original_keys, unet
from dreambooth_jax.models.words import Attend
from dreambooth_jax.pipeline import Conditioner, Family, ModelFolder, SingleFile, Stage
from dreambooth_jax.pipeline.family import Tensors

Array = jax.Array


def _states(encoders: Mapping[str, Any], tokens: Mapping[str, Array], dtype: Any) -> Array:
    """Returns the last states `[P,L,D]` of a CLIP, padding included."""
    return encoders["text_encoder"](tokens["ids"], dtype=dtype).last


def _predict(
    network: Any, xt: Array, t: Array, states: Array, *, remat: str, attend: Attend | None = None
) -> Array:
    return network(xt.astype(states.dtype), t, states, remat=remat, attend=attend)


def _build(folder: ModelFolder) -> Stage:
    config = folder.json("unet", "config.json")
    codec = unet.latent_codec(folder, unet_channels=config.get("in_channels", 4))
    return Stage(
        kind="base",
        folder=folder.root,
        variant=folder.variant,
        family=FAMILY,
        denoiser=unet.denoiser(config, _predict, latent=True),
        codec=codec,
        conditioner=Conditioner(
            {"text_encoder": unet.clip_encoder(folder)}, _states, trainable=("text_encoder",)
        ),
        path=unet.path(folder),
        frame=unet.frame(config, factor=codec.factor),
    )


def _is_first(stage: Stage) -> bool:
    """Returns True for SD 1, whose attentions begin with convolutions, which SD 2 replaced."""
    return len(stage.denoiser.network.abstract["mid_block/attentions/0/proj_in/kernel"].shape) == 4


def _architecture(stage: Stage) -> str:
    if _is_first(stage):
        return "stable-diffusion-v1"
    v = stage.path.prediction_type == "v_prediction"
    return "stable-diffusion-v2-768-v" if v else "stable-diffusion-v2-512"


def _layout(stage: Stage, parts: Mapping[str, Tensors]) -> Tensors:
    made = {"model.diffusion_model": original_keys.unet(parts["unet"])}
    made["first_stage_model"] = original_keys.vae(parts["vae"])
    if _is_first(stage):
        made["cond_stage_model"] = original_keys.clip(parts["text_encoder"])
    else:
        made["cond_stage_model.model"] = original_keys.open_clip(parts["text_encoder"], whole=False)
    return original_keys.joined(made)


FAMILY = Family(
    "StableDiffusionPipeline",
    "base",
    _build,
    unet.LORA_TARGETS,
    unet.SHARDING_RULES,
    unet.kohya({"unet": "lora_unet", "text_encoder": "lora_te"}),
    single_file=SingleFile(_architecture, _layout),
    size_keys=unet.any_size,
    skips=True,
)
