"""A checksum per array that depends on its elements alone, not on how many devices hold it.

For each word w (8, 16 or 32 bits of the array) at place i, counted from 1 in row-major order:
sum of mix(w XOR mix(i)) modulo 2^32, with a bijection `mix` of uint32. So a change within one
element always changes the sum; other changes, swapped elements among them, go unseen once in 2^32.
A sum needs no order: each device adds up its own shard.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}  # bytes per element → word


def checksums(flat: Mapping[str, jax.Array]) -> dict[str, str]:
    """A checksum of 32 bits per leaf, as hexadecimal text; several processes call it together."""
    sums: dict[str, int] = {}
    for name in sorted(flat):  # sorted: every process runs its collectives in this order
        leaf = flat[name]
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        on_host = leaf.is_fully_addressable and next(iter(leaf.devices())).platform == "cpu"
        # Waiting for each: on CPU, programs of several processes that are under way together take
        # each other's threads, and deadlock.
        sums[name] = _on_host(np.asarray(leaf)) if on_host else int(_on_device(leaf))
    return {name: f"{total:08x}" for name, total in sums.items()}


def _mix(h: Any) -> Any:
    """Spread each bit over all 32, reversibly (the finaliser of MurmurHash3, Austin Appleby)."""
    h = h ^ (h >> 16)
    h = h * np.uint32(0x85EBCA6B)
    h = h ^ (h >> 13)
    h = h * np.uint32(0xC2B2AE35)
    return h ^ (h >> 16)


@jax.jit
def _on_device(array: jax.Array) -> jax.Array:
    """The sum where the array lies: on one device or many, of one process or many."""
    if array.dtype == jnp.bool_:
        words = array.astype(jnp.uint32)
    else:
        words = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize])
        words = words.astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(_mix(words ^ _mix(place + np.uint32(1))), dtype=jnp.uint32)


def _on_host(array: np.ndarray) -> int:
    """The same sum in numpy: on CPU it saves compiling a program for each shape."""
    words = np.ascontiguousarray(array).reshape(-1).view(_WORDS[array.dtype.itemsize])
    total = 0
    for start in range(0, words.size, 1 << 18):  # pieces of 1 MB stay in the cache
        part = words[start : start + (1 << 18)].astype(np.uint32)
        place = np.arange(start + 1, start + 1 + part.size, dtype=np.uint64).astype(np.uint32)
        total += int(np.sum(_mix(part ^ _mix(place)), dtype=np.uint32))
    return total % 2**32
