"""Nested dictionaries of numpy arrays from a pickle, without running what it says."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import tree, untrusted


class _Array:
    """Stands for an array while the pickle tells, step by step, what it is."""

    def __init__(self) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        """(version, shape, dtype, Fortran order?, raw bytes), as numpy writes it."""
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise ValueError("an array of something else than numbers; it was not read.")
        numbers = np.frombuffer(raw, dtype.name)
        self.value = numbers.reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """Stands for a dtype, of which only numbers of a fixed size are known."""

    def __init__(self, name: str, *_: Any):
        if name not in ("f2", "f4", "f8", "i4", "i8"):
            raise ValueError(f"an array of dtype {name!r}; expected numbers. It was not read.")
        self.name = f"<{name}"

    def __setstate__(self, state: Any) -> None:
        """(version, byte order, …)."""
        if state[1] not in ("<", "|"):
            raise ValueError(f"an array of byte order {state[1]!r}; expected '<'.")


def _reconstruct(*_: Any) -> _Array:
    return _Array()


class _Reader(pickle.Unpickler):
    """A pickle may name arrays and their dtypes, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns the stand-in for a name; ValueError for all but three known ones."""
        known = {
            "numpy.core.multiarray._reconstruct": _reconstruct,
            "numpy._core.multiarray._reconstruct": _reconstruct,
            "numpy.ndarray": None,  # an argument of the first, never called
            "numpy.dtype": _Dtype,
        }
        if f"{module}.{name}" not in known:
            raise ValueError(
                f"the file wants {module}.{name}, which a file of weights has no use for; "
                "expected only numpy arrays. It was not read."
            )
        return known[f"{module}.{name}"]


def read(path: str | Path) -> tree.Flat:
    """Every array of the file by its path, `{"AlexNet_0/Conv_0/kernel": array}`.

    Raises:
      FileError: it holds something else, is cut short, or asks for more memory than there is.
    """
    with untrusted.reading(path, "a file of arrays", remedy="Install it again."):
        with untrusted.regular(Path(path)).open("rb") as file:
            content = _Reader(file).load()
        return dict(_leaves(content, "", path))


def _leaves(content: Any, prefix: str, path: str | Path) -> Any:
    if isinstance(content, _Array) and content.value is not None:
        yield prefix, content.value
        return
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {prefix or 'it'} is {type(content).__name__}, not an array.")
    for name, inner in content.items():
        yield from _leaves(inner, f"{prefix}/{name}".lstrip("/"), path)
