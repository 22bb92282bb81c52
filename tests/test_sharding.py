import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import collectives
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from toy_stage import optimizer

from dreambooth_jax import config, families, optim, pipeline, sharding
from dreambooth_jax.optim import adam8bit

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))  # tools are scripts, not a package
import architectures

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
        ((64, 1024), P(None, "fsdp")),
        ((64, 512), P("fsdp")),  # 128 of 512 are half a block of 8-bit moments
        ((3, 3, 16, 1280), P(None, None, "fsdp")),
        ((66, 512), P(None, "fsdp")),  # no other axis divides
        ((7, 9, 4), P(None, None, "fsdp")),
        ((7, 9), P()),
        ((8,), P("fsdp")),
        ((), P()),
    ],
)
def test_the_largest_axis_that_divides_is_split(mesh, shape, expected):
    assert sharding.spec("a", leaf(*shape), rules=EVERYTHING, mesh=mesh, min_bytes=0) == expected


UNETS = ("sd15", "sdxl", "if_xl", "if_upscaler")


def published(model: str, folder: Path) -> pipeline.Stage:
    """A published model's networks, by shapes alone."""
    for file, content in architectures.MODELS[model].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(content))
    kind = "upscaler" if model.endswith("upscaler") else "base"
    return families.open_stage(str(folder), kind=kind, shapes_only=True)


