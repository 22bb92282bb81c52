"""Flat dictionaries of arrays: the one form that parameters have everywhere in this project.

A flat dictionary maps a path to an array: `{"unet/down_blocks/0/resnets/0/conv1/kernel": array}`.
Splitting, combining, checking and summarising such dictionaries is all the tree arithmetic that
training needs.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

Flat = dict[str, Any]
V = TypeVar("V")


def first_match(path: str, rules: Sequence[tuple[str, V]], *, what: str) -> V:
    """The value of the first rule `(regex, value)` whose regex matches the whole of `path`.

    Raises:
      ValueError: no rule matches; the message names the path and the table (`what`).
    """
    for pattern, value in rules:
        if re.fullmatch(pattern, path):
            return value
    patterns = [pattern for pattern, _ in rules]
    raise ValueError(
        f"{what}: no rule matches {path!r}. Rules, first match wins: {patterns}. "
        "End the table with a rule for '.*'."
    )


def split(
    flat: Mapping[str, V], chosen: Callable[[str], bool]
) -> tuple[dict[str, V], dict[str, V]]:
    """Two dictionaries: the paths that `chosen` accepts, and the others; the order is kept."""
    yes = {path: leaf for path, leaf in flat.items() if chosen(path)}
    no = {path: leaf for path, leaf in flat.items() if path not in yes}
    return yes, no


def prefixed(flat: Mapping[str, V], prefix: str) -> dict[str, V]:
    """The part of `flat` under `prefix/`, with that prefix removed from the paths."""
    start = prefix + "/"
    return {path[len(start) :]: leaf for path, leaf in flat.items() if path.startswith(start)}


def with_prefix(flat: Mapping[str, V], prefix: str) -> dict[str, V]:
    """`flat` with `prefix/` put before each path."""
    return {f"{prefix}/{path}": leaf for path, leaf in flat.items()}


def check_keys(expected: Iterable[str], found: Iterable[str], *, what: str) -> None:
    """Both sides must hold the same keys.

    Raises:
      ValueError: the message lists what is missing and what is left over (at most 20 of each).
    """
    wanted, got = set(expected), set(found)
    if wanted == got:
        return

    def listed(keys: set[str]) -> str:
        shown = sorted(keys)[:20]
        more = f"\n    … and {len(keys) - len(shown)} more" if len(keys) > len(shown) else ""
        return "".join(f"\n    {key}" for key in shown) + more

    lines = [f"{what}: the keys do not match ({len(wanted & got)} of {len(wanted)} found)."]
    if wanted - got:
        lines.append(f"  missing ({len(wanted - got)}):" + listed(wanted - got))
    if got - wanted:
        lines.append(f"  left over ({len(got - wanted)}):" + listed(got - wanted))
    raise ValueError("\n".join(lines))


def count(flat: Mapping[str, Any]) -> int:
    """Counts the numbers in all leaves."""
    return sum(int(np.prod(leaf.shape)) for leaf in flat.values())


def nbytes(flat: Mapping[str, Any]) -> int:
    """Returns the bytes of all leaves; works for abstract leaves too."""
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in flat.values())


def host(x: Any) -> Any:
    """A numpy array; under a transformation of jax, where there are no values, `x` itself."""
    return x if isinstance(x, jax.core.Tracer) else np.asarray(x)


def digest(path: str, leaf: Any) -> str:
    """SHA-256 over path, shape, dtype and bytes of one leaf."""
    array = np.ascontiguousarray(leaf)
    found = hashlib.sha256(f"{path} {np.shape(leaf)} {array.dtype}\n".encode())
    found.update(array.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def combined(digests: Mapping[str, str]) -> str:
    """The `fingerprint` of leaves whose `digest`s these are."""
    lines = "".join(f"{path} {digests[path]}\n" for path in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def fingerprint(flat: Mapping[str, Any]) -> str:
    """SHA-256 over paths, shapes, dtypes and bytes: equal exactly when the weights are equal."""
    return combined({path: digest(path, leaf) for path, leaf in flat.items()})
