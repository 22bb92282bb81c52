"""Pytrees in a kernel's place: what each stands for, and the bounds of 8 bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from dreambooth_jax import kernels


def low_rank(rng, shape, *, rank=3, scale=0.5, stretched=False):
    *window, fan_in, fan_out = shape
    drawn = [
        jnp.asarray(rng.normal(size=size), jnp.float32)
        for size in (shape, (*window, fan_in, rank), (rank, fan_out), (fan_out,))
    ]
    return kernels.LowRank(*drawn[:3], drawn[3] if stretched else None, scale)


@given(
    kernel=of_numpy.arrays(
        np.float32,
        of_numpy.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_no_value_moves_by_more_than_half_of_its_channels_largest_over_127(kernel):
    rounded = kernels.rounded_to_int8(kernel)
    assert rounded.values.dtype == np.int8
    assert rounded.shape == kernel.shape
    largest = np.abs(np.float64(kernel)).max(tuple(range(kernel.ndim - 1)))
    error = np.abs(np.float64(kernels.fused(rounded)) - kernel)
    # Half a step, and what float32 rounds of the scale and of the product.
    assert (error <= largest / 254 * (1 + 1e-4) + 1e-37).all()
    assert np.abs(rounded.values).max() <= 127


def test_whole_numbers_up_to_127_and_zeros_are_kept_exactly():
    kernel = np.zeros((3, 3), np.float32)
    kernel[:, 0], kernel[:, 1] = [127, -127, 5], [64, 127, -1]
    rounded = kernels.rounded_to_int8(kernel)
    np.testing.assert_array_equal(rounded.scale, [1, 1, 1])
    np.testing.assert_array_equal(kernels.fused(rounded), kernel)


def test_8_bits_by_shape_are_those_of_values():
    kernel = np.ones((3, 3, 4, 5), np.float32)
    found = jax.tree.map(
        lambda x: (x.shape, x.dtype),
        kernels.abstract_int8(jax.ShapeDtypeStruct(kernel.shape, jnp.float32)),
    )
    assert found == jax.tree.map(lambda x: (x.shape, x.dtype), kernels.rounded_to_int8(kernel))


@pytest.mark.parametrize("shape", [(6, 8), (3, 3, 4, 8)])
@pytest.mark.parametrize("of", ["array", "int8", "low rank", "low rank of int8"])
def test_lengths_are_the_norms_of_what_a_kernel_stands_for(of, shape, rng):
    kernel = low_rank(rng, shape)
    if "int8" in of:
        kernel = kernels.LowRank(
            kernels.rounded_to_int8(kernel.kernel), kernel.down, kernel.up, scale=kernel.scale
        )
    kernel = kernel if of.startswith("low") else kernel.kernel
    whole = np.float64(kernels.fused(kernel)).reshape(-1, shape[-1])
    found = jax.jit(kernels.lengths)(kernel)
    np.testing.assert_allclose(found, np.linalg.norm(whole, axis=0), rtol=1e-5)


def test_a_change_that_cancels_its_kernel_has_length_zero_and_no_nan():
    down = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    kernel = jnp.asarray([[0.1, 2.0, 3.0], [4.0, 5.0, 0.7]])
    gone = kernels.lengths(kernels.LowRank(kernel, down, -kernel))
    np.testing.assert_allclose(gone, np.zeros(3), atol=2e-3)  # the root of float32's rounding


def test_the_sum_is_written_out_in_numpy(rng):
    kernel = low_rank(rng, (3, 3, 4, 6), scale=0.25, stretched=True)
    change = 0.25 * np.einsum("hwir,ro->hwio", np.float64(kernel.down), np.float64(kernel.up))
    expected = (np.float64(kernel.kernel) + change) * np.float64(kernel.stretch)
    np.testing.assert_allclose(kernels.fused(kernel), expected, rtol=1e-5, atol=1e-5)
    assert kernel.shape == (3, 3, 4, 6)


@pytest.mark.parametrize("stretched", [False, True])
def test_halves_are_those_of_the_sum(stretched, rng):
    plain = low_rank(rng, (5, 8), stretched=stretched)
    small = kernels.LowRank(
        kernels.rounded_to_int8(plain.kernel), plain.down, plain.up, plain.stretch, plain.scale
    )
    for kernel in (plain, small, small.kernel, plain.kernel):
        found = np.concatenate([kernels.fused(half) for half in kernels.halves(kernel)], -1)
        np.testing.assert_array_equal(found, kernels.fused(kernel))


def test_new_rows_stand_in_their_places(rng):
    table = rng.normal(size=(6, 4)).astype(np.float32)
    rows = jnp.asarray([[1.0] * 4, [2.0] * 4])
    found = np.asarray(kernels.fused(kernels.with_rows(table, rows, [4, 1])))
    np.testing.assert_array_equal(found[[4, 1]], rows)
    np.testing.assert_array_equal(found[[0, 2, 3, 5]], table[[0, 2, 3, 5]])
    np.testing.assert_array_equal(kernels.fused(table), table)
