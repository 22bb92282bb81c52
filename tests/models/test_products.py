"""Products of rounded factors, beside the same by NumPy from factors rounded by ml_dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import families, pipeline
from dreambooth_jax.experiment.parts import loading
from dreambooth_jax.models import layers, products


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def halved(x: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 of each number, float64."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def convolved(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The sum that a convolution of width 3 is, with zeros around the picture, float64."""
    rows, height, width, _ = x.shape
    around = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    found = np.zeros((rows, height, width, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            found += around[:, i : i + height, j : j + width] @ kernel[i, j].astype(np.float64)
    return found


def test_a_layer_rounds_both_factors_and_not_the_sum():
    x, kernel = numbers(0, 2, 5, 40), numbers(1, 40, 24)
    with products.rounded(True):
        found = np.asarray(jax.jit(layers.multiply)(x, kernel))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, halved(x) @ halved(kernel), atol=2e-5)
    # The sum's own rounding to 16 bits would be a hundred times that.
    assert np.abs(found - x.astype(np.float64) @ kernel).max() > 1e-2


@pytest.mark.parametrize(("channels", "rounds"), [(128, True), (127, False)])
def test_a_convolution_of_many_channels_does_too(channels, rounds):
    x, kernel = numbers(0, 2, 6, 5, 128), numbers(1, 3, 3, 128, channels)
    with products.rounded(True):
        found = layers.convolve(x, kernel, stride=1, padding=(1, 1))
    expected = convolved(halved(x), halved(kernel)) if rounds else convolved(x, kernel)
    np.testing.assert_allclose(found, expected, atol=3e-4)


def test_where_gradients_are_taken_nothing_is_rounded():
    x, kernel, wide = numbers(0, 3, 40), numbers(1, 40, 24), numbers(2, 3, 3, 128, 128)
    picture = numbers(3, 1, 4, 6, 128)

    def both(x, kernel, picture, wide):
        convolution = layers.convolve(picture, wide, stride=1, padding=(1, 1))
        return layers.multiply(x, kernel).sum() + convolution.sum()

    with products.rounded(True):
        value, (dx, dkernel, _, dwide) = jax.value_and_grad(both, (0, 1, 2, 3))(
            x, kernel, picture, wide
        )
    exact = (x.astype(np.float64) @ kernel).sum() + convolved(picture, wide).sum()
    assert value == pytest.approx(exact, abs=2e-2)
    np.testing.assert_allclose(dx, np.tile(kernel.sum(1), (3, 1)), atol=1e-4)
    np.testing.assert_allclose(dkernel, np.tile(x.sum(0)[:, None], 24), atol=1e-4)
    # Of the position in the middle of the kernel: every pixel, once.
    np.testing.assert_allclose(dwide[1, 1, :, 0], picture.sum((0, 1, 2)), atol=1e-4)


def test_what_is_not_float32_and_what_is_outside_stays():
    x, kernel = numbers(0, 3, 40), numbers(1, 40, 24)
    with products.rounded(True):
        half = layers.multiply(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(layers.multiply(x, kernel), x.astype(np.float64) @ kernel, atol=1e-4)


def test_a_stage_predicts_nearly_the_same_with_them():
    """The embedded base's prediction differs, by less than 2 % of its size."""
    plain = families.open_stage("embedded", kind="base")
    flat, xt = pipeline.read_weights(plain), numbers(0, 2, 32, 32, 3)
    found = {}
    for rounded in (False, True):
        stage = dataclasses.replace(plain, rounded=rounded)
        text = stage.encode_text(flat, stage.tokens(["a cat", "a fox"]), dtype=jnp.float32)
        predict = jax.jit(stage.predict)
        found[rounded] = np.asarray(predict(flat, xt, jnp.array([100.0, 700.0]), text))
    size = np.sqrt(np.square(found[False]).mean())
    assert 0 < np.sqrt(np.square(found[True] - found[False]).mean()) < 0.02 * size


@pytest.mark.parametrize(
    ("dtype", "chosen", "rounded", "told"),
    [
        ("float32", "float32", False, "float32"),
        ("float32", "bfloat16", True, "float32, products bfloat16"),
        ("bfloat16", "bfloat16", True, "bfloat16"),
    ],
)
def test_the_setting_reaches_all_stages_and_the_records_of_pictures(dtype, chosen, rounded, told):
    c = configs.base_config()
    c.dtype, c.products = dtype, chosen
    plan = configs.resolve(c)
    stages = loading.open_stages(plan)
    assert {kind: own.rounded for kind, own in stages.items()} == {
        "base": rounded,
        "upscaler": rounded,
    }
    assert plan.arithmetic == told
