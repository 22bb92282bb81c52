"""Room on the disk: how much a checkpoint takes, how much there is."""

import math
import os
import shutil
from typing import Any

import jax

from dreambooth_jax.checkpoint.reading import CheckpointError


def estimate_bytes(like: Any) -> int:
    """An upper bound of the bytes that one checkpoint of `like` takes (Orbax compresses it)."""
    leaves = jax.tree.leaves(like)
    nbytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return nbytes + 4096 * len(leaves) + 2**20  # indices, metadata and the manifest


def free_bytes(folder: str | os.PathLike[str]) -> int | None:
    """Free bytes where `folder` is or will be; None where it is unknown (gs://)."""
    if "://" in str(folder):
        return None
    path = os.path.abspath(folder)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return shutil.disk_usage(path).free


def check_space(folder: str | os.PathLike[str], nbytes: int, *, what: str = "checkpoints") -> None:
    """There must be `nbytes` free where `folder` is or will be; says nothing of gs://.

    A run that keeps n checkpoints holds n + 1 while it saves.

    Raises:
      CheckpointError: the message tells what is needed, what is free, and what to do.
    """
    free = free_bytes(folder)
    if free is not None and free < nbytes:
        raise CheckpointError(
            f"{what} need {readable(nbytes)} in {folder}, where {readable(free)} are free. Make "
            f"room for {readable(nbytes - free)} more, keep fewer, or put the workdir elsewhere."
        )


def readable(nbytes: int) -> str:
    """`1.5 GB` or `20.3 MB`."""
    return f"{nbytes / 1e9:.3g} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.3g} MB"
