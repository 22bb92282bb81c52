"""All changes of a LoRA file, PEFT's keys or kohya's, to be added to a model with a strength."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dreambooth_jax import untrusted, weights
from dreambooth_jax.adapt.lora import Changes
from dreambooth_jax.export import lora_start
from dreambooth_jax.pipeline import Stage, lora_reader

_SHOWN = 8  # problems of a file that are listed


def read(file: Path, stage: Stage) -> Changes:
    """The changes of a file by the paths of the stage's kernels: down `[…,in,r]`, up `[r,out]`.

    Float32; up holds the scale α/r.

    Raises:
      FileNotFoundError, FileError: there is none, it is damaged, of DoRA, of another kind of
        adapter, or of another model: the keys or shapes that do not fit.
    """
    tensors, about = lora_reader.tensors_of(file)
    named = stage.family.kohya(stage)
    changes: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    used: set[str] = set()
    wrong: list[str] = []
    for path in _kernels(stage):
        with untrusted.values(file):
            found = lora_start.factors(path, named(path), tensors, about)
        if found is None:
            continue
        used.update(found.keys)
        if found.length is not None:
            raise untrusted.FileError(
                f"{file} is of DoRA; expected LoRA, which can be added to others. Draw with its "
                "run, or fuse it into a base model."
            )
        down = weights.turned("/kernel", found.down, to_file=False)
        up = found.up.reshape(len(found.up), -1).T * np.float32(found.scale)
        shape = tuple(stage.abstract[path].shape)
        if (*down.shape[:-1], up.shape[-1]) != shape or down.shape[-1] != len(up):
            wrong.append(
                f"{found.keys[0]} {found.down.shape} and {found.keys[1]} {found.up.shape}: the "
                f"kernel is {shape}"
            )
        changes[path] = np.ascontiguousarray(down), np.ascontiguousarray(up)
    wrong += [f"{key}: no layer of the {stage.kind} model" for key in sorted(set(tensors) - used)]
    if wrong or not changes:
        listed = "\n  ".join(wrong[:_SHOWN] or ["it has no factors of LoRA"])
        more = f"\n  and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise untrusted.FileError(
            f"{file} does not fit the model in {stage.folder}; expected a LoRA file of it, with "
            f"keys of PEFT or kohya:\n  {listed}{more}"
        )
    return changes


def _kernels(stage: Stage) -> Iterator[str]:
    for path, leaf in stage.abstract.items():
        chosen = stage.is_denoiser(path) or stage.is_text(path)
        if chosen and path.endswith("/kernel") and len(leaf.shape) in (2, 4):
            yield path
