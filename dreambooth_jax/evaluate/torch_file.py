"""The arrays of an old PyTorch weight file, read without PyTorch and without running what it says.

The layout is that of `torch.save` before version 1.6: five pickles (a magic number, a version,
facts about the machine, the dictionary, the keys of the storages in order), then every storage as
an int64 count and its raw numbers.
"""

import collections
import math
import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dreambooth_jax import untrusted

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
}
_Tensor = collections.namedtuple("_Tensor", "storage offset shape strides")


def _rebuild(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Notes what a tensor is made of; the numbers come after the pickles."""
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Reader(pickle.Unpickler):
    """A pickle may name the dictionary, tensors and their storages, and nothing else."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, tuple[str, int]] = {}  # key -> numpy dtype, how many numbers

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a name; ValueError for all but five known kinds."""
        known = {
            "collections.OrderedDict": collections.OrderedDict,
            "torch._utils._rebuild_tensor_v2": _rebuild,
            **{f"torch.{storage}": dtype for storage, dtype in _STORAGES.items()},
        }
        if f"{module}.{name}" not in known:
            raise ValueError(
                f"the file wants {module}.{name}, which a file of weights has no use for; "
                f"expected only {', '.join(known)}. It was not read."
            )
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> str:
        """The key of a storage; notes its dtype and size."""
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise ValueError(f"the file refers to {pid!r}; expected a whole storage.")
        self.storages[key] = (dtype, count)
        return key


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Every tensor of the file by its key.

    Raises:
      FileError: another layout, more in the pickles than tensors, fewer numbers than they say, or
        whatever a damaged pickle provokes.
    """
    with untrusted.reading(path, "a weight file of PyTorch"):
        return _read(Path(path))


def _read(path: Path) -> dict[str, np.ndarray]:
    with untrusted.regular(path).open("rb") as file:
        if file.peek(2)[:2] == b"PK" or _Reader(file).load() != _MAGIC:
            raise ValueError(f"{path} is no weight file of the layout before PyTorch 1.6.")
        for _ in range(2):
            _Reader(file).load()
        reader = _Reader(file)
        tensors = reader.load()
        storages = {}
        for key in _Reader(file).load():
            dtype, count = reader.storages[key]
            size = count * np.dtype(dtype).itemsize
            head, raw = file.read(8), file.read(size)
            if int.from_bytes(head, "little") != count or len(raw) != size:
                raise ValueError(
                    f"{path} is damaged: found {len(raw)} bytes of storage {key}, expected {size}. "
                    "Download it again."
                )
            storages[key] = np.frombuffer(raw, dtype)
    return {name: _array(storages[t.storage], t) for name, t in tensors.items()}


def _array(numbers: np.ndarray, tensor: _Tensor) -> np.ndarray:
    if math.prod(tensor.shape) > numbers.size:  # strides of 0 would make terabytes of a few bytes
        raise ValueError(f"a tensor of shape {tensor.shape} has more than {numbers.size} numbers.")
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if (
        tensor.offset < 0
        or tensor.offset + last >= numbers.size
        or min(tensor.strides, default=0) < 0
    ):
        raise ValueError(f"a tensor {tensor} reaches outside of its {numbers.size} numbers.")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides)
    return view.copy()
