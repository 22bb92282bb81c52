"""Named random streams: every draw is a function of (seed, step, name), nothing is to be restored.

A name is hashed and folded into the key, so adding a stream never changes another one, and the same
step draws the same numbers on any number of devices, before and after a resume.
"""

import hashlib

import jax
import numpy as np


def _hashed(*parts: int | str) -> int:
    """32 bits of the SHA-256 of the parts: the same on every machine and Python (unlike `hash`)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def named(key: jax.Array, name: str) -> jax.Array:
    """The stream `name` of `key`."""
    return jax.random.fold_in(key, _hashed(name))


def key(seed: int, step: int | jax.Array, name: str) -> jax.Array:
    """The key of the stream `name` at `step`; `step` may be traced."""
    return named(jax.random.fold_in(jax.random.key(seed), step), name)


def generator(seed: int, *parts: int | str) -> np.random.Generator:
    """A numpy generator for the stream named by `parts`, drawn on the host (batches, crops)."""
    # As uint64: a list with a number above 2**63 (any negative seed) would go through float64 and
    # lose bits.
    words = np.array([seed & (2**64 - 1), _hashed(*parts)], np.uint64)
    return np.random.Generator(np.random.Philox(key=words))
