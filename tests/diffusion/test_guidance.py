import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_jax.diffusion import guidance, schedule


def test_guidance_extrapolates_along_the_line_of_the_two_branches(rng):
    cond, uncond = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(2))
    at = {w: guidance.classifier_free(cond, uncond, w, channels=3) for w in (0.0, 1.0, 7.0)}
    np.testing.assert_array_equal(at[0.0], uncond)
    np.testing.assert_array_equal(at[1.0], cond)
    np.testing.assert_allclose(at[7.0] - uncond, 7 * (cond - uncond), atol=2e-5)


def test_the_learned_variance_is_never_extrapolated(rng):
    cond, uncond = (jnp.asarray(rng.normal(size=(2, 4, 4, 6)), jnp.float32) for _ in range(2))
    guided = guidance.classifier_free(cond, uncond, 10.0, channels=3)
    assert guided.shape == cond.shape
    np.testing.assert_array_equal(guided[..., 3:], cond[..., 3:])
    assert np.abs(guided[..., :3] - cond[..., :3]).max() > 1


@given(
    seed=st.integers(0, 2**32),
    spread=st.floats(0.1, 5),
    ratio=st.floats(0.5, 1),
    max_value=st.floats(1, 4),
)
def test_dynamic_threshold_keeps_images_within_one(seed, spread, ratio, max_value):
    x = np.random.default_rng(seed).normal(0, spread, (3, 5, 4, 3)).astype(np.float32)
    out = np.asarray(guidance.dynamic_threshold(jnp.asarray(x), ratio=ratio, max_value=max_value))
    assert (np.abs(out) <= 1 + 1e-6).all()
    for before, after in zip(x, out, strict=True):
        # numpy's quantile is the reference; within the limit the image is only divided by it.
        limit = np.clip(np.quantile(np.abs(before.astype(np.float64)), ratio), 1, max_value)
        inside = np.abs(before) < limit * (1 - 1e-5)
        np.testing.assert_allclose(after[inside] * limit, before[inside], rtol=1e-5, atol=1e-6)
        outside = np.abs(before) > limit * (1 + 1e-5)
        np.testing.assert_allclose(after[outside], np.sign(before[outside]), rtol=1e-5)


def test_dynamic_threshold_leaves_calm_images_alone_and_judges_each_by_itself(rng):
    calm = rng.uniform(-0.9, 0.9, (1, 4, 4, 3)).astype(np.float32)
    wild = calm * 50
    both = guidance.dynamic_threshold(
        jnp.asarray(np.concatenate([calm, wild])), ratio=0.95, max_value=100.0
    )
    np.testing.assert_array_equal(both[:1], calm)
    alone = guidance.dynamic_threshold(jnp.asarray(wild), ratio=0.95, max_value=100.0)
    np.testing.assert_array_equal(both[1:], alone)


def test_a_threshold_of_the_whole_range_divides_by_the_largest_pixel():
    x = jnp.array([0.5, -4.0, 2.0]).reshape(1, 1, 3, 1)
    out = guidance.dynamic_threshold(x, ratio=1.0, max_value=100.0)
    np.testing.assert_allclose(out.ravel(), [0.125, -1, 0.5])


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("none", {}, [0.5, -4.0, 2.0]),
        ("static", {"clip_sample_range": 1.0}, [0.5, -1.0, 1.0]),
        ("static", {"clip_sample_range": 3.0}, [0.5, -3.0, 2.0]),
        ("dynamic", {"dynamic_thresholding_ratio": 1.0, "sample_max_value": 8.0}, [0.125, -1, 0.5]),
        ("model", {"clip_sample": False}, [0.5, -4.0, 2.0]),
        ("model", {"clip_sample": True, "clip_sample_range": 3.0}, [0.5, -3.0, 2.0]),
        (
            "model",
            {
                "thresholding": True,
                "clip_sample": True,
                "dynamic_thresholding_ratio": 1.0,
                "sample_max_value": 2.0,
            },
            [0.25, -1.0, 1.0],
        ),
    ],
)
def test_thresholds_by_name(name, settings, expected):
    threshold = guidance.THRESHOLDS[name](schedule.from_config(settings))
    x = jnp.array([0.5, -4.0, 2.0]).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(threshold(x).ravel(), expected)


def test_rescaled_guidance_has_the_contrast_of_the_conditional_output(rng):
    cond, uncond = rng.normal(size=(2, 3, 8, 8, 4)).astype(np.float32)
    plain = guidance.classifier_free(cond, uncond, 7.5, channels=3)
    assert (np.std(plain[..., :3], (1, 2, 3)) > 3 * np.std(cond[..., :3], (1, 2, 3))).all()
    whole = guidance.classifier_free(cond, uncond, 7.5, channels=3, rescale=1.0)
    np.testing.assert_allclose(
        np.std(whole[..., :3], (1, 2, 3)), np.std(cond[..., :3], (1, 2, 3)), rtol=1e-5
    )
    half = guidance.classifier_free(cond, uncond, 7.5, channels=3, rescale=0.5)
    np.testing.assert_allclose(half, (np.asarray(plain) + whole) / 2, atol=1e-5)
    np.testing.assert_array_equal(half[..., 3:], cond[..., 3:])  # the variance is not guided
    alone = guidance.classifier_free(cond, uncond, 1.0, channels=3, rescale=0.7)
    np.testing.assert_allclose(alone, cond, atol=1e-6)


def test_guidance_is_on_between_two_shares_of_the_steps():
    times = np.array([900, 700, 700, 500, 500, 300, 300, 100, 100, -1], np.float32)
    visited = jnp.asarray([900.0, 700.0, 500.0, 300.0, 100.0])

    def on(*interval):
        return guidance.in_interval(visited, times, interval).tolist()

    assert on(0.0, 1.0) == [True] * 5
    assert on(0.2, 0.8) == [False, True, True, True, False]
    assert on(0.0, 0.4) == [True, True, False, False, False]
    assert on(0.6, 1.0) == [False, False, False, True, True]
