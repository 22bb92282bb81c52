"""Operations of traced programs against the numbers that their shapes give."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from dreambooth_jax import flops, sharding
from dreambooth_jax.models import attention

A, B = jax.ShapeDtypeStruct((3, 5), jnp.float32), jax.ShapeDtypeStruct((5, 7), jnp.float32)
PRODUCT = 2 * 3 * 5 * 7


def count(function, *args):
    return flops.count(jax.make_jaxpr(function)(*args))


def repeated(a, b):
    return jax.lax.scan(lambda carry, _: (jnp.tanh(a @ b), None), jnp.zeros((3, 7)), None, 11)[0]


def either(a, b):
    return jax.lax.cond(a[0, 0] > 0, lambda: jnp.zeros((3, 7)), lambda: a @ b)


@pytest.mark.parametrize(
    ("function", "products"),
    [
        (lambda a, b: a @ b, 1),
        (lambda a, b: jax.jit(jnp.matmul)(a, b) + 1, 1),
        (repeated, 11),
        (either, 1),
        (jax.value_and_grad(lambda a, b: (a @ b).sum()), 2),
        (jax.value_and_grad(lambda a, b: (a @ b).sum(), argnums=(0, 1)), 3),
        (jax.value_and_grad(jax.checkpoint(lambda a, b: jnp.sin(a @ b).sum()), argnums=1), 3),
    ],
)
def test_products_loops_and_backward_passes(function, products):
    assert count(function, A, B) == pytest.approx(products * PRODUCT)


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 4)])
def test_a_convolution_meets_each_output_with_its_kernel(stride, groups):
    x, kernel = jnp.zeros((2, 8, 8, 12)), jnp.zeros((3, 3, 12 // groups, 16))

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    side = 8 // stride
    assert count(convolve, x, kernel) == 2 * (2 * side * side * 16) * (3 * 3 * 12 // groups)


def test_every_device_of_a_shard_map_counts():
    mesh = sharding.make_mesh(data=4, devices=jax.devices()[:4])
    a, b = jnp.zeros((8, 5)), jnp.zeros((5, 7))
    split = jax.shard_map(
        jnp.matmul, mesh=mesh, in_specs=(P(sharding.AXES), P()), out_specs=P(sharding.AXES)
    )
    assert count(split, a, b) == 2 * 8 * 5 * 7


@pytest.mark.parametrize(("queries", "keys"), [(1024, 1024), (1101, 600)])
def test_the_attention_kernel_counts_as_the_plain_products(queries, keys):
    q, k = (jax.ShapeDtypeStruct((2, n, 3, 40), jnp.bfloat16) for n in (queries, keys))

    def total(q, k, v):
        return attention.FORMS["pallas"](q, k, v, None, 1.0).astype(jnp.float32).sum()

    product = 2 * 2 * 3 * queries * keys * 40
    assert count(total, q, k, k) == pytest.approx(2 * product, rel=1e-9)
    # Forward, then those for queries, keys, values and probabilities.
    assert count(jax.grad(total, argnums=(0, 1, 2)), q, k, k) == pytest.approx(6 * product)
