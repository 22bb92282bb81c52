"""A model folder in the diffusers layout: its JSON files, tokenizers and weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import tree, untrusted, weights
from dreambooth_jax.pipeline.stage import Stage
from dreambooth_jax.text import tokenizer as tokenizers
from dreambooth_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model folder as a family's `build` reads it.

    Args:
      variant: of its weight files: "fp16", or None for the plain ones.
      shapes_only: only shapes are wanted, tokenizers may be missing.
      clip_skip: last layers of CLIPs that are left out of what prompts become.
    """

    root: Path
    variant: str | None = None
    shapes_only: bool = False
    clip_skip: int = 0

    def json(self, *names: str) -> dict[str, Any]:
        """Returns the contents of a JSON file.

        Raises:
          FileNotFoundError, FileError: it is missing, or not a JSON object of sensible numbers.
        """
        file = self.root.joinpath(*names)
        whole = ": this is not a whole model folder in the diffusers layout"
        return untrusted.bounded(untrusted.json_object(file, missing=whole), file)

    def has(self, component: str) -> bool:
        """Returns True where the folder has this component."""
        return (self.root / component).is_dir()

    def tokenizer(self, component: str, **how: Any) -> Tokenizer:
        """Returns the tokenizer of a component; `how` as `text.tokenizer.load` takes it."""
        if self.shapes_only and not self.has(component):
            return Tokenizer(None, **how)
        return tokenizers.load(self.root / component, **how)


def read_leaf(stage: Stage, path: str) -> np.ndarray:
    """Returns one float32 parameter of a stage; only its own component is read."""
    part, _, rest = path.partition("/")
    keep = weights.read(
        stage.folder / part,
        stage.networks[part].abstract,
        variant=stage.variant,
        put=lambda name, array: array if name == rest else None,
        ignore=stage.unread(part),
    )
    return keep[rest]


def read_weights(
    stage: Stage,
    *,
    put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
    own_dtype: bool = False,
) -> tree.Flat:
    """Returns all float32 parameters; `put` places each leaf as soon as it is read."""

    def under(part: str) -> Callable[[str, np.ndarray], Any]:
        return lambda path, array: put(f"{part}/{path}", array)

    flat: tree.Flat = {}
    for part, network in stage.networks.items():
        leaves = weights.read(
            stage.folder / part,
            network.abstract,
            variant=stage.variant,
            put=under(part),
            own_dtype=own_dtype,
            ignore=stage.unread(part),
        )
        flat |= tree.with_prefix(leaves, part)
    return flat
