"""Devices that are not here, and programs for TPUs against sizes that follow from their shapes."""

import importlib.util
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from toy_stage import optimizer

from dreambooth_jax import chips, optim, precompile, sharding
from dreambooth_jax.models import attention
from dreambooth_jax.precompile import gpus

pytestmark = pytest.mark.compilers
tpus = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs libtpu (the extra precompile): it is the compiler",
)
nvidia = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs jax_cuda13_plugin (the extra precompile-gpu): it is the compiler",
)


@nvidia
@pytest.mark.parametrize("name", gpus.GPUS)
def test_gpus_are_known_chips_with_the_description_that_the_compiler_takes(name):
    (device,) = precompile.topology(name)
    chip = chips.of(device)
    assert chip is not None and name.split("-")[0] in chip.name.lower().replace(" ", "")
    assert float(device.compute_capability) == chip.capability
    assert device.core_count == gpus.GPUS[name].cores
    # Two units of float32 do a multiply-add each in a turn: data sheets give the sum.
    units = {8.0: 64}.get(chip.capability, 128)
    assert 2 * units * gpus.GPUS[name].cores * gpus.GPUS[name].clock * 1e9 == pytest.approx(
        FLOAT32[name] * 1e12, rel=0.04
    )


# TFLOP/s of float32 outside of tensor cores, by NVIDIA's data sheets and white papers.
FLOAT32 = {
    "h100": 67,
    "h200": 67,
    "b200": 75,
    "a100-40gb": 19.5,
    "a100-80gb": 19.5,
    "l4": 30.3,
    "l40s": 91.6,
    "rtx3090": 35.6,
    "rtx4090": 82.6,
    "rtx5090": 104.8,
}


@nvidia
def test_gpus_are_found_also_after_jax_looked_for_one_in_vain():
    program = (
        "import jax; jax.devices(); from dreambooth_jax import precompile; "
        "print(precompile.topology('h100')[0].device_kind)"
    )
    told = ("JAX_PLATFORMS", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK")
    env = {k: v for k, v in os.environ.items() if k not in told} | {"TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.startswith("NVIDIA H100"), done.stderr[-2000:]


@nvidia
def test_several_gpus_make_a_mesh_also_of_several_computers():
    assert len(precompile.topology("H100:8")) == 8
    devices = precompile.topology("l4:4", num_slices=2)
    assert len(devices) == 8
    mesh = sharding.make_mesh(data=2, fsdp=4, devices=devices)
    x = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=sharding.rows(mesh))
    square = jax.jit(lambda x: x.T @ x, out_shardings=sharding.replicated(mesh))
    found = precompile.forecast("xᵀx", square, x, devices=devices)
    assert (found.fits, found.device, found.devices) == (True, "L4", 8)
    assert found.arguments == 1024 * 512 // 8 * 4


@nvidia
@pytest.mark.parametrize("name", ["h100:0", "h100:2x2", "l4:many"])
def test_no_number_of_gpus_is_refused_with_examples(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*no number of GPUs.*such as h100:8, of h100"):
        precompile.topology(name)


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [("v5e:2x2", "libtpu", "precompile"), ("h100", "jax_cuda13_plugin", "precompile-gpu")],
)
def test_an_absent_compiler_is_named_with_its_extra(name, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"needs the package {package}.*\[{extra}\]"):
        precompile.topology(name)


@tpus
@pytest.mark.parametrize(
    ("name", "count", "chip"),
    [
        ("v5e:2x2", 4, "v5e"),
        ("v5e:1x1", 1, "v5e"),
        ("v6e:4x4", 16, "v6e"),
        ("v4:2x2x1", 4, "v4"),
        ("v5p:2x2x2", 8, "v5p"),
        ("tpu7x:2x2x1", 8, "half a 7x"),
    ],
)
def test_slices_have_their_devices_and_known_chips(name, count, chip):
    devices = precompile.topology(name)
    assert len(devices) == count
    known = chips.of(devices[0])
    assert known is not None and known.name == chip


@tpus
def test_a_slice_that_does_not_exist_is_refused_with_examples():
    with pytest.raises(ValueError, match=r"precompile.topology = 'v5e:3x5'.*such as v5e:2x2"):
        precompile.topology("v5e:3x5")


@tpus
@pytest.mark.parametrize(
    ("name", "each"),
    [("v5e:2x2", 4), ("v5e:4x4", 16), ("v5e:1x1", 1), ("v4:2x2x1", 4), ("tpu7x:2x2x1", 8)],
)
def test_several_slices_are_as_many_of_one_and_devices_tell_which_they_are_on(name, each):
    devices = precompile.topology(name, num_slices=3)
    assert sorted(device.slice_index for device in devices) == sorted([0, 1, 2] * each)
    mesh = sharding.make_mesh(data=3, fsdp=each, devices=devices)
    assert sharding.describe(mesh) == f"data 3, fsdp {each}, tensor 1; 3 slices along data"


@tpus
def test_a_sum_over_several_slices_has_the_sizes_of_its_shapes():
    devices = precompile.topology("v5e:2x2", num_slices=2)
    mesh = sharding.make_mesh(data=2, fsdp=4, devices=devices)
    x = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=sharding.rows(mesh))
    square = jax.jit(lambda x: x.T @ x, out_shardings=sharding.replicated(mesh))
    found = precompile.forecast("xᵀx", square, x, devices=devices)
    assert (found.fits, found.device, found.devices) == (True, "v5e", 8)
    assert found.arguments == 1024 * 512 // 8 * 4
    assert found.outputs == 512 * 512 * 4
    assert found.operations == 2 * 1024 * 512 * 512 / 8


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(devices=precompile.topology("v5e:2x2"))


