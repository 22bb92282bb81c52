import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from dreambooth_jax import sharding

EVERYTHING = ((".*", "fsdp"),)


def leaf(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(data=2, fsdp=4)


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (8, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1)),
        ({"data": 1, "fsdp": -1}, (1, 8, 1)),
        ({"data": 4, "fsdp": 2, "tensor": 1}, (4, 2, 1)),
    ],
)
def test_an_open_axis_takes_the_devices_that_the_others_leave(sizes, shape):
    mesh = sharding.make_mesh(**sizes)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert sharding.row_shards(mesh) == 8


def test_a_mesh_over_some_devices():
    assert sharding.make_mesh(devices=jax.devices()[2:3]).devices.tolist() == [[[jax.devices()[2]]]]


@pytest.mark.parametrize(
    "sizes", [{"data": 3}, {"fsdp": 3}, {"data": 16}, {"fsdp": 16}, {"data": -1, "fsdp": -1}]
)
def test_sizes_that_do_not_multiply_to_the_devices_are_refused(sizes):
    given = " ".join(f"mesh.{axis}={size}" for axis, size in sizes.items())
    with pytest.raises(ValueError, match="8 devices") as info:
        sharding.make_mesh(**sizes)
    assert all(word in str(info.value) for word in [*given.split(), "-1"])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((64, 12), P("fsdp")),
        ((12, 64), P(None, "fsdp")),
        ((3, 3, 16, 32), P(None, None, None, "fsdp")),
        ((66, 64), P(None, "fsdp")),  # the largest axis that 4 divides, not the largest
        ((7, 9, 4), P(None, None, "fsdp")),
        ((7, 9), P()),
        ((8,), P("fsdp")),
        ((), P()),
    ],
)
def test_the_largest_axis_that_divides_is_split(mesh, shape, expected):
    assert sharding.spec("a", leaf(*shape), rules=EVERYTHING, mesh=mesh, min_bytes=0) == expected


@pytest.mark.parametrize(("min_bytes", "expected"), [(4 * 64, P("fsdp")), (4 * 64 + 1, P())])
def test_small_leaves_stay_whole(mesh, min_bytes, expected):
    found = sharding.spec("a", leaf(64), rules=EVERYTHING, mesh=mesh, min_bytes=min_bytes)
    assert found == expected


def test_the_first_rule_that_matches_decides(mesh):
    rules = (("unet/conv_in/.*", "replicate"), ("unet/.*", "fsdp"))
    flat = {"unet/conv_in/kernel": leaf(64), "unet/conv_out/kernel": leaf(64)}
    found = sharding.shardings(flat, rules=rules, mesh=mesh, min_bytes=0)
    assert {path: value.spec for path, value in found.items()} == {
        "unet/conv_in/kernel": P(),
        "unet/conv_out/kernel": P("fsdp"),
    }
    with pytest.raises(ValueError, match=r"sharding\.rules: no rule matches 'text/kernel'"):
        sharding.shardings({"text/kernel": leaf(64)}, rules=rules, mesh=mesh, min_bytes=0)


def test_without_fsdp_nothing_is_split():
    mesh = sharding.make_mesh(data=8)
    assert sharding.spec("a", leaf(64), rules=EVERYTHING, mesh=mesh, min_bytes=0) == P()


@pytest.mark.parametrize(
    ("rows", "advice"), [(12, r"Set it to 8 or 16\."), (3, r"Set it to 8\."), (17, "16 or 24")]
)
def test_rows_that_do_not_divide_are_refused_with_the_nearest_that_do(mesh, rows, advice):
    with pytest.raises(ValueError, match=rf"train\.batch_size = {rows} .*8 devices.*{advice}"):
        sharding.check_rows(rows, mesh, key="train.batch_size")


def test_rows_that_divide_are_fine(mesh):
    for rows in (8, 24):
        sharding.check_rows(rows, mesh, key="train.batch_size")


def test_optimizer_state_lies_where_its_parameter_does(mesh):
    params = {"big/kernel": leaf(256, 128), "bias": leaf(3)}
    places = sharding.shardings(params, rules=EVERYTHING, mesh=mesh, min_bytes=0)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    state = {"step": leaf(), "trainable": params, "opt": jax.eval_shape(tx.init, params)}
    found = sharding.like_parameters(state, places, params, mesh)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    by_name = {
        jax.tree_util.keystr(path): value.spec
        for path, value in jax.tree_util.tree_leaves_with_path(found)
    }
    kernels = {name for name in by_name if "big/kernel" in name}
    assert len(kernels) == 3  # itself and two moments
    assert {name for name, spec in by_name.items() if spec == P("fsdp")} == kernels
    assert {by_name[name] for name in by_name.keys() - kernels} == {P()}  # bias, step, counters


def test_a_state_of_another_shape_than_its_parameter_is_not_split(mesh):
    params = {"kernel": leaf(256, 128)}
    places = sharding.shardings(params, rules=EVERYTHING, mesh=mesh, min_bytes=0)
    state = jax.eval_shape(optax.adafactor(1e-3).init, params)  # rows [256] and columns [128]
    shapes = {value.shape for value in jax.tree.leaves(state)}
    assert {(256,), (128,)} <= shapes
    found = sharding.like_parameters(state, places, params, mesh)
    assert {value.spec for value in jax.tree.leaves(found)} == {P()}


def test_put_and_fetch_bring_an_array_back_and_split_it_in_between(mesh, rng):
    array = rng.normal(size=(16, 8)).astype(np.float32)
    by_rows = sharding.put(array, sharding.rows(mesh))
    assert {shard.data.shape for shard in by_rows.addressable_shards} == {(2, 8)}
    assert {shard.index[0].start or 0 for shard in by_rows.addressable_shards} == set(
        range(0, 16, 2)
    )
    whole = sharding.put(array, sharding.replicated(mesh))
    assert {shard.data.shape for shard in whole.addressable_shards} == {(16, 8)}
    places = sharding.shardings({"a": array}, rules=EVERYTHING, mesh=mesh, min_bytes=0)
    quarters = sharding.put(array, places["a"])
    assert {shard.data.shape for shard in quarters.addressable_shards} == {(4, 8)}
    for placed in (by_rows, whole, quarters):
        np.testing.assert_array_equal(sharding.fetch(placed), array)


def test_the_table_counts_leaves_numbers_and_bytes_of_each_way(mesh):
    flat = {"a": leaf(1024, 512), "b": leaf(256, 1024), "c": leaf(5, 3), "d": leaf(2)}
    places = sharding.shardings(flat, rules=EVERYTHING, mesh=mesh, min_bytes=1024)
    rows = [line.split() for line in sharding.table(flat, places).splitlines()]
    assert rows[0] == ["sharding", "leaves", "parameters", "MiB"]
    # 1024·512 numbers of 4 bytes are 2 MiB, split along rows; 256·1024 are 1 MiB, along columns.
    assert sorted(row[-3:] for row in rows[1:]) == [
        ["1", "262,144", "1.0"],
        ["1", "524,288", "2.0"],
        ["2", "17", "0.0"],
    ]
    assert ["fsdp" in " ".join(row) for row in rows[1:]].count(True) == 2
