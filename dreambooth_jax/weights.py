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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from absl import logging
from safetensors import safe_open
from safetensors.numpy import save_file

from dreambooth_jax import tree, untrusted

_LEAF = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# The floating-point types of safetensors; numpy has none of 8 bits.
_FLOATS = ("F64", "F32", "F16", "BF16")
_EIGHT_BITS = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
_STEMS = ("diffusion_pytorch_model", "model")
_VARIANT = re.compile(rf"(?:{'|'.join(_STEMS)})\.(\w+)(?:-\d+-of-\d+)?\.safetensors")
# Keys that some files carry although they repeat another one or hold no parameter: each with a
# key whose presence says that the file is of that kind.
_REDUNDANT = {
    "encoder.embed_tokens.weight": "shared.weight",
    "text_model.embeddings.position_ids": "text_model.embeddings.position_embedding.weight",
    "vision_model.embeddings.position_ids": "vision_model.embeddings.position_embedding.weight",
    "bn.num_batches_tracked": "bn.running_var",
}
# What files of CLIP, and single files, have beside the network that is read here: the half that
# sees pictures, the projections into the space of both, marks of what a UNet predicts.
_BESIDE = {
    "text_model.embeddings.position_embedding.weight": re.compile(
        r"logit_scale|(text|visual)_projection\.weight|vision_model\..*"
    ),
    "conv_in.weight": re.compile("v_pred|ztsnr"),
}
# The attention of an autoencoder had other names once, and 1x1 convolutions for linear layers.
_OLD_ATTENTION = re.compile(r"(mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.")
# CLIP's, which transformers 5 leaves out when it writes, and that of language models, which those
# saved without their output layer do not have; transformers reads both.
_PREFIXES = ("text_model.", "model.")
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def key_of(path: str) -> str:
    """`down_blocks/0/conv1/kernel` → `down_blocks.0.conv1.weight`."""
    *stem, leaf = path.split("/")
    return ".".join([*stem, _LEAF.get(leaf, leaf)])


def _usual(key: str, wanted: Mapping[str, str]) -> str:
    """The usual key of what some files call `key`."""
    if key not in wanted:
        for prefix in _PREFIXES:
            if f"{prefix}{key}" in wanted:
                return f"{prefix}{key}"
    return _OLD_ATTENTION.sub(lambda found: f"{found[1]}.{_OLD_NAMES[found[2]]}.", key)


def turned(path: str, array: np.ndarray, *, to_file: bool) -> np.ndarray:
    """A kernel with its axes in the file's order, or back; other leaves as they are."""
    if not path.endswith("/kernel"):
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1) if to_file else array.transpose(2, 3, 1, 0)
    return array.T


def file_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape that a leaf of ours has in a file."""
    return turned(path, np.broadcast_to(np.float32(0), tuple(shape)), to_file=True).shape


def files_of(folder: Path, variant: str | None = None) -> list[Path]:
    """The safetensors files of one component, following an index when there is one.

    A component that has no files of the variant is read from its plain ones: few models have a
    variant of each part.

    Raises:
      FileNotFoundError: there is none; says what lies there instead.
    """
    middle = f".{variant}" if variant else ""
    for stem in _STEMS:
        index = folder / f"{stem}.safetensors.index{middle}.json"
        if index.is_file():
            table = untrusted.json_object(index).get("weight_map")
            if not isinstance(table, dict) or not table:
                raise untrusted.FileError(
                    f"{index} has no table weight_map {{key: file}}. {untrusted.AGAIN}"
                )
            places = [untrusted.below(folder, name, of=str(index)) for name in table.values()]
            names = sorted({place.relative_to(folder).as_posix() for place in places})
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
    if variant and (plain := _plain(folder)):
        logging.info("%s has no weights of variant %r: its plain ones are read.", folder, variant)
        return plain
    pickled = sorted(p.name for suffix in ("*.bin", "*.ckpt", "*.pt") for p in folder.glob(suffix))
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    reason = f"no safetensors weights{f' of variant {variant!r}' if variant else ''} in {folder}."
    if others:
        reason += f" There is: {', '.join(others)}."
        variants = {found[1] for name in others if (found := _VARIANT.match(name))} - {variant}
        odd = [name for name in others if not (folder / name).is_file()]
        if odd:
            reason += f" {odd[0]} is no regular file, nor a link to one: put the file itself there."
        elif variants:
            reason += f" Write --config.variant={sorted(variants)[0]} to read those."
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


def _plain(folder: Path) -> list[Path]:
    names = [f"{stem}.safetensors{end}" for stem in _STEMS for end in ("", ".index.json")]
    return files_of(folder) if any((folder / name).is_file() for name in names) else []


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The tensors of a safetensors file, for `tensor`."""
    size = untrusted.regular(file).stat().st_size
    whole = f"a whole safetensors file ({size} bytes)"
    remedy = f"{untrusted.AGAIN[:-1]} (a clone made without git-lfs has a short text in its place)."
    with contextlib.ExitStack() as stack:
        with untrusted.reading(file, whole, remedy=remedy):
            tensors = stack.enter_context(safe_open(str(file), framework="numpy"))
        yield tensors


