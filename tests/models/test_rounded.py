"""Products of rounded factors, beside the same by NumPy from factors rounded by ml_dtypes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import families, generate, pipeline
from dreambooth_jax.experiment.parts import loading
from dreambooth_jax.experiment.parts.model import settings_of
from dreambooth_jax.models import layers, rounded


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
    with rounded.products(True):
        found = np.asarray(jax.jit(layers.multiply)(x, kernel))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, halved(x) @ halved(kernel), atol=2e-5)
    # The sum's own rounding to 16 bits would be a hundred times that.
    assert np.abs(found - x.astype(np.float64) @ kernel).max() > 1e-2


@pytest.mark.parametrize(("channels", "rounds"), [(256, True), (255, False)])
def test_a_convolution_of_many_channels_does_too(channels, rounds):
    x, kernel = numbers(0, 2, 6, 5, 256), numbers(1, 3, 3, 256, channels)
    with rounded.products(True):
        found = layers.convolve(x, kernel, stride=1, padding=(1, 1))
    expected = convolved(halved(x), halved(kernel)) if rounds else convolved(x, kernel)
    np.testing.assert_allclose(found, expected, atol=3e-4)


def test_what_is_not_float32_and_what_is_outside_stays():
    x, kernel = numbers(0, 3, 40), numbers(1, 40, 24)
    with rounded.products(True):
        half = layers.multiply(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(layers.multiply(x, kernel), x.astype(np.float64) @ kernel, atol=1e-4)


def traced(settings: generate.Settings) -> str:
    """The program that draws two pictures with the embedded base, as text."""
    stage = families.open_stage("embedded", kind="base")
    flat = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in stage.abstract.items()}
    tokens = stage.tokens(["", "a cat"])
    table = jax.eval_shape(lambda p: stage.encode_text(p, tokens, dtype=jnp.float32), flat)
    rows = {"prompt": np.ones(2, np.int32), "seed": np.zeros(2, np.uint32)}
    draw = functools.partial(generate.sample_batch, stage=stage, settings=settings)
    return str(jax.make_jaxpr(draw)(flat, table, rows))


def test_a_sampler_has_such_products_where_its_settings_say_so():
    plain = generate.Settings(name="ddim", num_steps=2, guidance_scale=2.0)
    assert "bf16" not in traced(plain)
    assert "preferred_element_type=float32" in (
        text := traced(dataclasses.replace(plain, products="bfloat16"))
    )
    assert "bf16" in text
    assert not rounded.are_on(jnp.zeros(1))  # and nothing after it


def test_a_prediction_is_nearly_the_same_with_them():
    """The embedded base's prediction differs, by less than 2 % of its size."""
    stage = families.open_stage("embedded", kind="base")
    flat, xt = pipeline.read_weights(stage), numbers(0, 2, 32, 32, 3)
    text = stage.encode_text(flat, stage.tokens(["a cat", "a fox"]), dtype=jnp.float32)
    found = {}
    for on in (False, True):

        @jax.jit
        def predict(flat, xt, t, text, on=on):
            with rounded.products(on):
                return stage.predict(flat, xt, t, text)

        found[on] = np.asarray(predict(flat, xt, jnp.array([100.0, 700.0]), text))
    size = np.sqrt(np.square(found[False]).mean())
    assert 0 < np.sqrt(np.square(found[True] - found[False]).mean()) < 0.02 * size


def test_the_setting_reaches_the_samplers_of_all_stages_and_the_records_of_pictures():
    for chosen in ("float32", "bfloat16"):
        c = configs.base_config()
        c.sampler.products = chosen
        plan = configs.resolve(c)
        for stage in loading.open_stages(plan).values():
            settings = settings_of(plan, stage)
            assert settings.products == chosen
            # Pictures that were drawn before there was the setting are known by the others.
            assert settings.told().get("products") == (None if chosen == "float32" else chosen)
