"""The base model of a run: its stages, and their weights on the mesh."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dreambooth_jax import tree
from dreambooth_jax.adapt import Adapter
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


def compute_dtype(config: ConfigDict) -> Any:
    """The dtype in which networks compute."""
    return {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[config.dtype]


def as_tuned(config: ConfigDict, stage: Stage) -> Stage:
    """A stage as the run's settings train it, and as it samples from then on.

    Raises:
      ValueError: the model cannot be trained so.
    """
    return stage.fine_tuned(
        learned_variance=config.loss.learned_variance,
        zero_terminal_snr=config.loss.zero_terminal_snr,
    )
