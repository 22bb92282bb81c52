"""The tensors of a whole model in one file of its first authors' layout, by component.

No family has a table for reading: its `SingleFile.layout`, which writes, is run on numbers of rows.
"""

import bisect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from dreambooth_jax import untrusted, weights
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.pipeline.family import Tensors

DENOISER = "model.diffusion_model."  # programs put it before keys that have none
_SHARD = 2**32  # bytes of tensors that are held at once
_FIRST = 2**40  # the first label: a layout's own numbers are below


class Piece(NamedTuple):
    """Rows of a tensor of ours, and their place in a file: `rows` of the tensor `key`."""

    start: int
    key: str
    rows: slice
    transposed: bool


class Place(NamedTuple):
    """One tensor of a component under diffusers' key, with its shape and pieces in the file."""

    part: str
    key: str
    shape: tuple[int, ...]
    pieces: list[Piece]


def places(stage: Stage) -> list[Place]:
    """Returns the place of every tensor of a stage in a single file, [] pieces where it has none.

    The family's layout is run on numbers of rows in the place of rows: what comes out tells which
    of them the file stacks, exchanges or transposes.
    """
    found: list[Place] = []
    starts: list[int] = []
    parts: dict[str, Tensors] = {}
    begin = _FIRST
    for path, leaf in stage.abstract.items():
        part, _, rest = path.partition("/")
        place = Place(part, weights.key_of(rest), weights.file_shape(rest, leaf.shape), [])
        count = place.shape[0]
        labels = np.arange(begin, begin + count).reshape(-1, *[1] * (len(place.shape) - 1))
        parts.setdefault(part, {})[place.key] = labels
        found.append(place)
        starts.append(begin)
        begin += count + 1  # a gap, so that neighbours are told apart
    single = stage.family.single_file
    if single is None:
        return found
    for key, table in single.layout(stage, parts).items():
        across = table.ndim == 2 and table.shape[0] == 1 and table.size > 1
        flat = table.ravel()
        ends = [*(np.flatnonzero(np.diff(flat) != 1) + 1).tolist(), flat.size]
        for first, last in zip([0, *ends[:-1]], ends, strict=True):
            label = int(flat[first])
            if label < _FIRST:
                continue
            k = bisect.bisect_right(starts, label) - 1
            start = label - starts[k]
            if all(piece.start != start for piece in found[k].pieces):  # some are there twice
                found[k].pieces.append(Piece(start, key, slice(first, last), across))
    return found


def name_in(key: str, names: Mapping[str, Any]) -> str | None:
    """The name of a tensor in a file, whose prefix programs leave out or put before; or None."""
    bare = key.replace(".transformer.text_model.", ".transformer.")
    tried = (key, f"{DENOISER}{key}", bare, key.removeprefix("first_stage_model."))
    return next((name for name in tried if name in names), None)


def _whole(place: Place, read: Callable[[str], np.ndarray]) -> np.ndarray:
    """The tensor of a place, from its pieces.

    Raises:
      ValueError: it has another shape.
    """
    rows = []
    for piece in sorted(place.pieces):
        tensor = read(piece.key)
        rows.append((tensor.T if piece.transposed else tensor)[piece.rows])
    made = np.concatenate(rows) if len(rows) > 1 else rows[0]
    if [n for n in made.shape if n != 1] != [n for n in place.shape if n != 1]:
        raise ValueError(
            f"{place.part}/{place.key}: found {made.shape}, expected {place.shape} by its settings"
        )
    made = made.astype(ml_dtypes.bfloat16) if made.dtype.itemsize == 1 else made  # holds all of it
    return np.ascontiguousarray(made.reshape(place.shape))


def write_parts(file: Path, stage: Stage, wanted: Sequence[Place], folder: Path) -> None:
    """Writes components from a single file, a part of the tensors at a time.

    Raises:
      FileError: tensors of other shapes than the settings have.
    """
    problems: list[str] = []
    with weights.opened(file) as tensors:
        names = dict.fromkeys(tensors.keys())

        def read(key: str) -> np.ndarray:
            name = name_in(key, names)
            assert name is not None  # the caller has looked
            return weights.tensor(tensors, name, file)

        for part in dict.fromkeys(place.part for place in wanted):
            shards: list[tuple[Path, list[str]]] = []
            held: Tensors = {}
            own = [place for place in wanted if place.part == part]
            for place in own:
                try:
                    held[place.key] = _whole(place, read)
                except untrusted.FileError:
                    raise
                except ValueError as error:
                    problems.append(str(error))
                small = sum(x.nbytes for x in held.values()) < _SHARD
                if problems or (small and place is not own[-1]):
                    continue
                stem = f"{stage.components[part]}-{len(shards) + 1:05d}"
                shards.append((folder / part / f"{stem}.safetensors", [*held]))
                weights.save(shards[-1][0], held)
                held = {}
            if shards:
                _name_shards(shards, folder / part / stage.components[part])
    if problems:
        raise untrusted.FileError(
            f"{file} is not a model of these settings:\n  " + "\n  ".join(problems[:20]) + "\n"
            "Write --config.base_settings=FOLDER, a folder or hub id of the same architecture."
        )


def _name_shards(shards: Sequence[tuple[Path, list[str]]], stem: Path) -> None:
    if len(shards) == 1:
        shards[0][0].rename(f"{stem}.safetensors")
        return
    table = {key: file.name for file, keys in shards for key in keys}
    text = json.dumps({"metadata": {}, "weight_map": table})
    Path(f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
