"""FLUX.2 [klein]: a flow transformer of patches that reads Qwen3 (Black Forest Labs 2025)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.diffusion.path import Flow, TokenShift
from dreambooth_jax.families import flux2_keys, qwen3_text
from dreambooth_jax.models import flux2, flux2_vae
from dreambooth_jax.pipeline import Codec, Conditioner, Denoiser, Family, ModelFolder, Stage
from dreambooth_jax.text import chat

Array = jax.Array

READ = (9, 18, 27)  # numbers of Qwen3's layers after which its states are read, side by side
_PATCH = 2
_DISTILLED = (
    "model_index.json: is_distilled = true; fine-tuning a model that is distilled to four steps "
    "destroys it. Train its base model, --config.base_model="
    "black-forest-labs/FLUX.2-klein-base-4B (or -base-9B), and load the LoRA into either."
)
LORA_TARGETS = (
    r"transformer/(single_)?transformer_blocks/.*/"
    r"(to_[qkv]|add_[qkv]_proj|to_out(/0)?|to_add_out|to_qkv_mlp_proj|linear_in|linear_out)/kernel"
)
_BLOCKS = "transformer/transformer_blocks"
_FIRST = rf"{_BLOCKS}/.*/(to_[qkv]|add_[qkv]_proj|linear_in)|{qwen3_text.TEXT_PAIRS[0]}"
_SECOND = rf"{_BLOCKS}/.*/(to_out/0|to_add_out|linear_out)|{qwen3_text.TEXT_PAIRS[1]}"
SHARDING_RULES = (
    (rf"({_FIRST})/kernel(/lora_up|/dora_length)?", "columns"),
    (rf"({_SECOND})/kernel(/lora_down)?", "rows"),
    (".*", "fsdp"),
)


@dataclasses.dataclass(frozen=True)
class KleinShift(TokenShift):
    """The shift of FLUX.2's pipelines when they sample; in training it is that of the file.

    A straight line in the number of tokens for 200 steps and above, another one for 10 steps, and
    between them a straight line in the number of steps.
    """

    def __call__(self, tokens: int, num_steps: int | None) -> float:
        """The shift s for a sample of `tokens` tokens."""
        if num_steps is None:
            return super().__call__(tokens, num_steps)
        at_200 = 0.00016927 * tokens + 0.45666666
        if tokens > 4300:
            return math.exp(at_200)
        at_10 = 8.73809524e-5 * tokens + 1.89833333
        return math.exp(at_200 + (at_200 - at_10) / 190 * (num_steps - 200))


def _states(encoders: Mapping[str, Any], tokens: Mapping[str, Array], dtype: Any) -> Array:
    """Returns three states of every token side by side, padding included: `[P,512,3D]`."""
    network = encoders["text_encoder"]
    return jnp.concatenate(network(tokens["ids"], tokens["mask"], after=READ, dtype=dtype), -1)


def _predict(network: Any, xt: Array, t: Array, states: Array, *, remat: str) -> Array:
    return network(xt.astype(states.dtype), t, states, remat=remat)


def _path(folder: ModelFolder) -> Flow:
    """Returns the flow of the folder's scheduler, visited as the pipeline does.

    Raises:
      ValueError: it is a table of betas.
    """
    found = schedules.from_config(folder.json("scheduler", "scheduler_config.json"))
    if not isinstance(found, Flow):
        raise ValueError(
            "scheduler_config.json describes a table of betas; FLUX.2 is a flow. Copy the folder "
            f"scheduler of the base model, with _class_name {schedules.FLOW!r}."
        )
    shift = found.token_shift
    if isinstance(shift, TokenShift):
        shift = KleinShift(**dataclasses.asdict(shift))
    return dataclasses.replace(found, timestep_spacing="trailing", patch=1, token_shift=shift)


def _build(folder: ModelFolder) -> Stage:
    distilled = folder.json("model_index.json").get("is_distilled", False)
    config = folder.json(qwen3_text.COMPONENT, "config.json")
    vae_config = folder.json("vae", "config.json")
    factor = _PATCH * 2 ** (len(vae_config["block_out_channels"]) - 1)
    encoder = qwen3_text.encoder(folder, chat.QWEN3_PLAIN, layers_read=max(READ))
    return Stage(
        kind="base",
        folder=folder.root,
        variant=folder.variant,
        family=FAMILY,
        denoiser=Denoiser(
            qwen3_text.COMPONENT,
            flux2.build(config),
            _predict,
            flux2.Flux2Config.from_dict(config).in_channels,
        ),
        codec=Codec("vae", flux2_vae.build(vae_config), factor=factor),
        conditioner=Conditioner({"text_encoder": encoder}, _states, trainable=()),
        distilled=_DISTILLED if distilled else "",
        path=_path(folder),
        frame=qwen3_text.frame(factor=factor),
    )


FAMILY = Family(
    "Flux2KleinPipeline",
    "base",
    _build,
    LORA_TARGETS,
    SHARDING_RULES,
    lambda stage: flux2_keys.kohya,
)
