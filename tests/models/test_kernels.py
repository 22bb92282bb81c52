"""Attention of every shape that the families have, compiled for TPUs and GPUs, and what it means.

Nothing runs on those devices here. What is checked there: that forward and gradient compile, in
which form, and that no array of whole scores is in the program. What is checked here: that the
lengths which kernels are told make the formula's values.
"""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import targets
from jax.experimental.pallas import tpu as pltpu

from dreambooth_jax import flops, sharding
from dreambooth_jax.models import attention, kernels

pytestmark = pytest.mark.compilers
# What it is -> rows, queries, keys, heads, size of a head.
SHAPES = {
    "SD 1.5 at 64²": (2, 4096, 4096, 8, 40),
    "SD 1.5 at 64², text": (2, 4096, 77, 8, 40),
    "SD 1.5 at 64², text of two windows": (2, 4096, 154, 8, 40),
    "SD 1.5 at 32²": (2, 1024, 1024, 8, 80),
    "SD 1.5 at 16²": (2, 256, 256, 8, 160),
    "SD 1.5 at 16², text": (2, 256, 77, 8, 160),
    "SDXL at 64²": (2, 4096, 4096, 10, 64),
    "SDXL at 32², text": (2, 1024, 77, 20, 64),
    "IF at 32²": (2, 1024, 1101, 22, 64),
    "IF's pooled text": (2, 1, 78, 8, 64),
    "256 keys": (2, 4096, 256, 16, 72),
    "512 keys": (2, 4096, 512, 24, 128),
    "text and image": (1, 4429, 4429, 24, 64),
    "image and text of 32": (1, 4128, 4128, 24, 128),
    "text of 333": (2, 333, 333, 24, 64),
    "text of 589": (2, 589, 589, 24, 64),
    "middle of a VAE": (1, 4096, 4096, 1, 512),
}
BIASED = {  # and the bias's rows and heads
    "CLIP": ((2, 77, 77, 12, 64), (2, 1)),
    "T5, 77": ((2, 77, 77, 64, 64), (2, 64)),
    "T5, 512": ((2, 512, 512, 64, 64), (1, 64)),
    "T5, 589": ((2, 589, 589, 64, 64), (2, 64)),
}
DEVICES = ("v5e:1x1", "h100", "a100-40gb", "l4", "rtx3090")
KERNEL = {"tpu": "tpu_custom_call", "gpu": "__cudnn$fmha"}
MANY = 2**22  # scores of a head that are nowhere to be whole


def gradients(mesh, shape, dtype, *, bias=None):
    """Forward and gradient of a shape, traced for a mesh."""
    rows, queries, keys, heads, size = shape
    on = partial(jax.ShapeDtypeStruct, sharding=sharding.replicated(mesh))
    q, k = (on((rows, length, heads, size), dtype) for length in (queries, keys))
    args = [q, k, k]
    if bias is not None:
        args.append(on((*bias, queries, keys), jnp.float32))

    def total(q, k, v, bias=None):
        return attention.attention(q, k, v, bias=bias).astype(jnp.float32).sum()

    slopes = jax.value_and_grad(total, argnums=tuple(range(len(args))))
    return jax.jit(sharding.traced_for(mesh, slopes)).trace(*args)


def largest(text):
    """Numbers in the largest array of a compiled program."""
    found = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", text)
    return max(np.prod([int(side) for side in sides.split(",")]) for sides in found)


def check(mesh, shape, dtype, *, kernel, bias=None):
    text = gradients(mesh, shape, dtype, bias=bias).lower().compile().as_text()
    calls = text.count(KERNEL[mesh.abstract_mesh.abstract_device.platform])
    assert (calls >= 2) == kernel, calls
    rows, queries, keys, heads, _ = shape
    if queries * keys >= MANY:
        assert largest(text) <= rows * heads * queries * keys / 4


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("device", DEVICES)
def test_every_shape_compiles_with_its_gradient_without_whole_scores(device, shape):
    mesh = targets.mesh_of(device)
    _, queries, keys, _, size = shape
    if "v5e" in device:
        kernel = queries >= 1024 and keys >= 512 and size <= 256
    else:
        kernel = size <= 128
    check(mesh, shape, jnp.bfloat16, kernel=kernel)


@pytest.mark.parametrize(("shape", "bias"), BIASED.values(), ids=BIASED.keys())
@pytest.mark.parametrize("device", DEVICES)
def test_a_bias_compiles_with_its_gradient(device, shape, bias):
    mesh = targets.mesh_of(device)
    kernel = "v5e" not in device and shape[1] >= 512
    check(mesh, shape, jnp.bfloat16, kernel=kernel, bias=bias)


@pytest.mark.parametrize("name", ["SD 1.5 at 64²", "SD 1.5 at 64², text", "text of 333"])
@pytest.mark.parametrize("device", ["v5e:1x1", "h100"])
def test_many_subjects_have_the_kernel_too(device, name):
    mesh = targets.mesh_of(device)
    _, queries, keys, heads, size = SHAPES[name]
    on = partial(jax.ShapeDtypeStruct, dtype=jnp.bfloat16, sharding=sharding.replicated(mesh))
    q, k = (on((3, 2, length, heads, size)) for length in (queries, keys))

    def total(q, k, v):
        return jax.vmap(attention.attention)(q, k, v).astype(jnp.float32).sum()

    slopes = jax.jit(sharding.traced_for(mesh, jax.grad(total, argnums=(0, 1, 2))))
    text = slopes.trace(q, k, k).lower().compile().as_text()
    kernel = "v5e" not in device or (queries >= 1024 and keys >= 512)
    assert (KERNEL[mesh.abstract_mesh.abstract_device.platform] in text) == kernel


