"""LoRA as files that others open: the keys of PEFT, which diffusers reads, and those of kohya.

diffusers: `pipe.load_lora_weights(folder)`. A1111 and ComfyUI: `lora_kohya.safetensors`. Of DoRA,
diffusers reads PEFT's file, ComfyUI kohya's.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import contents, files, weights
from dreambooth_jax.adapt import lora
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.pipeline.family import Slot

PEFT, KOHYA = contents.LORA_FILES


def write(
    stage: Stage,
    trained: Mapping[str, Any],
    folder: Path,
    *,
    alpha: float,
    dtype: str,
    about: Mapping[str, Any],
) -> list[Path]:
    """Writes both files, each read back and compared; returns their paths.

    Args:
      trained: flat, the factors of `adapt.lora`.

    Raises:
      ValueError: a value does not fit `dtype`.
    """
    metadata = {name: str(value) for name, value in about.items()}
    made = []
    for name, tensors in (
        (PEFT, peft(trained, alpha=alpha, dtype=dtype)),
        (KOHYA, kohya(stage, trained, alpha=alpha, dtype=dtype)),
    ):
        file = folder / name
        with files.written(file) as part:
            weights.save(part, tensors, metadata={"dreambooth_jax": json.dumps(metadata)})
            weights.verify(part, tensors)
        made.append(file)
    return made


def _pairs(
    trained: Mapping[str, Any], path: str, *, dtype: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Down `[r,in(,h,w)]` and up `[out,r(,1,1)]` in the order of PyTorch, and DoRA's lengths."""
    down, up = (np.asarray(trained[f"{path}/{name}"]) for name in (lora.DOWN, lora.UP))
    down = weights.turned("/kernel", down, to_file=True)
    up = up.T if down.ndim == 2 else up.T[:, :, None, None]
    length = trained.get(f"{path}/{lora.LENGTH}")
    cast = [weights.cast(x, dtype, name=path) for x in (down, up)]
    if length is None:
        return cast[0], cast[1], None
    return cast[0], cast[1], weights.cast(np.asarray(length), dtype, name=path)


def peft(trained: Mapping[str, Any], *, alpha: float, dtype: str) -> dict[str, np.ndarray]:
    """Tensors under PEFT's keys; α / r is in the second factor, so that no reader can miss it."""
    tensors = {}
    for path in lora.adapted(dict(trained)):
        scaled = dict(trained)
        up = np.asarray(trained[f"{path}/{lora.UP}"])
        scaled[f"{path}/{lora.UP}"] = up * np.float32(alpha / len(up))
        down, up, length = _pairs(scaled, path, dtype=dtype)
        key = weights.key_of(path).removesuffix(".weight")
        tensors[f"{key}.lora_A.weight"] = down
        tensors[f"{key}.lora_B.weight"] = up
        if length is not None:
            # As diffusers' loader and PEFT's layers have them: text encoders' keys go to PEFT as
            # they are, and a convolution's lengths have its output's axes.
            end = ".weight" if path.startswith("text_") else ""
            shaped = length.reshape(1, -1, 1, 1) if down.ndim == 4 else length
            tensors[f"{key}.lora_magnitude_vector{end}"] = shaped
    return tensors


def kohya(
    stage: Stage, trained: Mapping[str, Any], *, alpha: float, dtype: str
) -> dict[str, np.ndarray]:
    """Tensors under kohya's keys: those of the original code or ours, joined by `_`.

    Where the file has one kernel for several of ours, their first factors are stacked and the
    second ones become blocks of one: the change is the same, its rank and α their sums.

    Raises:
      ValueError: DoRA on some of the kernels that the file fuses into one.
    """
    tensors = {}
    for name, members in _by_name(stage, trained, dtype=dtype).items():
        down, up, length = _in_one(members)
        total = np.array(alpha * len(members), np.float32)
        tensors[f"{name}.lora_down.weight"] = down
        tensors[f"{name}.lora_up.weight"] = up
        tensors[f"{name}.alpha"] = weights.cast(total, dtype, name=name)
        if length is not None:
            tensors[f"{name}.dora_scale"] = length.reshape((-1,) + (1,) * (down.ndim - 1))
    return tensors


def check(stage: Stage, trained: Mapping[str, Any]) -> None:
    """Checks that the files have a place for what is trained, from paths alone.

    Raises:
      ValueError: DoRA on some of the kernels that kohya's file fuses into one.
    """
    place = _places(stage)
    parts: dict[str, int] = {}
    for path in lora.adapted(dict(trained)):
        found = place(path)
        parts[found.name] = parts.get(found.name, found.parts) - found.span
    if any(left for left in parts.values()) and any(p.endswith(lora.LENGTH) for p in trained):
        some = next(name for name, left in parts.items() if left)
        raise ValueError(
            f"adapt.dora = True: {some} of kohya's files is one kernel for several of ours, and "
            "only some of them are adapted, so that the others' lengths are not known. Write "
            '--config.adapt.dora=False, or --config.adapt.targets="".'
        )


def _places(stage: Stage) -> Callable[[str], Slot]:
    named = stage.family.kohya(stage)

    def place(path: str) -> Slot:
        found = named(path)
        return Slot(found) if isinstance(found, str) else found

    return place


Member = tuple[Slot, np.ndarray, np.ndarray, np.ndarray | None]


def _by_name(stage: Stage, trained: Mapping[str, Any], *, dtype: str) -> dict[str, list[Member]]:
    """Place, factors and lengths of every kernel, by the file's name for what holds it."""
    check(stage, trained)
    place, found = _places(stage), dict[str, list[Member]]()
    for path in lora.adapted(dict(trained)):
        members = found.setdefault(place(path).name, [])
        members.append((place(path), *_pairs(trained, path, dtype=dtype)))
    return {name: sorted(members, key=_part) for name, members in found.items()}


def _part(member: Member) -> int:
    return member[0].part


def _in_one(members: Sequence[Member]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Factors `[Σr,in]` and `[out,Σr]` of a file's kernel; parts without factors do not change."""
    first, down, up, length = members[0]
    if first.parts == 1:
        if first.swapped:
            up = np.roll(up, len(up) // 2, 0)
            length = None if length is None else np.roll(length, len(length) // 2, 0)
        return down, up, length
    size = len(up) // first.span
    ranks = [len(part) for _, part, _, _ in members]
    whole = np.zeros((first.parts * size, sum(ranks)), up.dtype)
    for (place, _, part, _), end, rank in zip(members, np.cumsum(ranks), ranks, strict=True):
        whole[place.part * size : (place.part + place.span) * size, end - rank : end] = part
    down = np.concatenate([part for _, part, _, _ in members])
    lengths = [one for *_, one in members if one is not None]
    return down, whole, np.concatenate(lengths) if lengths else None
