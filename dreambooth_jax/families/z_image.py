"""Z-Image: a flow transformer that reads captions as a language model does (Z-Image team 2025)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.diffusion.path import Flow
from dreambooth_jax.families import qwen3_text
from dreambooth_jax.models import vae, z_image
from dreambooth_jax.pipeline import Codec, Conditioner, Denoiser, Family, ModelFolder, Stage
from dreambooth_jax.text import chat

Array = jax.Array

_PATCH = 2
_TURBO_SHIFT = 3.0  # of the distilled model's scheduler; the base model's is 6
_DISTILLED = (
    f"scheduler_config.json has shift {_TURBO_SHIFT}, as Z-Image Turbo has: that model is "
    "distilled, and fine-tuning undoes it. Train --config.base_model=Tongyi-MAI/Z-Image."
)
# The shift of the levels that are trained; of the model's own training none is known, and peers
# take 1 to 3.
_TRAINED_SHIFT = 2.0
LORA_TARGETS = r"transformer/layers/.*/(to_[qkv]|to_out/0|w[123])/kernel"
_FIRST = rf"transformer/.*/(to_[qkv]|w[13])|{qwen3_text.TEXT_PAIRS[0]}"
_SECOND = rf"transformer/.*/(to_out/0|w2)|{qwen3_text.TEXT_PAIRS[1]}"
SHARDING_RULES = (
    (rf"({_FIRST})/kernel(/lora_up|/dora_length)?", "columns"),
    (rf"({_SECOND})/kernel(/lora_down)?", "rows"),
    (".*", "fsdp"),
)


@dataclasses.dataclass(frozen=True)
class ZImageShift:
    """The shift of the levels: the file's in sampling, another one in training."""

    sampled: float

    def __call__(self, tokens: int, num_steps: int | None) -> float:
        """The shift s for a sampler with `num_steps` steps, or for training (None)."""
        del tokens
        return _TRAINED_SHIFT if num_steps is None else self.sampled


class Caption(NamedTuple):
    """States `[P,L,D]` of prompts, and 1 where they are tokens of a prompt `[P,L]`."""

    states: Array
    mask: Array


def _states(encoders: Mapping[str, Any], tokens: Mapping[str, Array], dtype: Any) -> Caption:
    """Returns the states before the last layer of the language model."""
    network, mask = encoders["text_encoder"], tokens["mask"]
    (states,) = network(tokens["ids"], mask, after=(len(network.model.layers),), dtype=dtype)
    return Caption(states, mask.astype(dtype))


def _predict(network: Any, xt: Array, t: Array, caption: Caption, *, remat: str) -> Array:
    """Returns the velocity noise - x0; the network's time rises from noise to data."""
    states = caption.states
    output = network(xt.astype(states.dtype), 1.0 - t / 1000.0, states, caption.mask, remat=remat)
    return -output


def _path(folder: ModelFolder) -> Flow:
    """Returns the flow of the folder's scheduler, visited as the pipeline does.

    Raises:
      ValueError: it is a table of betas.
    """
    found = schedules.from_config(folder.json("scheduler", "scheduler_config.json"))
    if not isinstance(found, Flow):
        raise ValueError(
            "scheduler_config.json describes a table of betas; Z-Image is a flow. Copy the folder "
            f"scheduler of the base model, with _class_name {schedules.FLOW!r}."
        )
    shift = found.token_shift or ZImageShift(found.shift)
    return dataclasses.replace(found, timestep_spacing="trailing", patch=_PATCH, token_shift=shift)


def codec(folder: ModelFolder) -> Codec:
    """Returns the autoencoder of FLUX.1, with shift and scale of its latents."""
    config = folder.json("vae", "config.json")
    return Codec(
        "vae",
        vae.build(config),
        factor=2 ** (len(config["block_out_channels"]) - 1),
        scaling=float(config["scaling_factor"]),
        shift=float(config.get("shift_factor") or 0.0),
    )


def _build(folder: ModelFolder) -> Stage:
    config = folder.json(qwen3_text.COMPONENT, "config.json")
    network, coder = z_image.build(config), codec(folder)
    encoder = qwen3_text.encoder(folder, chat.QWEN3_THINKING, layers_read=None)
    path = _path(folder)
    channels = z_image.ZImageConfig.from_dict(config).in_channels
    return Stage(
        kind="base",
        folder=folder.root,
        variant=folder.variant,
        family=FAMILY,
        denoiser=Denoiser(qwen3_text.COMPONENT, network, _predict, channels),
        codec=coder,
        conditioner=Conditioner({"text_encoder": encoder}, _states, trainable=()),
        distilled=_DISTILLED if path.token_shift == ZImageShift(_TURBO_SHIFT) else "",
        path=path,
        frame=qwen3_text.frame(factor=_PATCH * coder.factor),
    )


FAMILY = Family(
    "ZImagePipeline",
    "base",
    _build,
    LORA_TARGETS,
    SHARDING_RULES,
    lambda stage: qwen3_text.joined,
)