@tpus
def test_sizes_of_a_product_are_those_of_its_shapes(mesh):
    x = jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=sharding.rows(mesh))
    w = jax.ShapeDtypeStruct((512, 256), jnp.float32, sharding=sharding.replicated(mesh))
    product = jax.jit(jnp.matmul, out_shardings=sharding.rows(mesh))
    found = precompile.forecast("x @ w", product, x, w, devices=list(mesh.devices.flat))
    rows, weights, answer = 1024 * 512 // 4 * 4, 512 * 256 * 4, 1024 * 256 // 4 * 4
    assert found.fits
    assert found.arguments == rows + weights
    assert found.outputs == answer
    assert found.operations == 2 * 1024 * 512 * 256 / 4
    assert found.moved >= rows + weights + answer
    assert found.least_seconds >= found.moved / 819e9
    assert "x @ w" in precompile.as_table([found])


@tpus
def test_what_is_too_large_is_told_with_its_size(mesh):
    huge = jax.ShapeDtypeStruct((8, 2**29), jnp.float32, sharding=sharding.replicated(mesh))
    doubled = jax.jit(lambda x: 2 * x)
    found = precompile.forecast("2x", doubled, huge, devices=list(mesh.devices.flat))
    assert not found.fits
    assert found.memory == 2 * 16 * 2**30
    assert found.limit == chips.CHIPS["TPU v5 lite"].memory  # the compiler's own word
    assert "NO" in precompile.as_table([found])


@tpus
def test_many_scores_become_a_kernel_on_each_device_s_rows(mesh):
    q = jax.ShapeDtypeStruct((4, 1024, 2, 64), jnp.bfloat16, sharding=sharding.rows(mesh))
    few = jax.ShapeDtypeStruct((4, 77, 2, 64), jnp.bfloat16, sharding=sharding.rows(mesh))
    attend = jax.jit(sharding.traced_for(mesh, attention.attention))
    assert "tpu_custom_call" in attend.trace(q, q, q).lower().as_text()
    assert "tpu_custom_call" not in attend.trace(q, few, few).lower().as_text()
    assert "tpu_custom_call" not in str(jax.make_jaxpr(attention.attention)(q, q, q))


@tpus
@pytest.mark.parametrize(("name", "size"), [("adamw_bf16", 2), ("adamw8bit", 1)])
def test_moments_stay_as_small_as_they_are_are_split_and_updated_in_place(name, size, mesh):
    split = sharding.make_mesh(data=1, fsdp=4, devices=list(mesh.devices.flat))
    shape = (512, 1024)
    tx = optim.make(optimizer(name), num_steps=10)
    weights = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    by_path = {"kernel": NamedSharding(split, P(None, "fsdp"))}
    state = jax.eval_shape(tx.init, weights)
    places = (by_path, sharding.like_parameters(state, by_path, weights, split))
    on = partial(jax.tree.map, lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s))
    weights, state = on((weights, state), places)

    def update(both, grads):
        weights, state = both
        updates, state = tx.update(grads, state, weights)
        return {"kernel": weights["kernel"] + updates["kernel"]}, state

    step = jax.jit(update, donate_argnums=0, out_shardings=places)
    found = precompile.forecast(
        "update", step, (weights, state), weights, devices=list(split.devices.flat)
    )
    part = np.prod(shape) // 4
    # Weights and gradients in 4 bytes, two moments; scales of 256 numbers, and padding.
    all_of_it = 8 + 2 * size
    assert all_of_it * part <= found.arguments <= (all_of_it + 0.2) * part
    # All but the gradients is updated where it is.
    assert found.aliased >= (all_of_it - 4) * part
    assert found.outputs - found.aliased <= 0.05 * part
