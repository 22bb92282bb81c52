"""Which form of attention a device gets, and the Pallas kernel against plain softmax."""

from functools import partial
from types import SimpleNamespace

import collectives
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dreambooth_jax import sharding
from dreambooth_jax.models import attention, blockwise

LATENT = (2, 4096, 8, 40)  # the queries of Stable Diffusion at 64²
TPU = ("tpu", "TPU v5 lite", 1)
CPU = ("cpu", "cpu", 1)
HOPPER = ("gpu", "NVIDIA H100 80GB HBM3", 132)
GEFORCE = ("gpu", "NVIDIA GeForce RTX 3090", 82)
VOLTA = ("gpu", "Tesla V100-SXM2-16GB", 80)


def asked_on(platform, kind, cores, *args, data=1, tensor=1, **kwargs):
    device = AbstractDevice(device_kind=kind, num_cores=cores, platform=platform)
    mesh = AbstractMesh(
        (data, 1, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device
    )
    with jax.sharding.use_abstract_mesh(mesh):
        return attention.chosen(*args, **kwargs)


@pytest.mark.parametrize(
    ("device", "shape", "keys", "form"),
    [
        (TPU, LATENT, 4096, "pallas"),
        (TPU, LATENT, 77, "xla"),  # the text: few keys
        (TPU, (2, 256, 8, 160), 256, "xla"),
        (TPU, (2, 1024, 22, 64), 1101, "pallas"),  # DeepFloyd IF's text and image
        (TPU, (2, 4096, 1, 512), 4096, "blockwise"),  # the middle of a VAE
        (TPU, (2, 1100, 8, 64), 1100, "pallas"),  # queries that fill no whole block
        (HOPPER, LATENT, 4096, "cudnn"),
        (HOPPER, LATENT, 77, "cudnn"),
        (HOPPER, (2, 1, 8, 64), 78, "cudnn"),
        (GEFORCE, LATENT, 4096, "cudnn"),
        (HOPPER, (2, 256, 8, 160), 256, "xla"),  # heads wider than the kernel's
        (HOPPER, (2, 4096, 1, 512), 4096, "blockwise"),
        (VOLTA, LATENT, 4096, "blockwise"),  # before Ampere
        (VOLTA, LATENT, 77, "xla"),
        (("gpu", "AMD Instinct MI300X", 304), LATENT, 4096, "blockwise"),
        (CPU, LATENT, 4096, "blockwise"),
        (CPU, (2, 4099, 8, 40), 4099, "blockwise"),  # queries that no block divides
        (CPU, (2, 64, 8, 40), 64, "whole"),
    ],
)
def test_the_device_in_context_chooses(device, shape, keys, form):
    assert asked_on(*device, shape, keys, jnp.bfloat16, plain=True) == form


def test_a_bias_rows_that_do_not_divide_and_wide_numbers_have_forms_of_their_own():
    assert asked_on(*TPU, LATENT, 4096, jnp.bfloat16, plain=False) == "by head"
    assert asked_on(*TPU, LATENT, 77, jnp.bfloat16, plain=False) == "xla"
    assert asked_on(*TPU, LATENT, 4096, jnp.bfloat16, plain=True, data=4) == "by head"
    assert asked_on(*TPU, LATENT, 4096, jnp.bfloat16, plain=True, data=2, tensor=4) == "pallas"
    assert asked_on(*HOPPER, LATENT, 4096, jnp.bfloat16, plain=True, data=4) == "by head"
    assert asked_on(*HOPPER, LATENT, 4096, jnp.float32, plain=True) == "blockwise"
    assert asked_on(*HOPPER, (2, 512, 64, 64), 512, jnp.bfloat16, plain=False) == "cudnn"
    # Few scores are not worth rounding a bias.
    assert asked_on(*HOPPER, (2, 77, 12, 64), 77, jnp.bfloat16, plain=False) == "xla"
    assert asked_on(*CPU, LATENT, 4096, jnp.float32, plain=False) == "by head"
    assert asked_on(*CPU, LATENT, 4096, jnp.float32, plain=True, data=4) == "by head"


def test_a_gpu_of_no_table_is_asked_itself_and_only_that_kind(monkeypatch):
    here = [SimpleNamespace(device_kind="NVIDIA A10G", compute_capability="8.6")]
    monkeypatch.setattr(jax, "local_devices", lambda: here)
    assert asked_on("gpu", "NVIDIA A10G", 80, LATENT, 77, jnp.bfloat16, plain=True) == "cudnn"
    assert asked_on("gpu", "Tesla T4", 40, LATENT, 77, jnp.bfloat16, plain=True) == "xla"


@pytest.mark.parametrize(
    ("form", "keys", "split"),
    [
        ("pallas", 128, {}),  # whole blocks
        ("pallas", 150, {"data": 2}),  # the last one filled up, rows on two devices
        ("pallas", 128, {"data": 2, "tensor": 2}),  # and heads
        ("blockwise", 150, {}),
        ("blockwise", 128, {"data": 2, "tensor": 2}),
        ("blockwise odd", 77, {}),  # the last queries filled up
    ],
)
def test_parts_at_a_time_and_their_gradients_are_those_of_plain_softmax(
    form, keys, split, rng, monkeypatch
):
    monkeypatch.setattr(blockwise, "_QUERIES", 64)  # two blocks or three
    form, _, odd = form.partition(" ")
    q = jnp.asarray(rng.normal(size=(2, 133 if odd else 128, 2, 40)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, keys, 2, 40)), jnp.float32) for _ in range(2))
    pull = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def total(form, q, k, v):
        answer = form(q, k, v, None, 40**-0.5)
        return (answer * pull).sum(), answer

    def run(form):
        return jax.jit(jax.value_and_grad(partial(total, form), argnums=(0, 1, 2), has_aux=True))

    kernel = run(attention.FORMS[form])
    if split:
        devices = jax.devices()[: np.prod([*split.values()])]
        mesh = sharding.make_mesh(**split, devices=devices)
        rows = sharding.rows(mesh)
        kernel = jax.jit(sharding.traced_for(mesh, kernel), in_shardings=rows)
    with pltpu.force_tpu_interpret_mode():
        (_, found), slopes = kernel(q, k, v)
    (_, expected), expected_slopes = run(attention.FORMS["whole"])(q, k, v)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for slope, wanted in zip(slopes, expected_slopes, strict=True):
        assert np.abs(wanted).max() > 0.05
        np.testing.assert_allclose(slope, wanted, atol=1e-5)


@pytest.mark.parametrize("tensor", [1, 2])
def test_one_head_after_the_other_is_plain_softmax_also_where_devices_share_heads(tensor, rng):
    q = jnp.asarray(rng.normal(size=(2, 6, 4, 3)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, 5, 4, 3)), jnp.float32) for _ in range(2))
    bias = jnp.asarray(rng.normal(size=(1, 4, 6, 5)), jnp.float32)
    mesh = sharding.make_mesh(data=1, tensor=tensor, devices=jax.devices()[:tensor])
    by_heads = NamedSharding(mesh, P(None, None, "tensor"))
    form = sharding.traced_for(mesh, lambda *args: attention.FORMS["by head"](*args, 0.5))
    program = jax.jit(form).lower(*jax.device_put((q, k, v), by_heads), bias).compile()
    found = program(*jax.device_put((q, k, v), by_heads), bias)
    scores = 0.5 * np.einsum("blhd,bshd->bhls", q, k) + bias
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, np.einsum("bhls,bshd->blhd", shares, v), atol=1e-5)
    assert collectives.of(program) == []  # each device has its own heads
