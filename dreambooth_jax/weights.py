"""Weight files in the diffusers and transformers layout, both ways; names are the format.

A path of ours becomes a key of the file by joining with dots and renaming the leaf
(`kernel|scale|embedding` → `weight`); kernels are turned (`[in, out]` ↔ `[out, in]`, `HWIO` ↔
`OIHW`). Reading walks over the leaves that our network has and asks for each key; writing is the
same walk backwards; what is left over on either side is an error. Only safetensors are read:
nothing is ever unpickled.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dreambooth_jax import tree

_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_STEMS = ("diffusion_pytorch_model", "model")
_VARIANT = re.compile(rf"(?:{'|'.join(_STEMS)})\.(\w+)(?:-\d+-of-\d+)?\.safetensors")
# Keys that some files carry although they repeat another one or hold no parameter: each with a
# key whose presence says that the file is of that kind.
_REDUNDANT = {
    "encoder.embed_tokens.weight": "shared.weight",
    "text_model.embeddings.position_ids": "text_model.embeddings.position_embedding.weight",
    "vision_model.embeddings.position_ids": "vision_model.embeddings.position_embedding.weight",
}
# The attention of an autoencoder had other names once, and 1x1 convolutions for linear layers.
_OLD_ATTENTION = re.compile(r"(mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.")
_CLIP_PREFIX = "text_model."  # transformers 5 leaves it out when it writes, and reads both
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def key_of(path: str) -> str:
    """`down_blocks/0/conv1/kernel` → `down_blocks.0.conv1.weight`."""
    *stem, leaf = path.split("/")
    return ".".join([*stem, _LEAF.get(leaf, leaf)])


def _usual(key: str, wanted: Mapping[str, str]) -> str:
    """The usual key of what some files call `key`."""
    if key not in wanted and f"{_CLIP_PREFIX}{key}" in wanted:
        return f"{_CLIP_PREFIX}{key}"
    return _OLD_ATTENTION.sub(lambda found: f"{found[1]}.{_OLD_NAMES[found[2]]}.", key)


def turned(path: str, array: np.ndarray, *, to_file: bool) -> np.ndarray:
    """A kernel with its axes in the file's order, or back; other leaves as they are."""
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1) if to_file else array.transpose(2, 3, 1, 0)
    return array.T


