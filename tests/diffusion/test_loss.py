import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from readings import denoised

from dreambooth_jax.diffusion import loss, path, process, schedule

TYPES = schedule.PREDICTION_TYPES


def make(prediction_type: str, **settings: object) -> path.BetaTable:
    raw = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": prediction_type, **settings}
    return schedule.from_config(raw)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_weighs_the_error_of_x0_by_the_smaller_of_snr_and_gamma(
    prediction_type, gamma, rng
):
    # Hang et al. 2023, section 3.4: the weight of ‖x0 - x0_hat‖² is min(SNR, γ), always.
    sched, t = make(prediction_type), np.array([0, 20, 300, 500, 800, 990])
    x0, noise, output = rng.normal(size=(3, len(t), 3, 3, 2))
    found = loss.denoising(
        sched,
        jnp.asarray(output, jnp.float32),
        x0=jnp.asarray(x0, jnp.float32),
        noise=jnp.asarray(noise, jnp.float32),
        t=jnp.asarray(t),
        min_snr_gamma=gamma,
    )
    for row, remaining in enumerate(sched.alphas_cumprod[t]):
        alpha, sigma = np.sqrt(remaining), np.sqrt(1 - remaining)
        xt = alpha * x0[row] + sigma * noise[row]
        x0_hat = denoised(prediction_type, output[row], xt, alpha, sigma)
        expected = min(remaining / (1 - remaining), gamma) * np.mean((x0_hat - x0[row]) ** 2)
        np.testing.assert_allclose(found[row], expected, rtol=2e-5)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_min_snr_at_pure_noise_is_zero_not_nan(prediction_type):
    sched = make(prediction_type, rescale_betas_zero_snr=True)
    assert loss.min_snr_weight(sched, jnp.array([999]), 5.0) == 0


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_loss_is_zero_for_the_right_answer_and_one_for_an_error_of_one(prediction_type, rng):
    sched, t = make(prediction_type), jnp.array([10, 990])
    x0, noise = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(2))
    right = process.target(sched, x0, noise, t)
    for off in (0.0, 1.0):
        found = loss.denoising(sched, right + off, x0=x0, noise=noise, t=t)
        np.testing.assert_allclose(found, [off, off], atol=1e-6)


def test_a_learned_variance_gets_no_gradient_from_the_denoising_loss(rng):
    sched, t = make("epsilon"), jnp.array([10, 990])
    x0, noise = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(2))
    output = jnp.asarray(rng.normal(size=(2, 4, 4, 6)), jnp.float32)
    gradient = jax.grad(lambda out: loss.denoising(sched, out, x0=x0, noise=noise, t=t).sum())(
        output
    )
    assert (np.asarray(gradient[..., 3:]) == 0).all()
    assert (np.asarray(gradient[..., :3]) != 0).all()


def test_weights_of_pixels_make_a_weighted_mean_by_hand():
    # Errors 1, 2 on top, 3, 4 below: squares 1, 4, 9, 16. Weights 1, 0 and 0.5, 0.5.
    output = jnp.asarray([[[[1.0], [2.0]], [[3.0], [4.0]]]])
    zero, t = jnp.zeros_like(output), jnp.array([300])
    weights = jnp.asarray([[[[1.0], [0.0]], [[0.5], [0.5]]]])

    def found(output, weights):
        sched = make("epsilon")
        return loss.denoising(sched, output, x0=zero, noise=zero, t=t, pixel_weights=weights)[0]

    np.testing.assert_allclose(found(output, weights), (1 + 0.5 * 9 + 0.5 * 16) / 2, rtol=1e-6)
    np.testing.assert_allclose(found(output, 7 * weights), 13.5 / 2, rtol=1e-6)
    np.testing.assert_allclose(found(output, jnp.ones_like(weights)), 30 / 4, rtol=1e-6)
    slope = jax.grad(found)(output, weights)[0, :, :, 0]
    np.testing.assert_allclose(slope, [[2 / 2, 0], [2 * 3 * 0.5 / 2, 2 * 4 * 0.5 / 2]], rtol=1e-6)
    assert slope[0, 1] == 0  # exactly: what lies outside is not felt at all


def test_a_bfloat16_output_is_compared_in_float32(rng):
    sched, t = make("epsilon"), jnp.array([10])
    noise = jnp.asarray(rng.normal(size=(1, 32, 32, 3)), jnp.float32)
    output = noise.astype(jnp.bfloat16)
    found = loss.denoising(sched, output, x0=jnp.zeros_like(noise), noise=noise, t=t)
    assert found.dtype == jnp.float32
    exact = np.mean((np.asarray(output, np.float64) - np.asarray(noise, np.float64)) ** 2)
    np.testing.assert_allclose(found[0], exact, rtol=1e-4)


ROWS = st.lists(st.booleans(), min_size=1, max_size=12)


@given(is_prior=ROWS, weight=st.floats(0, 10), seed=st.integers(0, 2**32))
def test_prior_loss_is_the_mean_over_subject_rows_plus_lambda_times_that_over_prior_rows(
    is_prior, weight, seed
):
    per_example = np.random.default_rng(seed).uniform(0, 5, len(is_prior))
    mask = np.array(is_prior)
    subject = per_example[~mask].mean() if (~mask).any() else 0.0
    prior = per_example[mask].mean() if mask.any() else 0.0
    weights = loss.row_weights(jnp.asarray(mask), weight)
    total, parts = loss.with_prior(jnp.asarray(per_example, jnp.float32), weights)
    np.testing.assert_allclose(total, subject + weight * prior, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts["loss/subject"], subject, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(parts["loss/prior"], prior, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_with_lambda_zero_prior_rows_do_not_matter(prediction_type, gamma, rng):
    sched, t = make(prediction_type), jnp.array([5, 300, 600, 900])
    is_prior = jnp.array([False, True, False, True])
    given = jnp.asarray(rng.normal(size=(3, 4, 3, 3, 2)), jnp.float32)
    other = jnp.asarray(rng.normal(size=given.shape), jnp.float32)
    changed = jnp.where(is_prior[None, :, None, None, None], other, given)

    def total(output, x0, noise, weight):
        per = loss.denoising(sched, output, x0=x0, noise=noise, t=t, min_snr_gamma=gamma)
        return loss.with_prior(per, loss.row_weights(is_prior, weight))[0]

    value, gradient = jax.value_and_grad(total)(*given, 0.0)
    value_changed, gradient_changed = jax.value_and_grad(total)(*changed, 0.0)
    np.testing.assert_array_equal(value, value_changed)
    np.testing.assert_array_equal(gradient, gradient_changed)
    assert (np.asarray(gradient)[np.array(is_prior)] == 0).all()
    # The same change is felt as soon as λ is not zero.
    assert total(*given, 1.0) != total(*changed, 1.0)


def test_the_loss_of_parts_of_a_batch_adds_up_to_that_of_the_whole(rng):
    # Gradient accumulation and sharding cut rows anywhere; weights belong to the whole batch.
    per_example = jnp.asarray(rng.uniform(0, 5, 8), jnp.float32)
    is_prior = jnp.array([0, 1, 1, 0, 0, 0, 1, 0], bool)
    weights = loss.row_weights(is_prior, 0.7)
    whole, _ = loss.with_prior(per_example, weights)
    pieces = 0.0
    for rows in (slice(0, 1), slice(1, 4), slice(4, 8)):
        cut = {name: value[rows] for name, value in weights.items()}
        pieces += loss.with_prior(per_example[rows], cut)[0]
    np.testing.assert_allclose(whole, pieces, rtol=1e-6)
