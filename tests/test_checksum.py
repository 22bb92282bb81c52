import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dreambooth_jax.checksum import _on_device, checksums

DTYPES = ("float32", "bfloat16", "float16", "int32", "uint8", "int8", "bool", "float8_e4m3fn")


def one(array: jax.Array) -> str:
    return checksums({"x": array})["x"]


def device(array: jax.Array) -> str:
    """The other implementation: the one that accelerators and several processes use."""
    return f"{int(_on_device(array)):08x}"


def random_bits(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Every bit pattern, NaNs included."""
    kind = jnp.dtype(dtype)
    if kind == np.bool_:
        return rng.integers(0, 2, shape).astype(bool)
    count = int(np.prod(shape)) * kind.itemsize
    return rng.integers(0, 256, count, np.uint8).view(kind).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_single_bit_counts(rng: np.random.Generator, dtype: str) -> None:
    array = random_bits(rng, (3, 5), dtype)
    whole = one(jnp.asarray(array))
    bits = 1 if dtype == "bool" else 8
    seen = {whole}
    for byte in range(array.nbytes):
        for bit in range(bits):
            flipped = array.copy()
            flipped.reshape(-1).view(np.uint8)[byte] ^= 1 << bit
            seen.add(one(jnp.asarray(flipped)))
    assert len(seen) == 1 + array.nbytes * bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_and_device_agree(rng: np.random.Generator, dtype: str) -> None:
    for shape in ((), (7,), (3, 4, 5)):
        array = jnp.asarray(random_bits(rng, shape, dtype))
        assert one(array) == device(array)


def test_large_arrays_are_summed_in_pieces_to_the_same_number(rng: np.random.Generator) -> None:
    array = jnp.asarray(random_bits(rng, (3, 200_003), "float32"))
    assert one(array) == device(array)


def test_places_count(rng: np.random.Generator) -> None:
    array = rng.standard_normal((4, 6), dtype=np.float32)
    swapped = array.copy()
    swapped[0, 1], swapped[3, 2] = array[3, 2], array[0, 1]
    variants = [array, swapped, np.roll(array, 1, 0), np.roll(array, 1, 1), array[::-1], array * 0]
    assert len({one(jnp.asarray(variant)) for variant in variants}) == len(variants)
    assert len({device(jnp.asarray(variant)) for variant in variants}) == len(variants)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_the_layout_on_devices_does_not_count(rng: np.random.Generator, kind: AxisType) -> None:
    array = random_bits(rng, (8, 16), "bfloat16")
    expected = one(jnp.asarray(array))
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"), axis_types=(kind, kind))
    specs = [(), ("data",), (None, "data"), ("fsdp", "data"), (("data", "fsdp"),)]
    for spec in specs:
        placed = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
        assert one(placed) == expected
        assert device(placed) == expected


def test_keys_and_empty_leaves_have_one() -> None:
    keys = [one(jax.random.key(seed)) for seed in range(3)]
    assert len(set(keys)) == 3
    assert one(jnp.zeros((0, 3))) == device(jnp.zeros((0, 3))) == "00000000"
