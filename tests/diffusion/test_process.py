import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_jax.diffusion import path, process, schedule

KINDS = ("linear", "scaled_linear", "squaredcos_cap_v2")
TYPES = schedule.PREDICTION_TYPES


def make(kind: str, prediction_type: str, **settings: object) -> path.BetaTable:
    raw = {"beta_schedule": kind, "prediction_type": prediction_type, **settings}
    return schedule.from_config(raw)


def levels(sched: path.BetaTable, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma in float64, `[B, 1, 1, 1]`."""
    remaining = sched.alphas_cumprod[t][:, None, None, None]
    return np.sqrt(remaining), np.sqrt(1 - remaining)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32), t=st.lists(st.integers(0, 999), min_size=1, max_size=4))
def test_x0_to_output_and_back(kind, prediction_type, seed, t):
    sched = make(kind, prediction_type)
    draw, t = np.random.default_rng(seed), np.array(t)
    x0 = draw.uniform(-1, 1, (len(t), 3, 2, 3)).astype(np.float32)
    noise = draw.normal(size=x0.shape).astype(np.float32)
    xt = process.add_noise(sched, x0, noise, jnp.asarray(t))
    output = process.target(sched, x0, noise, jnp.asarray(t))
    x0_hat, noise_hat = process.readings(sched, output, xt, jnp.asarray(t))
    # A reading divides float32 rounding of xt by alpha (x0) or sigma (noise), never by more.
    alpha, sigma = levels(sched, t)
    rounding = 1e-6 * (1 + np.abs(noise))
    assert (np.abs(x0_hat - x0) <= rounding / alpha).all()
    assert (np.abs(noise_hat - noise) <= rounding / sigma).all()


@pytest.mark.parametrize("prediction_type", TYPES)
def test_readings_solve_the_two_equations_that_define_them(prediction_type, rng):
    # xt = alpha x0 + sigma noise, and the output's own definition: two equations, two unknowns.
    sched, t = make("linear", prediction_type), np.array([0, 120, 700, 999])
    output, xt = rng.normal(size=(2, 4, 3, 3, 2)).astype(np.float32)
    found = process.readings(sched, output, xt, jnp.asarray(t))
    for row, (alpha, sigma) in enumerate(zip(*levels(sched, t), strict=True)):
        alpha, sigma = alpha.item(), sigma.item()
        meaning = {"epsilon": [0, 1], "v_prediction": [-sigma, alpha], "sample": [1, 0]}
        matrix = np.array([[alpha, sigma], meaning[prediction_type]])
        expected = np.linalg.solve(matrix, np.stack([xt[row].ravel(), output[row].ravel()]))
        for reading, want in zip(found, expected, strict=True):
            scale = np.abs(want).max()
            np.testing.assert_allclose(reading[row].ravel(), want, atol=2e-6 * scale)


def test_forward_process_mixes_each_row_at_its_own_time(rng):
    sched, t = make("squaredcos_cap_v2", "epsilon"), np.array([0, 500, 999])
    x0, noise = rng.normal(size=(2, 3, 4, 4, 3)).astype(np.float32)
    alpha, sigma = levels(sched, t)
    found = process.add_noise(sched, x0, noise, jnp.asarray(t))
    np.testing.assert_allclose(found, alpha * x0 + sigma * noise, atol=1e-6)


def test_v_is_the_derivative_of_the_sample_along_the_angle(rng):
    # Salimans & Ho 2022: alpha = cos φ, sigma = sin φ, v = d xt / dφ.
    x0, noise = rng.normal(size=(2, 1, 2, 2, 3))
    sched, t, h = make("linear", "v_prediction"), jnp.array([400]), 1e-6
    angle = np.arccos(np.sqrt(sched.alphas_cumprod[400]))

    def at(phi: float) -> np.ndarray:
        return np.cos(phi) * x0 + np.sin(phi) * noise

    slope = (at(angle + h) - at(angle - h)) / (2 * h)
    v = process.target(sched, jnp.asarray(x0, jnp.float32), jnp.asarray(noise, jnp.float32), t)
    np.testing.assert_allclose(v, slope, atol=1e-5)


def test_pure_noise_is_readable_where_the_prediction_allows_it(rng):
    x0, noise = rng.normal(size=(2, 1, 2, 2, 3)).astype(np.float32)
    t = jnp.array([999])
    for prediction_type in ("v_prediction", "sample"):
        sched = make("linear", prediction_type, rescale_betas_zero_snr=True)
        xt = process.add_noise(sched, x0, noise, t)
        np.testing.assert_array_equal(xt, noise)
        readings = process.readings(sched, process.target(sched, x0, noise, t), xt, t)
        np.testing.assert_allclose(readings[0], x0, atol=1e-6)
        np.testing.assert_allclose(readings[1], noise, atol=1e-6)


@pytest.mark.parametrize(("small", "large"), [(4, 7), (16, 64), (5, 5), (1, 3)])
def test_bilinear_enlargement_is_exact_on_bilinear_functions(small, large):
    # Corners on corners: pixel i of n lies at i/(n-1), so a + bx + cy + dxy is kept exactly.
    def surface(size: int) -> np.ndarray:
        at = np.linspace(0, 1, size) if small > 1 else np.zeros(size)
        x, y = at[None, :, None], at[:, None, None]
        coefficients = np.array([[0.2, -0.3], [1.5, 0.4], [-0.7, 2.0], [0.9, -1.1]])
        a, b, c, d = coefficients
        return (a + b * x + c * y + d * x * y)[None].astype(np.float32)

    found = process.upsample_bilinear(jnp.asarray(surface(small)), (large, large))
    np.testing.assert_allclose(found, surface(large), atol=2e-6)


def test_bilinear_enlargement_interpolates_linearly_between_two_pixels():
    x = jnp.array([0.0, 0.0, 1.0, 0.0]).reshape(1, 1, 4, 1) * jnp.ones((1, 4, 1, 1))
    found = process.upsample_bilinear(x, (4, 7))
    np.testing.assert_allclose(found[0, 3, :, 0], [0, 0, 0, 0.5, 1, 0.5, 0], atol=1e-6)