def tensor(tensors: Any, name: str, file: Path) -> np.ndarray:
    """One tensor of an opened file, of one of the floating-point types.

    Raises:
      FileError: it is of another type, which no weight is (complex, whole numbers, truth values).
    """
    with untrusted.reading(file, f"safetensors with a tensor {name!r}"):
        kind = tensors.get_slice(name).get_dtype()
        if kind in _EIGHT_BITS:
            return _eight_bits(file, name, _EIGHT_BITS[kind])
        if kind not in _FLOATS:
            raise untrusted.FileError(
                f"{file}: {name} is of dtype {kind}; weights are {', '.join(_FLOATS)} or "
                f"{', '.join(_EIGHT_BITS)}. Save them anew as one of these."
            )
        return tensors.get_tensor(name)


def _eight_bits(file: Path, name: str, dtype: Any) -> np.ndarray:
    """A tensor of a type that numpy does not have; the file was checked when it was opened."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        about = json.loads(opened.read(length))[name]
        begin, end = about["data_offsets"]
        opened.seek(8 + length + begin)
        return np.frombuffer(opened.read(end - begin), dtype).reshape(about["shape"])


def _check_finite(values: np.ndarray, name: str, file: Path) -> None:
    """Raises FileError when a value is not a number or infinite."""
    if np.isfinite(values.sum(dtype=np.float64)):  # one pass and no array beside it
        return
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise untrusted.FileError(
            f"{file}: {bad} of {values.size} values of {name} are not finite. The model is broken: "
            f"{untrusted.AGAIN[0].lower()}{untrusted.AGAIN[1:]}"
        )


def read(
    folder: str | Path,
    abstract: Mapping[str, Any],
    *,
    variant: str | None = None,
    put: Callable[[str, np.ndarray], Any] = lambda path, array: array,
    ignore: str = "",
    own_dtype: bool = False,
) -> tree.Flat:
    """The parameters that a network has (`abstract`), from its folder, float32, leaf by leaf.

    Args:
      own_dtype: in the dtype of the file instead.
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
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                key = _usual(name, wanted)
                if key not in wanted and re.fullmatch(ignore, key):
                    continue
                found.add(key)
                if key not in wanted:
                    continue
                path = wanted[key]
                array, shape = tensor(tensors, name, file), tuple(abstract[path].shape)
                if key != name and array.ndim == 4:
                    array = array[:, :, 0, 0]
                array = turned(path, array, to_file=False)
                if array.shape != shape:
                    wrong.append(f"{key}: found {array.shape}, expected {shape}")
                    continue
                dtype = array.dtype if own_dtype else np.float32
                values = np.ascontiguousarray(array.astype(dtype, copy=False))
                _check_finite(values, name, file)
                flat[path] = put(path, values.reshape(shape))  # a scalar came out as [1]
    tree.check_keys(wanted, found - _needless(found, wanted), what=f"weights in {folder}")
    if wrong:
        listed = "\n  ".join(wrong)
        raise ValueError(f"weights in {folder}: shapes differ from config.json:\n  {listed}")
    return {path: flat[path] for path in abstract}


def read_tensors(file: str | Path) -> dict[str, np.ndarray]:
    """All tensors of one safetensors file, in its dtypes and under its keys.

    Raises:
      FileNotFoundError: there is no such file.
      FileError: it is damaged, or a value is not finite.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected a .safetensors file.")
    with opened(file) as tensors:
        found = {name: tensor(tensors, name, file) for name in [*tensors.keys()]}
    for name, values in found.items():
        _check_finite(values, name, file)
    return found


def _needless(found: set[str], wanted: Mapping[str, str]) -> set[str]:
    """Keys of a file that its network has no use for, by the tables above."""
    some = {key for key, same in _REDUNDANT.items() if same in wanted}
    for mark, pattern in _BESIDE.items():
        some |= {key for key in found if mark in wanted and pattern.fullmatch(key)}
    return some - wanted.keys()


def dtype_of_files(folder: Path, variant: str | None = None) -> np.dtype:
    """The dtype of most numbers of a component's files; by the variant's name where there are none.

    Raises:
      FileError: a file is damaged.
    """
    try:
        files = files_of(folder, variant)
    except FileNotFoundError:
        named = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
        return np.dtype(named.get(variant or "", np.float32))
    sizes: dict[str, int] = {}
    with opened(files[0]) as tensors:
        for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
            part = tensors.get_slice(name)
            kind = part.get_dtype()
            sizes[kind] = sizes.get(kind, 0) + int(np.prod(part.get_shape()))
    kinds = {"F16": np.float16, "BF16": ml_dtypes.bfloat16, **_EIGHT_BITS}
    return np.dtype(kinds.get(max(sizes, key=lambda kind: sizes[kind]), np.float32))


def rounded(array: np.ndarray, dtype: str) -> np.ndarray:
    """Rounds float32 values as a file of `dtype` does; returns float32."""
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
    """Reads a file of `save` back, one tensor at a time; whole numbers among them (`position_ids`).

    Raises:
      ValueError: it does not hold these tensors, bit for bit.
      FileError: it cannot be read.
    """
    with opened(file) as found:
        tree.check_keys(tensors, found.keys(), what=f"tensors in {file}")
        for key, value in tensors.items():
            with untrusted.reading(file, f"safetensors with a tensor {key!r}"):
                read = found.get_tensor(key)
            if read.tobytes() != value.tobytes():
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
    with untrusted.writing(file):
        save_file(dict(tensors), str(file), metadata={"format": "pt", **(metadata or {})})
    file.chmod(mode)
    return file
