"""The manifest beside the arrays of a checkpoint: settings, type and checksum of each leaf."""

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath

from dreambooth_jax import tree
from dreambooth_jax.checkpoint.reading import CheckpointError, Damaged
from dreambooth_jax.checksum import checksums

Manifest = dict[str, Any]


def named(state: Any) -> dict[str, Any]:
    """The leaves by path, `{"opt_state/0/mu/unet/…": leaf}`; None and empty nodes have none."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise ValueError(f"two leaves of the state have the path {name!r}: rename one")
        named[name] = leaf
    return named


def flat_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"train.lr": 0.001, …}`, with values as JSON gives them back (tuples become lists)."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_config(value, f"{prefix}{key}.")
            continue
        try:
            flat[f"{prefix}{key}"] = json.loads(json.dumps(value))
        except TypeError as error:
            raise TypeError(
                f"config.{prefix}{key} is {value!r}, which JSON can't hold: {error}. "
                "Give numbers, strings, booleans, None, or lists of these."
            ) from None
    return flat


def _digest(manifest: Manifest) -> str:
    """SHA-256 over all of the manifest but itself."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def make(step: int, config: Mapping[str, Any], leaves: Mapping[str, jax.Array]) -> Manifest:
    """The manifest of these leaves; `config` is flat."""
    sums = checksums(leaves)
    described = {
        name: {"shape": list(leaf.shape), "dtype": str(leaf.dtype), "checksum": sums[name]}
        for name, leaf in leaves.items()
    }
    manifest = {"step": step, "config": dict(config), "leaves": described}
    return manifest | {"sha256": _digest(manifest)}


def read(file: epath.Path, step: int) -> Manifest:
    """The manifest in `file`, which must be that of `step`.

    Raises:
      Damaged: it is missing, was changed, or belongs to another step.
    """
    if not file.exists():
        raise Damaged(f"there is no {file}")
    try:
        manifest = json.loads(file.read_bytes())
        if manifest["sha256"] != _digest(manifest):
            raise ValueError("it does not match its own checksum")
        if manifest["step"] != step:
            raise ValueError(f"it is that of step {manifest['step']}")
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"file {file} is damaged: {error!r}") from None
    return manifest


def check_config(
    saved: Mapping[str, Any], now: Mapping[str, Any], *, may_differ: Sequence[str], what: str
) -> None:
    """The saved settings must be today's, but for those that `may_differ`, patterns of keys.

    A pattern covers all keys below it, too: "log" and "log.*" both cover "log.every".

    Raises:
      CheckpointError: with a table of the keys that differ.
    """
    free = [form for pattern in may_differ for form in (pattern, f"{pattern}.*")]
    rows = [("key", "saved", "now")]
    for key in sorted({*saved, *now}):
        old, new = (json.dumps(c[key]) if key in c else "(absent)" for c in (saved, now))
        if old != new and not any(fnmatch.fnmatchcase(key, form) for form in free):
            rows.append((key, old, new))
    if len(rows) > 1:
        first, second = (max(len(row[column]) for row in rows) for column in range(2))
        table = "".join(f"\n  {key:{first}}  {old:{second}} → {new}" for key, old, new in rows)
        raise CheckpointError(
            f"{what} was made with other settings:{table}\n"
            "To continue that run, set these keys back; for a new run choose another workdir."
        )


def check_leaves(
    saved: Mapping[str, Mapping[str, Any]], wanted: Mapping[str, Any], *, what: str
) -> None:
    """Both sides must have the same leaves, each of the same shape and dtype.

    Raises:
      ValueError: the message lists those that don't.
    """
    tree.check_keys(wanted, saved, what=what)
    other = []
    for name, leaf in wanted.items():
        now = f"{leaf.dtype}{list(leaf.shape)}"
        then = f"{saved[name]['dtype']}{saved[name]['shape']}"
        if now != then:
            other.append(f"\n  {name}: {now}, saved {then}")
    if other:
        raise ValueError(f"{what}: {len(other)} leaves have another type:" + "".join(other[:20]))


def check_values(saved: Mapping[str, Mapping[str, Any]], found: Mapping[str, jax.Array]) -> None:
    """The leaves read must have the checksums of the leaves saved.

    Raises:
      Damaged: names the first that has another.
    """
    bad = [
        f"leaf {name!r} has checksum {checksum}, expected {saved[name]['checksum']}"
        for name, checksum in checksums(found).items()
        if checksum != saved[name]["checksum"]
    ]
    if bad:
        more = f" (and {len(bad) - 1} more leaves)" if len(bad) > 1 else ""
        raise Damaged(bad[0] + more)
