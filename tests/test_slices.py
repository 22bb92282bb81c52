"""Meshes over several slices of TPUs or hosts of GPUs: which axes go over the slower network."""

import dataclasses

import numpy as np
import pytest

from dreambooth_jax import sharding


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a mesh reads of a device."""

    id: int
    process_index: int = 0
    slice_index: int | None = None
    platform: str = "gpu"
    device_kind: str = "a chip"


def chips(count, *, slices=1, processes=1):
    return [
        Chip(i, i * processes // count, None if slices == 1 else i * slices // count)
        for i in range(count)
    ]


@pytest.mark.parametrize(
    ("sizes", "slices", "data", "fsdp"),
    [
        ({"data": 4, "fsdp": 2, "tensor": 2}, 2, 2, 1),
        ({"data": 4, "fsdp": 4}, 4, 4, 1),
        ({"data": 2, "fsdp": 8}, 4, 2, 2),  # data is too small for all of it
        ({"data": 1, "fsdp": 8, "tensor": 2}, 2, 1, 2),
        ({"data": 1, "fsdp": 16}, 4, 1, 4),
    ],
)
@pytest.mark.parametrize("by", ["slices", "processes"])
def test_data_and_then_fsdp_go_over_the_slower_network(sizes, slices, data, fsdp, by):
    devices = chips(16, **{by: slices})
    mesh = sharding.make_mesh(**sizes, devices=devices[::-1])
    assert mesh.devices.shape == (sizes["data"], sizes["fsdp"], sizes.get("tensor", 1))
    assert set(mesh.devices.flat) == set(devices)
    own = "slice_index" if by == "slices" else "process_index"
    where = np.vectorize(lambda chip: getattr(chip, own))(mesh.devices)
    # Cut into as many blocks along data and fsdp, each block is one slice, and each slice a block.
    blocks = [
        set(block.flat)
        for part in np.split(where, data, axis=0)
        for block in np.split(part, fsdp, axis=1)
    ]
    assert sorted(map(tuple, blocks)) == [(k,) for k in range(slices)]
    along = " and ".join(a for a, n in (("data", data), ("fsdp", fsdp)) if n > 1)
    assert sharding.describe(mesh).endswith(f"; {slices} {by} along {along}")


def test_a_mesh_that_would_split_layers_over_the_slower_network_is_refused():
    with pytest.raises(ValueError, match=r"4 slices of 4 devices.*tensor never") as info:
        sharding.make_mesh(data=2, fsdp=1, tensor=8, devices=chips(16, slices=4))
    assert "--config.mesh.data=4 --config.mesh.fsdp=1 --config.mesh.tensor=4" in str(info.value)
    sharding.make_mesh(data=4, fsdp=1, tensor=4, devices=chips(16, slices=4))
    with pytest.raises(ValueError, match="2 slices of this run have 8, 4 devices"):
        sharding.make_mesh(devices=chips(16, slices=2)[:12])


def test_one_slice_or_a_process_for_each_device_is_a_mesh_as_ever():
    for devices in (chips(8), chips(8, processes=8)):
        mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2, devices=devices)
        assert [chip.id for chip in mesh.devices.flat] == list(range(8))
        assert sharding.describe(mesh) == "data 2, fsdp 2, tensor 2"
