"""A whole model as one safetensors file in the layout of its first authors' code.

A1111 and ComfyUI open it. The family knows the layout (`pipeline.SingleFile`).
"""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import files, weights
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.pipeline.family import Tensors

_CLIP_ROWS = 49408  # of CLIP's token table: readers of single files have it fixed


def layout(stage: Stage) -> str | None:
    """The name that modelspec has for the model, None where it has no single file."""
    single_file = stage.family.single_file
    return None if single_file is None else single_file.architecture(stage)


def tensors_of(stage: Stage, params: Mapping[str, Any], *, dtype: str) -> Tensors:
    """All weights of the stage in `dtype`, under the keys of the original layout.

    Raises:
      ValueError: the model has no such layout, or a weight does not fit the dtype.
    """
    if stage.family.single_file is None:
        raise ValueError(
            f"{stage.folder}: {stage.family.name} has no single-file layout. Write "
            "--config.export.single_file=False."
        )
    by_part: dict[str, Tensors] = {}
    for path in stage.abstract:
        part, _, rest = path.partition("/")
        leaf = weights.turned(rest, np.asarray(params[path]), to_file=True)
        if rest.endswith("token_embedding/embedding"):
            leaf = leaf[: published_rows(stage, path)]
        by_part.setdefault(part, {})[weights.key_of(rest)] = weights.cast(leaf, dtype, name=path)
    return stage.family.single_file.layout(stage, by_part)


def published_rows(stage: Stage, path: str) -> int:
    """Rows of a token table that readers of single files have room for: those of the vocabulary.

    Rows of new tokens are in the embeddings' files (`embeddings_file`), which go with this one.
    """
    new = stage.new_rows.get(path, ())
    return min(stage.abstract[path].shape[0], _CLIP_ROWS, *new)


def markers(stage: Stage) -> Tensors:
    """Empty tensors by which A1111, Forge and ComfyUI know what an XL network says.

    `v_pred`: it predicts v; `ztsnr`: its schedule ends in pure noise. Without them the file is
    sampled as if it said epsilon, and gives noise. SD 1 and 2 have no such keys there.
    """
    if sum(part.startswith("text_") for part in stage.networks) != 2:
        return {}
    found = {}
    if stage.path.prediction_type == "v_prediction":
        found["v_pred"] = np.zeros((0,), np.float32)
    table = getattr(stage.path, "alphas_cumprod", None)  # a flow has none
    if table is not None and table[-1] == 0:
        found["ztsnr"] = np.zeros((0,), np.float32)
    return found


def write(
    stage: Stage, params: Mapping[str, Any], file: Path, *, dtype: str, about: Mapping[str, Any]
) -> Path:
    """Writes the file whole or not at all, with what modelspec 1.0 asks for in its metadata.

    Args:
      about: the lines of the model card; "instance prompt" becomes the trigger phrase.

    Raises:
      ValueError: as `tensors_of`, or the file read back is not what was written.
    """
    tensors = {**tensors_of(stage, params, dtype=dtype), **markers(stage)}
    single_file = stage.family.single_file
    assert single_file is not None  # or `tensors_of` has raised
    prompt = str(about.get("instance prompt", "DreamBooth"))
    metadata = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": single_file.architecture(stage),
        "modelspec.implementation": single_file.implementation,
        "modelspec.title": prompt,
        "modelspec.trigger_phrase": prompt,
        "modelspec.date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "modelspec.resolution": f"{stage.size[1]}x{stage.size[0]}",
        "modelspec.prediction_type": stage.path.prediction_type.removesuffix("_prediction"),
        "modelspec.description": "; ".join(f"{name}: {value}" for name, value in about.items()),
    }
    with files.written(file) as part:
        weights.save(part, tensors, metadata=metadata)
        weights.verify(part, tensors)
    return file
