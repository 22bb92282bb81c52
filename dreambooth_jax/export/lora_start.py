"""LoRA files, PEFT's keys and kohya's, read as the factors from which training begins."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dreambooth_jax import files, untrusted, weights
from dreambooth_jax.adapt import lora
from dreambooth_jax.export import lora_file
from dreambooth_jax.pipeline import Stage, lora_reader
from dreambooth_jax.pipeline.family import Slot, Tensors

# Ends of the keys of first factor, second factor, DoRA's lengths, by the program that writes them.
_ENDS = (
    (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"),
    (".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector.weight"),
    (".lora.down.weight", ".lora.up.weight", ".lora_magnitude_vector"),
    (".lora_down.weight", ".lora_up.weight", ".dora_scale"),
)


class Factors(NamedTuple):
    """One kernel's change in the order of PyTorch, its scale, and the keys it was read from."""

    down: np.ndarray
    up: np.ndarray
    length: np.ndarray | None
    scale: float
    keys: tuple[str, ...]


def place_of(given: str) -> Path:
    """The path of a LoRA file: itself, or PEFT's file in a folder.

    Raises:
      FileNotFoundError: there is none.
    """
    path = files.local(given)
    path = path / lora_file.PEFT if path.is_dir() else path
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        raise FileNotFoundError(
            f"adapt.lora_file = {given!r}: expected a LoRA in a safetensors file, or a folder with "
            f"{lora_file.PEFT}. Write its path, or leave it out."
        )
    return path


def begun(
    stage: Stage, given: str, trainable: Mapping[str, Any], *, alpha: float
) -> dict[str, Any]:
    """Returns the trainable leaves with the factors of a file; the change is that of the file.

    Kernels that the file does not change begin as they would without it, and so do the factors by
    which the rank is larger than the file's.

    Args:
      given: path of the file, or of its folder.
      trainable: flat, the factors of `adapt.lora` and other leaves.
      alpha: by which these factors are scaled, over their rank.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: it is no LoRA of these kernels, or of a larger rank; says which.
    """
    file = place_of(given)
    tensors, about = lora_reader.tensors_of(file)
    made, used = dict(trainable), set[str]()
    named = stage.family.kohya(stage)
    for path in lora.adapted(dict(trainable)):
        with untrusted.values(file):
            found = factors(path, named(path), tensors, about)
        if found is not None:
            made |= _fitted(path, found, trainable, alpha=alpha, file=file)
            used.update(found.keys)
    left = sorted(tensors.keys() - used)
    if left or not used:
        raise untrusted.FileError(
            f"{file}: {len(left)} of its tensors belong to no kernel that is trained here, such as "
            f"{', '.join(left[:3])}. Choose their kernels: --config.adapt.targets, "
            "--config.train.text_encoder=True for those of text encoders, --config.adapt.dora for "
            "lengths; or take a file of this base model."
        )
    return made


def _names(path: str, kohya: str | Slot) -> Iterator[str]:
    """The names that files have for a kernel, without their ends."""
    key = weights.key_of(path).removesuffix(".weight")
    yield key
    yield key.replace(".text_model.", ".")
    yield kohya if isinstance(kohya, str) else kohya.name


def factors(
    path: str, kohya: str | Slot, tensors: Tensors, about: Mapping[str, Any]
) -> Factors | None:
    """The change of a kernel in a file that was `read`, None where it has none.

    kohya: the kernel's name or place in kohya's files.

    Raises:
      ValueError: names the keys of factors that are none, or of an α that is no number above 0.
    """
    for name in _names(path, kohya):
        for first, second, third in _ENDS:
            keys = [f"{name}{end}" for end in (first, second)]
            if not all(key in tensors for key in keys):
                continue
            down, up = (tensors[key] for key in keys)
            more = [key for key in (f"{name}{third}", f"{name}.alpha") if key in tensors]
            length = tensors.get(f"{name}{third}")
            if length is None and any(f"{name}{ends[2]}" in tensors for ends in _ENDS):
                continue
            rank = lora_reader.rank_of(" and ".join(keys), down, up)
            if f"{name}.alpha" in tensors:
                scale = lora_reader.scale_of(f"{name}.alpha", tensors[f"{name}.alpha"], rank)
            else:
                own = weights.key_of(path).removesuffix(".weight")
                scale = lora_reader.scale_told(about, own, rank)
            if isinstance(kohya, Slot) and name == kohya.name:
                if len(up) % kohya.parts or up.size != len(up) * len(down):
                    return None
                down, up = lora_reader.own_part(kohya, down, up)
                length = None if length is None else lora_reader.own_rows(kohya, length)
            return Factors(down, up, length, scale, (*keys, *more))
    return None


def _fitted(
    path: str, found: Factors, trainable: Mapping[str, Any], *, alpha: float, file: Path
) -> dict[str, np.ndarray]:
    """A kernel's factors in our order and rank; raises FileError where they do not fit."""
    names = [f"{path}/{name}" for name in (lora.DOWN, lora.UP, lora.LENGTH)]
    down, up = (np.array(trainable[name]) for name in names[:2])
    theirs = weights.turned("/kernel", found.down, to_file=False)
    their_up = found.up.reshape(found.up.shape[:2]).T if found.up.ndim >= 2 else found.up
    rank = theirs.shape[-1]
    if theirs.shape[:-1] != down.shape[:-1] or their_up.shape != (rank, up.shape[-1]):
        raise untrusted.FileError(
            f"{file}: {found.keys[0]} {found.down.shape} and {found.keys[1]} {found.up.shape} do "
            f"not fit the kernel {path}, whose factors are {down.shape} and {up.shape} here: it is "
            "of another base model."
        )
    if rank > down.shape[-1]:
        raise untrusted.FileError(
            f"{file}: its rank is {rank}, and adapt.rank = {down.shape[-1]} has no room for it. "
            f"Write --config.adapt.rank={rank}."
        )
    if (names[2] in trainable) != (found.length is not None):
        raise untrusted.FileError(
            f"{file}: {'a DoRA' if found.length is not None else 'no DoRA'}. Write "
            f"--config.adapt.dora={found.length is not None}."
        )
    down[..., :rank] = theirs
    up[:rank] = their_up * np.float32(found.scale * len(up) / alpha)
    made = {names[0]: down, names[1]: up}
    if found.length is not None:
        if found.length.size != np.shape(trainable[names[2]])[0]:
            raise untrusted.FileError(
                f"{file}: {found.keys[2]} has the shape {found.length.shape}; expected "
                f"{np.shape(trainable[names[2]])[0]} lengths, one for each output of {path}."
            )
        made[names[2]] = found.length.reshape(-1)
    return made