@pytest.mark.parametrize("name", ["SD 1.5 at 64²", "text and image", "SD 1.5 at 64², text"])
def test_wide_numbers_have_no_kernel_of_nvidia_s_and_no_whole_scores_either(name):
    check(targets.mesh_of("h100"), SHAPES[name], jnp.float32, kernel=False)


@pytest.mark.parametrize("device", ["v5e:2x2", "h100:4"])
@pytest.mark.parametrize("shape", [(4, 1024, 1101, 6, 64), (4, 1024, 1024, 6, 40)])
def test_devices_have_rows_and_heads_of_their_own(device, shape):
    mesh = targets.mesh_of(device, data=2, tensor=2)
    rows, queries, keys, heads, size = shape
    by_heads = jax.sharding.NamedSharding(mesh, attention.P(("data", "fsdp"), None, "tensor"))
    q, k = (
        jax.ShapeDtypeStruct((rows, length, heads, size), jnp.bfloat16, sharding=by_heads)
        for length in (queries, keys)
    )

    def total(q, k, v):
        return attention.attention(q, k, v).astype(jnp.float32).sum()

    slopes = jax.jit(sharding.traced_for(mesh, jax.grad(total, argnums=(0, 1, 2))))
    text = slopes.trace(q, k, k).lower().compile().as_text()
    assert KERNEL[mesh.abstract_mesh.abstract_device.platform] in text
    assert not re.search(r"all-(gather|to-all|reduce)|collective-permute", text)


@pytest.mark.parametrize("name", ["SD 1.5 at 64², text", "text and image", "IF at 32²"])
@pytest.mark.parametrize("device", ["v5e:1x1", "h100"])
def test_operations_are_those_of_plain_products_whatever_the_form(device, name):
    shape = rows, queries, keys, heads, size = SHAPES[name]
    traced = gradients(targets.mesh_of(device), shape, jnp.bfloat16)
    # Two products forward, four backward (queries, keys, values and probabilities).
    assert flops.count(traced.jaxpr) == 6 * 2 * rows * heads * queries * keys * size


def plain(q, k, v, bias, scale):
    scores = scale * jnp.einsum("blhd,bshd->bhls", q, k) + bias
    return jnp.einsum("bhls,bshd->blhd", jax.nn.softmax(scores), v)


@pytest.mark.parametrize("form", ["cudnn", "flash"])
@pytest.mark.parametrize(("queries", "keys"), [(5, 77), (77, 5), (16, 8), (130, 300)])
def test_lengths_filled_up_give_the_values_and_slopes_of_the_formula(
    form, queries, keys, rng, monkeypatch
):
    q, k, v, pull = (
        jnp.asarray(rng.normal(size=(2, n, 3, 16)), jnp.float32)
        for n in (queries, keys, keys, queries)
    )
    bias = jnp.asarray(rng.normal(size=(1, 3, queries, keys)), jnp.float32)
    bias = jnp.where(jnp.arange(keys) == 3, jnp.finfo(jnp.float32).min, bias)
    if form == "cudnn":  # as its interface says, by XLA's products
        attend = jax.nn.dot_product_attention
        taken = []

        def stand_in(q, k, *args, implementation, **kwargs):
            taken.append((implementation, q.shape[1] % 8, k.shape[1] % 8))
            return attend(q, k, *args, implementation="xla", **kwargs)

        monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
        call = partial(kernels.cudnn, scale=0.2)
    else:
        bias = jnp.zeros((1, 1, 1, 1))  # the kernel has none

        def call(q, k, v, bias):
            return kernels.flash(q, k, v, scale=0.2)

    def total(form, q, k, v, bias):
        answer = form(q, k, v, bias)
        return (answer * pull).sum(), answer

    def run(form):
        slopes = jax.value_and_grad(partial(total, form), argnums=(0, 1, 2, 3), has_aux=True)
        return jax.jit(slopes)(q, k, v, bias)

    with pltpu.force_tpu_interpret_mode():
        (_, found), found_slopes = run(call)
    (_, expected), slopes = run(partial(plain, scale=0.2))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    count = 4 if form == "cudnn" else 3
    for slope, wanted in zip(found_slopes[:count], slopes[:count], strict=True):
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(slope, wanted, atol=1e-5)
    assert form == "flash" or set(taken) == {("cudnn", 0, 0)}


@pytest.mark.parametrize(
    ("length", "block"),
    # 4429: 9 blocks of 512 fill up as many as 12 of 384; 4128: 11 of 384 fill up 96, 9 of 512 480.
    [(4096, 512), (4429, 512), (4128, 384), (1101, 384), (77, 128), (128, 128)],
)
def test_blocks_fill_little_up(length, block):
    assert kernels.block(length) == block
