"""DeepFloyd IF and the embedded cascade: UNets of pixels that read a T5 (Saharia et al. 2022)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.families import unet
from dreambooth_jax.models.words import Attend
from dreambooth_jax.pipeline import Codec, Conditioner, Family, ModelFolder, Stage

Array = jax.Array


def _states(encoders: Mapping[str, Any], tokens: Mapping[str, Array], dtype: Any) -> Array:
    """Returns the last states `[P,L,D]` of a T5 that does not attend to padding."""
    return encoders["text_encoder"](tokens["ids"], tokens["mask"], dtype=dtype)


def _predict(
    network: Any,
    xt: Array,
    t: Array,
    states: Array,
    *,
    remat: str,
    condition: Array | None = None,
    noise_level: Array | None = None,
    attend: Attend | None = None,
) -> Array:
    """Predicts from `xt` and, in an upscaler, the low-res picture and its noise level."""
    x = xt if condition is None else jnp.concatenate([xt, condition], -1)
    how: dict[str, Any] = {"noise_level": noise_level, "remat": remat, "attend": attend}
    return network(x.astype(states.dtype), t, states, **how)


def _build(folder: ModelFolder) -> Stage:
    return _stage(folder, BASE)


def _build_upscaler(folder: ModelFolder) -> Stage:
    return _stage(folder, UPSCALER)


def _stage(folder: ModelFolder, family: Family) -> Stage:
    low_res = family is UPSCALER
    config = folder.json("unet", "config.json")
    noising = unet.path(folder, "image_noising_scheduler") if low_res else None
    return Stage(
        kind=family.kind,
        folder=folder.root,
        variant=folder.variant,
        family=family,
        denoiser=unet.denoiser(config, _predict, latent=False, low_res=low_res),
        codec=Codec(),
        conditioner=Conditioner(
            {"text_encoder": unet.t5_encoder(folder)}, _states, trainable=("text_encoder",)
        ),
        path=unet.path(folder),
        noising=noising,
        frame=unet.frame(config),
    )


_KOHYA = unet.kohya({"unet": "lora_unet", "text_encoder": "lora_te"})
BASE = Family(
    "IFPipeline",
    "base",
    _build,
    unet.LORA_TARGETS,
    unet.SHARDING_RULES,
    _KOHYA,
    cleans=True,
    size_keys=unet.square_size,
)
UPSCALER = Family(
    "IFSuperResolutionPipeline",
    "upscaler",
    _build_upscaler,
    unet.LORA_TARGETS,
    unet.SHARDING_RULES,
    _KOHYA,
    cleans=True,
    size_keys=unet.square_size,
)
