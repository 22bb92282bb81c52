"""Orders and moments of the samplers' rules, on data whose solution is known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import (
    IMAGES,
    MEAN,
    SPREAD,
    at_level,
    by_log_snr,
    cosine,
    keys,
    known_denoiser,
    solve,
    within_standard_errors,
)

from dreambooth_jax.diffusion import rules, sampler, schedule

PLAIN = schedule.from_config({"_class_name": schedule.FLOW})
SD3 = {
    "fixed shift": schedule.from_config({"_class_name": schedule.FLOW, "shift": 3.0}),
    "shift by size": schedule.from_config(
        {"_class_name": schedule.FLOW, "use_dynamic_shifting": True}
    ).at(128, 128),
}


@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)]
)
def test_error_falls_at_the_order_of_the_solver(name, order, rng):
    sched = by_log_snr(14.0, 4096)
    z = rng.normal(size=(1, 4, 4, 3))
    counts = [16, 32, 64, 128, 256] if order < 3 else [128, 181, 256, 362]
    errors = []
    for count in counts:
        x = at_level(sched, int(sched.times(count)[0]), z)
        errors.append(np.abs(solve(name, sched, count, x) - (MEAN + SPREAD * z)).max())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(-slope - order) < 0.15 * order, (slope, errors)
    assert errors[-1] < {1: 5e-2, 2: 2e-3, 3: 2e-3}[order]


def exactly_on(sigma, z):
    """The point of the exact trajectory of latent z at a level."""
    return (1 - sigma) * MEAN + np.sqrt((1 - sigma) ** 2 * SPREAD**2 + sigma**2) * z


@pytest.mark.parametrize("kind", SD3)
@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)]
)
def test_error_falls_at_the_order_of_the_solver_between_the_flow_s_own_levels(
    name, order, kind, rng
):
    # The levels that pictures of SD 3 are drawn at, from the one nearest to 0.9 to that nearest to
    # 0.2: without the two steps whose log-SNR is infinite, and enough for the rest to be short.
    denoise, z, errors = known_denoiser(PLAIN, words="flow"), rng.normal(size=(1, 4, 4, 3)), []
    counts = [100, 200, 400, 800] if order < 3 else [100, 150, 220, 320]
    for count in counts:
        levels = SD3[kind].times(count)
        first, last = (int(np.abs(levels - at).argmin()) for at in (0.9, 0.2))
        levels = levels[first : last + 1]
        visited = np.repeat(levels, 2)[1:] if name == "heun" else levels
        start = jnp.asarray(exactly_on(levels[0], z), jnp.float32)
        found = solve(name, PLAIN, count, start, times=visited, denoise=denoise)
        errors.append(np.abs(found - exactly_on(levels[-1], z)).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15 * order, (slope, errors)


def test_stochastic_steps_of_second_order_keep_mean_and_variance_in_fewer_steps():
    x = sampler.first_noise(keys(IMAGES[0], 1), IMAGES[1:])
    within_standard_errors(solve("dpmpp_2m_sde", cosine(), 100, x), MEAN, SPREAD**2)


def test_the_ancestral_step_of_euler_is_that_of_the_posterior():
    # k-diffusion's formulas: sigma_up and sigma_down of sigma / alpha, and the slope in between.
    sched, x = cosine(), jnp.asarray(np.random.default_rng(3).normal(size=(1, 4, 4, 3)))
    times, seen = np.array([700.0, 400.0, 150.0]), []

    def watched(x, x0_hat, noise_hat, step):
        seen.append(step.noise)
        return rules.euler_ancestral(x, x0_hat, noise_hat, step)

    with jax.disable_jit():
        found = sampler.sample(
            known_denoiser(sched), x, keys(1), path=sched, rule=watched, times=times
        )
    expected = np.asarray(x, np.float64)
    for (now, then), noise in zip(itertools.pairwise(times.astype(int)), seen, strict=True):
        remaining = sched.alphas_cumprod[[now, then]]
        before, after = np.sqrt((1 - remaining) / remaining)
        up = np.sqrt(after**2 * (before**2 - after**2) / before**2)
        down = np.sqrt(after**2 - up**2)
        t = jnp.full((1,), float(now))
        x0 = np.asarray(known_denoiser(sched)(jnp.asarray(expected, jnp.float32), t))
        scaled = expected / np.sqrt(remaining[0])
        scaled = scaled + (scaled - x0) / before * (down - before) + up * np.asarray(noise)
        expected = scaled * np.sqrt(remaining[1])
    np.testing.assert_allclose(found, expected, atol=1e-5)