@pytest.mark.parametrize("fsdp", [4, 16])
@pytest.mark.parametrize("model", [*architectures.MODELS])
def test_no_block_of_8_bit_moments_of_a_published_network_is_cut(model, fsdp, tmp_path):
    stage = published(model, tmp_path)
    c = config.base_config().sharding
    mesh = SimpleNamespace(shape={"data": 1, "fsdp": fsdp, "tensor": 1})
    for path, leaf_ in stage.abstract.items():
        how = {"rules": stage.family.sharding_rules, "mesh": mesh, "min_bytes": c.min_bytes}
        found = sharding.spec(path, leaf_, heads=stage.heads, **how)
        last = leaf_.shape[-1] if leaf_.shape else 1
        if len(found) == len(leaf_.shape) and last % adam8bit.BLOCK == 0:
            assert found == P() or (last // fsdp) % adam8bit.BLOCK == 0, (path, leaf_.shape, found)


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


@pytest.mark.parametrize(
    ("sizes", "spec"),
    [
        ({"fsdp": 4, "data": 2}, P("fsdp")),
        ({"fsdp": 2, "tensor": 2, "data": 2}, P("fsdp", "tensor")),
    ],
)
def test_scales_of_8_bit_moments_are_split_as_their_codes_are_but_along_the_blocks(sizes, spec):
    mesh = sharding.make_mesh(**sizes)
    params = {"a/first/kernel": leaf(1024, 512)}
    places = sharding.shardings(params, rules=PAIRS, mesh=mesh, min_bytes=0)
    state = jax.eval_shape(optim.make(optimizer("adamw8bit"), num_steps=10).init, params)
    found = sharding.like_parameters(state, places, params, mesh)
    by_shape = {
        value.shape: place.spec
        for value, place in zip(jax.tree.leaves(state), jax.tree.leaves(found), strict=True)
    }
    assert by_shape == {(): P(), (1024, 512): spec, (1024, 2): P("fsdp")}


def test_8_bit_moments_are_updated_where_they_are():
    """Devices tell each other nothing, also where a device's part is no multiple of 256."""
    mesh = sharding.make_mesh(data=1, fsdp=8)
    params = {"wide/kernel": leaf(64, 512), "conv/kernel": leaf(3, 3, 16, 1280)}
    places = sharding.shardings(params, rules=EVERYTHING, mesh=mesh, min_bytes=0)
    tx = optim.make(optimizer("adamw8bit"), num_steps=10)
    state = jax.eval_shape(tx.init, params)
    both = (places, sharding.like_parameters(state, places, params, mesh))
    update = jax.jit(tx.update, in_shardings=(*both, places), out_shardings=both)
    program = update.lower(params, state, params).compile()
    assert collectives.of(program) == []


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


PAIRS = ((".*/first/.*", "columns"), (".*/second/kernel", "rows"), (".*", "fsdp"))


@pytest.mark.parametrize(
    ("path", "shape", "expected"),
    [
        ("a/first/kernel", (64, 32), P("fsdp", "tensor")),
        ("a/second/kernel", (32, 64), P("tensor", "fsdp")),
        ("a/first/kernel", (3, 3, 16, 32), P(None, None, "fsdp", "tensor")),
        ("a/second/kernel", (3, 3, 16, 32), P(None, None, "tensor", "fsdp")),
        ("a/first/bias", (64,), P("tensor")),
        ("a/second/bias", (64,), P("fsdp")),
        ("a/first/kernel", (3, 32), P(None, "tensor")),
        ("a/first/kernel", (64, 33), P("fsdp")),
        ("a/third/kernel", (64, 32), P("fsdp")),
        ("a/attention/first/kernel", (64, 36), P("fsdp", "tensor")),  # six heads of 6 over 2
        ("a/single/first/kernel", (64, 36), P("fsdp")),  # one head stays whole
    ],
)
def test_outputs_or_inputs_of_a_layer_are_split_over_tensor(path, shape, expected):
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    heads = {"a/attention": 6, "a/single": 1}
    how = {"rules": PAIRS, "mesh": mesh, "heads": heads}
    assert sharding.spec(path, leaf(*shape), min_bytes=0, **how) == expected
    # A leaf that is too small for fsdp is split over tensor all the same: its layer's work is.
    small = sharding.spec(path, leaf(*shape), min_bytes=2**30, **how)
    assert [axis for axis in small if axis] == [axis for axis in expected if axis == "tensor"]


def test_without_tensor_columns_and_rows_are_split_as_everything_else(mesh):
    for path in ("a/first/kernel", "a/second/kernel"):
        for shape in ((64, 12), (12, 64), (3, 3, 16, 32), (7, 9)):
            how = {"mesh": mesh, "min_bytes": 0}
            found = sharding.spec(path, leaf(*shape), rules=PAIRS, **how)
            assert found == sharding.spec(path, leaf(*shape), rules=EVERYTHING, **how)


def test_what_does_not_divide_is_named_with_its_size():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    how = {"rules": PAIRS, "mesh": mesh, "min_bytes": 0}
    flat = {"a/first/kernel": leaf(512, 1024), "b/first/kernel": leaf(1024, 512)}
    assert sharding.left_whole(flat, **how) == ""
    told = sharding.left_whole({**flat, "c/kernel": leaf(7, 9)}, heads={"a": 5, "b": 3}, **how)
    over_fsdp, over_tensor = told.splitlines()
    assert "fsdp, which 2 does not divide: 1 leaves" in over_fsdp
    assert "c/kernel (7, 9)" in over_fsdp
    assert "tensor, which 2 does not divide: 2 leaves, 4.0 MiB" in over_tensor
    assert "a/first/kernel (512, 1024), 5 heads" in over_tensor


@pytest.mark.parametrize("model", [name for name in architectures.MODELS if name in UNETS])
def test_published_networks_are_split_in_pairs(model, tmp_path):
    """Each of a pair, by its weights alone: what one makes in parts, the other takes in parts."""
    stage = published(model, tmp_path)
    mesh = sharding.make_mesh(data=4, tensor=2)
    rules = stage.family.sharding_rules
    how = {"rules": rules, "mesh": mesh, "min_bytes": 0, "heads": stage.heads}
    found = sharding.shardings(stage.abstract, **how)
    pairs = {
        "to_q": "to_out/0",
        "to_v": "to_out/0",
        "q_proj": "out_proj",
        "SelfAttention/v": "SelfAttention/o",
        "proj": "../2",
        "fc1": "fc2",
        "wi_1": "wo",
        "conv1": "conv2",
        "linear_1": "linear_2",
    }
    split = 0
    for path, leaf_ in stage.abstract.items():
        for first, second in pairs.items():
            module = path.removesuffix(f"/{first}/kernel")
            if second == "../2":
                module, second = path.removesuffix("/0/proj/kernel"), "2"
            other = f"{module}/{second}/kernel"
            if module == path or other not in stage.abstract:
                continue
            own, its = found[path].spec, found[other].spec
            if stage.heads.get(module, 2) % 2:
                assert own == its == P()
                continue
            assert own[len(leaf_.shape) - 1] == "tensor" and its[len(leaf_.shape) - 2] == "tensor"
            split += 2 * int(np.prod(leaf_.shape))
    whole = sum(int(np.prod(stage.abstract[p].shape)) for p in found if found[p].spec == P())
    total = sum(int(np.prod(x.shape)) for x in stage.abstract.values())
    assert split > total / 2
    assert whole < 0.25 * total
    told = sharding.left_whole(stage.abstract, **how)
    # A VAE's single head, and the 33 and 15 of two of IF's levels.
    assert (told != "") == any(heads % 2 for heads in stage.heads.values())
    assert all(int(heads) % 2 for heads in re.findall(r"(\d+) head", told))


def test_bytes_of_each_device_fall_with_their_number():
    flat = {"kernel": leaf(2048, 1024), "conv": leaf(3, 3, 512, 512), "bias": leaf(512)}
    state = jax.eval_shape(optax.adamw(1e-3).init, flat)
    table = {}
    for count in (1, 2, 4, 8):
        mesh = sharding.make_mesh(data=1, fsdp=count, devices=jax.devices()[:count])
        places = sharding.shardings(flat, rules=EVERYTHING, mesh=mesh, min_bytes=0)
        of_state = sharding.like_parameters(state, places, flat, mesh)
        leaves = [*flat.values(), *jax.tree.leaves(state)]
        where = [*places.values(), *jax.tree.leaves(of_state)]
        table[count] = sum(
            int(np.prod(s.shard_shape(x.shape))) * 4 for x, s in zip(leaves, where, strict=True)
        )
        print(f"{count} device(s): {table[count] / 2**20:.3f} MiB of parameters and Adam's moments")
    numbers = 2048 * 1024 + 3 * 3 * 512 * 512 + 512
    # Three copies of each number, and a counter of steps that every device has.
    assert table == {count: 3 * 4 * numbers // count + 4 for count in table}