def files_of(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of one component, following an index when there is one.

    Raises:
      FileNotFoundError: there is none; says what lies there instead.
    """
    middle = f".{variant}" if variant else ""
    for stem in _STEMS:
        index = folder / f"{stem}.safetensors.index{middle}.json"
        if index.is_file():
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
            absent = [name for name in names if not (folder / name).is_file()]
            if absent:
                raise FileNotFoundError(
                    f"{index} names {', '.join(absent)}, which {folder} does not have. "
                    "Download the model again."
                )
            return [folder / name for name in names]
        single = folder / f"{stem}{middle}.safetensors"
        if single.is_file():
            return [single]
    pickled = sorted(p.name for suffix in ("*.bin", "*.ckpt", "*.pt") for p in folder.glob(suffix))
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    reason = f"no safetensors weights{f' of variant {variant!r}' if variant else ''} in {folder}."
    if others:
        reason += f" There is: {', '.join(others)}."
        variants = {found[1] for name in others if (found := _VARIANT.match(name))} - {variant}
        if variants:
            reason += f" Write --config.variant={sorted(variants)[0]} to read those."
        elif variant:
            reason += ' Write --config.variant="" to read the plain ones.'
        else:
            usual = " or ".join(f"{stem}{middle}.safetensors" for stem in _STEMS)
            reason += f" Rename the file to read to {usual}."
    if pickled:
        reason += (
            f" {', '.join(pickled)} is a pickle, which can run code when opened, so it is not "
            "read. Convert it once: load it in PyTorch diffusers and call "
            "save_pretrained(folder, safe_serialization=True)."
        )
    elif not others:
        reason += " (Of a hub model only safetensors are downloaded: has it none?)"
    raise FileNotFoundError(reason)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(str(file), framework="numpy") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(
            f"{file} ({file.stat().st_size} bytes) is no whole safetensors file: {error}. Copy or "
            "download it again (a clone made without git-lfs has a short text in its place)."
        ) from error


def read(
    folder: str | Path,
    abstract: Mapping[str, Any],
    *,
    variant: str | None = None,
    put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
    ignore: str = "",
) -> tree.Flat:
    """The parameters that a network has (`abstract`), from its folder, float32, leaf by leaf.

    Args:
      put: called with (path, array) for each leaf as soon as it is read, to place it on devices.
      ignore: regex of keys of the file that the network has no use for.

    Raises:
      FileNotFoundError: no safetensors file; says what lies there instead.
      ValueError: a key is missing or left over, or a shape differs (lists all of them); a file is
        cut short.
    """
    files = files_of(Path(folder), variant)
    flat: tree.Flat = {}
    wanted = {key_of(path): path for path in abstract}
    found: set[str] = set()
    wrong = []
    for file in files:
        with _opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                key = _usual(name, wanted)
                if key not in wanted and re.fullmatch(ignore, key):
                    continue
                found.add(key)
                if key not in wanted:
                    continue
                path = wanted[key]
                array, shape = tensors.get_tensor(name), tuple(abstract[path].shape)
                if key != name and array.ndim == 4:
                    array = array[:, :, 0, 0]
                array = turned(path, array, to_file=False)
                if array.shape != shape:
                    wrong.append(f"{key}: found {array.shape}, expected {shape}")
                    continue
                values = np.ascontiguousarray(array.astype(np.float32, copy=False))
                flat[path] = put(path, values.reshape(shape))  # a scalar came out as [1]
    redundant = {key for key, same in _REDUNDANT.items() if same in wanted and key not in wanted}
    tree.check_keys(wanted, found - redundant, what=f"weights in {folder}")
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(f"weights in {folder}: shapes differ from config.json:\n  {listed}")
    return {path: flat[path] for path in abstract}


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """What is left of float32 values after a file of `dtype`, as float32."""
    return array.astype(_DTYPES[dtype]).astype(np.float32)


def itemsize(dtype: str) -> int:
    """Bytes of one number, "float16", "bfloat16" or "float32"."""
    return np.dtype(_DTYPES[dtype]).itemsize


def write(folder: str | Path, flat: Mapping[str, Any], *, dtype: str, stem: str) -> Path:
    """Writes one component's parameters as `<stem>.safetensors`: the walk of `read`, backwards.

    Raises:
      ValueError: a value is not finite, or too large for `dtype`; nothing is written then.
    """
    tensors = {
        key_of(path): cast(turned(path, np.asarray(leaf), to_file=True), dtype, name=path)
        for path, leaf in flat.items()
    }
    return save(Path(folder) / f"{stem}.safetensors", tensors)


def cast(array: np.ndarray, dtype: str, *, name: str) -> np.ndarray:
    """A float32 array in the dtype of a file.

    Raises:
      ValueError: a value is not finite, or too large for `dtype`.
    """
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array.astype(_DTYPES[dtype]))
    if not np.isfinite(found.astype(np.float32)).all():
        largest = float(np.abs(np.where(np.isfinite(array), array, 0)).max())
        raise ValueError(
            f"{name} does not fit {dtype} (largest finite value {largest:.3g}, the rest is not "
            "finite or overflows). Export as 'float32' or 'bfloat16', or choose an earlier "
            "checkpoint."
        )
    return found


def verify(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Reads a file of `save` back, one tensor at a time.

    Raises:
      ValueError: it does not hold these tensors, bit for bit.
    """
    with _opened(file) as found:
        tree.check_keys(tensors, found.keys(), what=f"tensors in {file}")
        for key, value in tensors.items():
            if found.get_tensor(key).tobytes() != value.tobytes():
                raise ValueError(
                    f"{file}: {key} read back differs from what was written: is the disk full or "
                    "failing?"
                )


def save(
    file: Path, tensors: Mapping[str, np.ndarray], *, metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes a safetensors file, and its folder where there is none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    mode = file.stat().st_mode  # as the umask has it; save_file leaves a file for its owner alone
    save_file(dict(tensors), str(file), metadata={"format": "pt", **(metadata or {})})
    file.chmod(mode)
    return file
