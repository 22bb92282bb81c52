"""The record of a family of base models: all that is particular to one pipeline class."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dreambooth_jax.adapt import frozen

if TYPE_CHECKING:
    from dreambooth_jax.pipeline.folder import ModelFolder
    from dreambooth_jax.pipeline.stage import Stage

Tensors = dict[str, np.ndarray]


class Slot(NamedTuple):
    """The place of a kernel in a file whose kernels may hold several of ours, output by output.

    Args:
      name: the file's kernel.
      part, parts: it is this one of so many parts of equal size.
      swapped: the two halves of its outputs change places.
      span: parts that it takes, from that one on.
    """

    name: str
    part: int = 0
    parts: int = 1
    swapped: bool = False
    span: int = 1


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """The layout of a whole model in one safetensors file, as its first authors' code has it.

    Args:
      architecture: name that modelspec 1.0 has for the model.
      layout: `(stage, tensors by component under diffusers' keys) -> all tensors under its keys`.
      implementation: modelspec's name of the code that reads the file.
    """

    architecture: Callable[["Stage"], str]
    layout: Callable[["Stage", Mapping[str, Tensors]], Tensors]
    implementation: str = "diffusers"


@dataclasses.dataclass(frozen=True)
class Family:
    """The base models of one pipeline class of diffusers.

    Args:
      name: the class, `_class_name` in `model_index.json`.
      kind: the stage that such a model is, "base" or "upscaler".
      build: opens a model folder.
      lora_targets: regex of the kernels that LoRA adapts by default.
      sharding_rules: path regex and how its leaf is split; the first match wins.
      kohya: `(stage) -> (path of a kernel -> its name, or `Slot`, in kohya's LoRA files)`.
      guidance: "classifier_free" (a second prediction without the prompt), "embedded" (the scale is
        an input of the network) or "none".
      single_file: None where the family has no such layout.
      skips: last layers of its CLIPs can be left out (`clip_skip`).
      cleans: its pipelines rewrite prompts before they are read, which can delete an identifier.
      kept: regex of the paths of kernels that `adapt.frozen_dtype="int8"` leaves as they are.
      size_keys: entries of the denoiser's `config.json` by which diffusers draws pictures of the
        stage's size where nothing else is asked for.
    """

    name: str
    kind: str
    build: Callable[["ModelFolder"], "Stage"]
    lora_targets: str
    sharding_rules: tuple[tuple[str, str], ...]
    kohya: Callable[["Stage"], Callable[[str], str | Slot]]
    guidance: str = "classifier_free"
    single_file: SingleFile | None = None
    skips: bool = False
    cleans: bool = False
    kept: str = frozen.KEPT
    size_keys: Callable[["Stage"], Mapping[str, Any]] = lambda stage: {}
