"""What a run hands over: an ordinary diffusers folder per stage, checked by reading it back."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import __version__, pipeline, tree, weights
from dreambooth_jax.pipeline import Stage


def _copy_rest(stage: Stage, folder: Path) -> None:
    """Everything of the base model's folder that is not a weight file of a component we write."""
    for source in sorted(stage.folder.rglob("*")):
        relative = source.relative_to(stage.folder)
        ours = relative.parts[0] in pipeline.COMPONENTS and source.suffix in (".safetensors", ".bin", ".ckpt", ".msgpack")
        index = source.name.endswith((".safetensors.index.json", ".bin.index.json"))
        if source.is_dir() or ours or index or "__pycache__" in relative.parts or relative.parts[0].startswith("."):
            continue
        target = folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _fix_variance(folder: Path) -> bool:
    """Switches a learned variance to a fixed one: the loss leaves that head alone, so it no longer fits."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    if config.get("variance_type") not in ("learned", "learned_range"):
        return False
    file.write_text(json.dumps(config | {"variance_type": "fixed_small"}, indent=2) + "\n")
    return True


def _card(stage: Stage, *, about: Mapping[str, Any]) -> str:
    lines = "\n".join(f"- {name}: {value}" for name, value in about.items())
    library = {"base": "IFPipeline", "upscaler": "IFSuperResolutionPipeline"}[stage.kind]
    return (
        f"---\nlibrary_name: diffusers\ntags: [text-to-image, dreambooth, {stage.kind}]\n---\n\n"
        f"# DreamBooth: {about.get('instance prompt', stage.kind)}\n\n"
        f"Fine-tuned by dreambooth_jax {__version__} (Ruiz et al. 2022, arXiv:2208.12242). "
        f"Open it with `diffusers.{library}.from_pretrained`.\n\n{lines}\n"
    )


def diffusers_folder(
    stage: Stage, params: Mapping[str, Any], folder: str | Path, *, dtype: str, about: Mapping[str, Any]
) -> Path:
    """Writes `folder` in the layout of the base model it came from, with these weights in `dtype`.

    Args:
      params: flat weights with all leaves of the stage.
      about: lines of the model card, name → value (base model, prompts, steps, …).

    Raises:
      ValueError: a weight does not fit the dtype, or the folder read back is not what was written.
    """
    folder = Path(folder)
    tree.check_keys(stage.abstract, params, what="weights to export")
    part = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    _copy_rest(stage, part)
    _fix_variance(part)
    for component, stem in pipeline.COMPONENTS.items():
        weights.write(part / component, tree.prefixed(params, component), dtype=dtype, stem=stem)
    (part / "README.md").write_text(_card(stage, about=about))
    _verify(part, stage, params, dtype=dtype)
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)
    return folder


def _verify(folder: Path, stage: Stage, params: Mapping[str, Any], *, dtype: str) -> None:
    """Reads the folder as a stranger would and compares every number with what was to be written."""
    again = pipeline.open_stage(str(folder), kind=stage.kind)
    found = pipeline.read_weights(again)
    for path, value in params.items():
        expected = weights.rounded(np.asarray(value), dtype)
        if not np.array_equal(expected, found[path]):
            raise ValueError(f"{folder}: {path} read back differs from what was written: is the disk full or failing?")
