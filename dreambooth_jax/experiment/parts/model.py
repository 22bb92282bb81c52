"""The base model of a run: its stages, and their weights on the mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from dreambooth_jax import generate, tree
from dreambooth_jax.adapt import Adapter
from dreambooth_jax.config import Plan, Settings
from dreambooth_jax.pipeline import Stage


@dataclasses.dataclass(frozen=True)
class Model:
    """The stages of a base model by kind, their weights, and fingerprints of the untouched weights.

    `trained` has the trained leaves of each stage that is fine-tuned. UNets are on the mesh; a text
    encoder that is not trained stays on the host, since its work is done once.
    """

    stages: Mapping[str, Stage]
    weights: Mapping[str, tree.Flat]
    fingerprints: Mapping[str, str]
    mesh: Mesh
    trained: Mapping[str, tree.Flat] = dataclasses.field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The stages there are, in the order in which a picture passes them."""
        return tuple(self.stages)

    def with_trained(self, kind: str, adapter: Adapter, trained: tree.Flat) -> "Model":
        """The same model with one stage fine-tuned: its weights, and what was trained of them."""
        flat = adapter.combine(dict(self.weights[kind]), trained)
        return dataclasses.replace(
            self,
            weights={**self.weights, kind: flat},
            trained={**self.trained, kind: trained},
        )


def compute_dtype(settings: Settings) -> Any:
    """The dtype in which networks compute."""
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[settings.dtype]


def as_tuned(settings: Settings, stage: Stage) -> Stage:
    """A stage as the run's settings train it, and as it samples from then on.

    Raises:
      ValueError: the model cannot be trained so.
    """
    if settings.train.text_encoder and not stage.conditioner.trainable:
        raise ValueError(
            f"train.text_encoder = True: the text encoder of a {stage.family.name} is a language "
            "model, which is not trained. Write --config.train.text_encoder=False."
        )
    return stage.fine_tuned(
        learned_variance=settings.loss.learned_variance,
        zero_terminal_snr=settings.loss.zero_terminal_snr,
    )


def weights_name(steps: dict[str, int]) -> str:
    """A name for weights of these steps by stage."""
    return "+".join(f"{kind}-{step:06d}" for kind, step in steps.items()) or "untouched"


def settings_of(plan: Plan, stage: Stage) -> generate.Settings:
    """Returns the sampler settings of a stage."""
    c = plan.stages[stage.kind]
    return generate.Settings(
        name=c.sampler.name,
        num_steps=c.sampler.num_steps,
        guidance_scale=float(c.sampler.guidance_scale),
        threshold=c.sampler.threshold,
        noise_level=(c.upscaler.sample_aug_level or 0) if stage.kind == "upscaler" else 0,
        size=stage.asked,
        spacing=c.sampler.spacing,
        guidance_rescale=float(c.sampler.guidance_rescale),
        guidance_interval=c.sampler.guidance_interval,
        products=c.sampler.products,
    )
