"""The straight path from data to noise: levels against published tables, draws, samplers, loss.

With x0 ~ N(m, s²) per pixel and V = (1-σ)² s² + σ²: E[x0 | xt] = m + (1-σ) s²/V (xt - (1-σ) m), and
the ODE of the flow carries noise z at σ = 1 to m + s z.
"""

import dataclasses
import itertools
import math
import statistics
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import loss, path, process, sampler, schedule

FILE = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
MEAN, SPREAD = 0.7, 0.3
ALL = {"steps": (0, 999), "density": path.Density()}


def flow(**settings: object) -> path.Flow:
    return schedule.from_config({**FILE, **settings})


def test_a_level_is_the_share_of_noise_and_the_network_is_told_thousandths(rng):
    sigma = jnp.array([0.0, 0.25, 0.9884, 1.0])
    alpha, found = flow().alpha_sigma(sigma)
    np.testing.assert_array_equal(found, sigma)
    np.testing.assert_allclose(alpha, [1, 0.75, 0.0116, 0], atol=1e-7)
    np.testing.assert_allclose(flow().told(sigma), [0, 250, 988.4, 1000], rtol=1e-6)
    np.testing.assert_allclose(flow().snr(sigma)[1:], [9, (0.0116 / 0.9884) ** 2, 0], rtol=1e-5)
    assert np.isfinite(flow().snr(sigma)[0])


def test_the_network_predicts_the_velocity_and_both_ends_are_readable(rng):
    x0, noise = rng.normal(size=(2, 5, 3, 2, 3)).astype(np.float32)
    t = jnp.array([0.0, 1e-3, 0.5, 0.999, 1.0])
    xt = process.add_noise(flow(), x0, noise, t)
    np.testing.assert_array_equal(xt[0], x0[0])
    np.testing.assert_array_equal(xt[-1], noise[-1])
    velocity = process.target(flow(), x0, noise, t)
    np.testing.assert_array_equal(velocity, noise - x0)
    later = process.add_noise(flow(), x0, noise, t - 0.25)
    np.testing.assert_allclose((xt - later) / 0.25, velocity, atol=1e-5)  # d xt / dσ
    x0_hat, noise_hat = process.readings(flow(), velocity, xt, t)
    np.testing.assert_allclose(x0_hat, x0, atol=1e-6)
    np.testing.assert_allclose(noise_hat, noise, atol=1e-6)


# ---- Levels of samplers


PUBLISHED = {  # first levels, and the last two before 0
    "SD 3": ({"shift": 3.0}, 28, [1, 0.987381, 0.974108], [0.110906, 0.008929]),
    "schnell": ({"spacing": "trailing"}, 4, [1, 0.75], [0.5, 0.25]),
    "FLUX.1 dev": (
        {"use_dynamic_shifting": True, "spacing": "trailing", "shift": 3.0},
        28,
        [1, 0.988409, 0.976222],
        [0.195455, 0.104721],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_levels(name):
    settings, count, first, last = PUBLISHED[name]
    settings = dict(settings)
    spacing = settings.pop("spacing", "linspace")
    sched = dataclasses.replace(flow(**settings), timestep_spacing=spacing).at(128, 128)
    times = sched.times(count)
    assert times.dtype == np.float32
    assert len(times) == count + 1
    assert (np.diff(times) < 0).all()
    np.testing.assert_allclose(times[: len(first)], first, atol=6e-7)
    np.testing.assert_allclose(times[-3:], [*last, 0], atol=6e-7)


@pytest.mark.parametrize(
    ("pixels", "shift"), [(256, 1.649), (512, 1.878), (768, 2.332), (1024, 3.158), (1536, 7.51)]
)
def test_the_shift_grows_with_the_tokens(pixels, shift):
    sched = flow(use_dynamic_shifting=True).at(pixels // 8, pixels // 8)
    assert sched.shift_of() == pytest.approx(shift, rel=2e-3)
    # As many tokens in another shape are shifted as much.
    assert (
        sched.shift_of() == flow(use_dynamic_shifting=True).at(pixels // 4, pixels // 16).shift_of()
    )


def test_a_shift_moves_the_logit_of_every_level():
    u = np.linspace(1, 0.1, 10)[1:]
    sched = dataclasses.replace(flow(shift=3.0), timestep_spacing="trailing")
    levels = np.float64(sched.times(10)[1:-1])
    np.testing.assert_allclose(logit(levels) - logit(u), np.log(3), atol=1e-5)


def test_a_terminal_level_is_the_last_one_before_the_clean_end():
    times = flow(shift=2.0, shift_terminal=0.1).times(7)
    assert times[0] == 1
    assert times[-2] == pytest.approx(0.1)
    plain = flow(shift=2.0).times(7)
    ratio = (1 - times[1:-1].astype(float)) / (1 - plain[1:-1].astype(float))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_a_size_is_asked_for_where_the_shift_depends_on_it():
    with pytest.raises(ValueError, match=r"call at\(height, width\)"):
        flow(use_dynamic_shifting=True).times(4)


# ---- Levels of training


def drawn(density: path.Density, *, shift: float = 3.0, steps=(0, 999), count=20_000) -> np.ndarray:
    draw = partial(flow(shift=shift).draw, steps=steps, density=density)
    return np.asarray(jax.jit(lambda key: draw(key, (count,)))(jax.random.key(3)), np.float64)


def logit(x: np.ndarray) -> np.ndarray:
    return np.log(x / (1 - x))


def is_uniform(p: np.ndarray) -> None:
    """Kolmogorov's statistic at a risk of 1e-4."""
    p = np.sort(p)
    ends = np.arange(len(p) + 1) / len(p)
    distance = max((p - ends[:-1]).max(), (ends[1:] - p).max())
    assert distance < 2.23 / math.sqrt(len(p)), distance


@pytest.mark.parametrize(("mean", "spread", "shift"), [(0, 1, 3.0), (0.5, 1, 1.0), (-1, 0.5, 1.9)])
def test_logit_normal_levels_are_normal_in_the_logit(mean, spread, shift):
    levels = drawn(path.Density("logit_normal", mean=mean, spread=spread), shift=shift)
    z = (logit(levels) - mean - math.log(shift)) / spread
    is_uniform(np.array([statistics.NormalDist().cdf(x) for x in z]))


def test_a_positive_mean_draws_noisier_levels():
    # Esser et al. 2024, section 3.1: the median of σ is sigmoid(m).
    levels = drawn(path.Density("logit_normal", mean=0.5, shift=1.0))
    assert np.median(levels) == pytest.approx(0.622, abs=0.01)


def test_published_quartiles():
    # Esser et al. 2024's training of SD 3: logit-normal, then shift 3; and uniform with shift 3.
    quartiles = [25, 50, 75]
    found = np.percentile(drawn(path.Density(), count=60_000), quartiles)
    np.testing.assert_allclose(found, [0.605, 0.75, 0.855], atol=0.01)
    found = np.percentile(drawn(path.Density("uniform"), count=60_000), quartiles)
    np.testing.assert_allclose(found, [0.50, 0.75, 0.90], atol=0.01)


def test_cosmap_levels_have_their_closed_distribution():
    # Density 2 / (π (1 - 2u + 2u²)); its integral is 2/π·arctan(u / (1 - u)).
    u = drawn(path.Density("cosmap", shift=1.0))
    is_uniform(2 / np.pi * np.arctan(u / (1 - u)))


@pytest.mark.parametrize("scale", [-1.0, 0.5, 1.29, 1.75])
def test_mode_levels_have_their_distribution(scale):
    # u = 1 - p - s (cos²(π p / 2) - 1 + p) for uniform p falls in p: its table is the distribution.
    u = drawn(path.Density("mode", scale=scale, shift=1.0))
    p = np.linspace(0, 1, 100_001)
    table = 1 - p - scale * (np.cos(np.pi / 2 * p) ** 2 - 1 + p)
    assert (np.diff(table) <= 1e-12).all()
    is_uniform(np.interp(u, table[::-1], 1 - p[::-1]))


@pytest.mark.parametrize("name", list(path.DENSITIES))
def test_levels_outside_the_steps_asked_for_are_cut_off_and_no_others(name):
    density = path.Density(name)
    some = drawn(density, steps=(400, 799))
    assert 0.4 <= some.min() < 0.42
    assert 0.78 < some.max() <= 0.8
    whole = drawn(density, count=60_000)
    inside = whole[(whole >= 0.4) & (whole < 0.8)]
    quartiles = [25, 50, 75]
    np.testing.assert_allclose(
        np.percentile(some, quartiles), np.percentile(inside, quartiles), atol=0.01
    )


def test_held_out_levels_are_the_middles_of_equally_probable_parts():
    found = flow(shift=3.0).middles(4, **ALL)
    normal = statistics.NormalDist(math.log(3), 1)
    expected = [1 / (1 + math.exp(-normal.inv_cdf(p))) for p in (0.125, 0.375, 0.625, 0.875)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    table = schedule.from_config({}).middles(2, steps=(600, 799), density=path.Density())
    assert table.tolist() == [650, 750]


def test_a_table_s_draw_is_that_of_whole_time_steps():
    # Exported weights of earlier runs stay what they were: jax's randint, step for step.
    key = jax.random.key(5)
    found = schedule.from_config({}).draw(key, (64,), steps=(3, 2000), density=path.Density())
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, jax.random.randint(key, (64,), 3, 1000))


# ---- Samplers


def known_velocity(x, t):
    sigma = t[:, None, None, None]
    alpha = 1 - sigma
    x0 = MEAN + alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2) * (x - alpha * MEAN)
    noise = (x - alpha * x0) / jnp.maximum(sigma, 1e-9)
    return noise - x0


def solve(
    name: str, sched: path.Flow, count: int, x: np.ndarray, times: np.ndarray | None = None
) -> np.ndarray:
    run = partial(
        sampler.sample,
        known_velocity,
        path=sched,
        rule=sampler.SAMPLERS[name],
        times=sampler.levels(name, sched, count) if times is None else times,
    )
    keys = jax.random.split(jax.random.key(0), len(x))
    return np.asarray(jax.jit(run)(jnp.asarray(x, jnp.float32), keys))


NAMES = [name for name in sampler.SAMPLERS if name not in sampler.TABLES_ONLY]
FLOWS = {
    "plain": flow(),
    "shift 3": flow(shift=3.0),
    "dynamic": flow(use_dynamic_shifting=True).at(128, 128),
}


@pytest.mark.parametrize("kind", FLOWS)
def test_euler_s_error_halves_with_twice_the_steps_and_the_second_order_s_is_smaller(kind, rng):
    z, sched = rng.normal(size=(1, 4, 4, 3)), FLOWS[kind]
    sched = dataclasses.replace(sched, timestep_spacing="trailing")
    exact, counts = MEAN + SPREAD * z, [16, 32, 64, 128]
    errors = {
        name: [np.abs(solve(name, sched, count, z) - exact).max() for count in counts]
        for name in ("ddim", "dpmpp_2m", "heun", "unipc")
    }
    slope = -np.polyfit(np.log(counts), np.log(errors["ddim"]), 1)[0]
    assert 0.9 < slope < 1.05, errors
    for name in ("dpmpp_2m", "heun", "unipc"):
        assert (np.array(errors[name]) < np.array(errors["ddim"])).all(), (name, errors)
        assert errors[name][-1] < 6e-3, (name, errors)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_error_falls_at_the_order_of_the_solver_between_levels_of_even_log_snr(
    name, order, shift, rng
):
    # Without the steps from pure noise and to the clean end, whose log-SNR is infinite.
    z, counts, errors = rng.normal(size=(1, 4, 4, 3)), [128, 256, 512], []

    def on_path(sigma):
        return (1 - sigma) * MEAN + np.sqrt((1 - sigma) ** 2 * SPREAD**2 + sigma**2) * z

    for count in counts:
        u = np.linspace(-1, 1, count + 1)
        levels = 1 / (1 + np.exp(7 * (u + 0.15 * np.sin(np.pi * u)) - math.log(shift)))
        levels = levels.astype(np.float32)
        found = solve(name, flow(), count, on_path(levels[0]), times=levels)
        errors.append(np.abs(found - on_path(levels[-1])).max())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(slope - order) < 0.15 * order, (slope, errors)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FLOWS)
def test_one_step_from_pure_noise_gives_the_mean(name, kind, rng):
    # E[x0 | noise] is the mean of the data; 64 rows, for which log(0) once gave NaN.
    found = solve(name, FLOWS[kind], 1, rng.normal(size=(64, 2, 2, 3)))
    np.testing.assert_allclose(found, MEAN, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 64])
def test_every_sampler_is_finite_from_pure_noise(rows, rng):
    x = rng.normal(size=(rows, 8, 8, 3))
    for name in NAMES:
        assert np.isfinite(solve(name, flow(shift=3.0), 6, x)).all(), name


def test_ddim_is_euler_s_step_along_the_velocity(rng):
    x, sched = rng.normal(size=(1, 4, 4, 3)), flow(shift=3.0)
    found = solve("ddim", sched, 12, x)
    for now, then in itertools.pairwise(sched.times(12)):
        x = x + (then - now) * np.asarray(known_velocity(jnp.float32(x), jnp.full((1,), now)))
    np.testing.assert_allclose(found, x, atol=2e-6)


def test_ancestral_sampling_has_the_moments_that_bayes_rule_gives_it():
    # Each step draws from q(x_s | x_t, x0_hat) of two normal variables: linear, so mean and
    # variance follow from step to step.
    sched, count = flow(), 16
    sigma = np.float64(sched.times(count))
    mean, variance = 0.0, 1.0
    for now, then in itertools.pairwise(sigma):
        slope = (1 - now) / (1 - then) * (then / now) ** 2  # Cov(x_s, x_t | x0) / Var(x_t | x0)
        left = then**2 - slope**2 * now**2
        gain = (1 - now) * SPREAD**2 / ((1 - now) ** 2 * SPREAD**2 + now**2)
        pull = (1 - then) - slope * (1 - now)
        mean = slope * mean + pull * (MEAN + gain * (mean - (1 - now) * MEAN))
        variance = (slope + pull * gain) ** 2 * variance + left
    found = solve("ddpm", sched, count, np.random.default_rng(0).normal(size=(16, 32, 32, 1)))
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / found.size)
    assert abs(found.var() - variance) < 4 * variance * np.sqrt(2 / found.size)
    assert math.sqrt(variance) - SPREAD == pytest.approx(-0.059, abs=0.004)  # 16 steps are few


# ---- The loss


def test_an_error_of_x0_costs_its_square_over_sigma_squared(rng):
    x0, noise = rng.normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    t = jnp.array([0.1, 0.5, 1.0])
    xt = process.add_noise(flow(), x0, noise, t)
    off = (xt - (x0 + 0.2)) / t[:, None, None, None]  # the velocity that claims x0 + 0.2
    found = loss.denoising(flow(), off, x0=x0, noise=noise, t=t)
    np.testing.assert_allclose(found, 0.04 / np.square(t), rtol=1e-4)


def test_the_smallest_loss_is_that_of_the_conditional_mean():
    # Var(noise - x0 | xt) = s² / V in one dimension.
    draw = np.random.default_rng(1)
    x0 = (MEAN + SPREAD * draw.normal(size=(3, 200, 100, 1))).astype(np.float32)
    noise = draw.normal(size=x0.shape).astype(np.float32)
    t = jnp.array([0.1, 0.5, 0.9])
    said = known_velocity(process.add_noise(flow(), x0, noise, t), t)
    found = loss.denoising(flow(), said, x0=x0, noise=noise, t=t)
    sigma = np.asarray(t)
    np.testing.assert_allclose(
        found, SPREAD**2 / ((1 - sigma) ** 2 * SPREAD**2 + sigma**2), rtol=0.03
    )


def test_min_snr_weighs_the_error_of_x0_by_the_smaller_of_snr_and_gamma(rng):
    x0, noise, output = rng.normal(size=(3, 5, 3, 3, 2)).astype(np.float32)
    t = np.array([0.05, 0.3, 0.5, 0.8, 1.0], np.float32)
    found = loss.denoising(
        flow(), jnp.asarray(output), x0=x0, noise=noise, t=jnp.asarray(t), min_snr_gamma=5.0
    )
    for row, sigma in enumerate(np.float64(t)):
        xt = (1 - sigma) * x0[row] + sigma * noise[row]
        error = np.mean((xt - sigma * output[row] - x0[row]) ** 2)
        expected = min(((1 - sigma) / sigma) ** 2, 5.0) * error
        np.testing.assert_allclose(found[row], expected, rtol=2e-4, atol=1e-9)
    assert np.isfinite(loss.min_snr_weight(flow(), jnp.array([0.0]), 5.0)).all()


# ---- What is refused


def test_a_sampler_and_a_spacing_of_tables_are_refused_by_name_on_a_flow():
    with pytest.raises(ValueError, match=r"'lcm' is for tables.*--config.sampler.name=euler"):
        sampler.levels("lcm", flow(), 4)
    with pytest.raises(ValueError, match=r"'leading' is for tables.*sampler.spacing=model"):
        sampler.levels("euler", flow(), 4, spacing="leading")


@pytest.mark.parametrize("key", ["invert_sigmas", "use_karras_sigmas", "stochastic_sampling"])
def test_other_paths_of_the_same_class_are_refused(key):
    with pytest.raises(ValueError, match=f"{key} = True; expected false"):
        flow(**{key: True})


def test_zero_terminal_snr_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"loss.zero_terminal_snr=False"):
        flow().zero_terminal_snr()


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "FlowMatchHeunDiscreteScheduler", "Mine"])
def test_a_class_that_is_not_implemented_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"found _class_name = '{name}', expected a table"):
        schedule.from_config({"_class_name": name})


def test_a_table_s_file_with_a_flow_s_levels_is_refused():
    raw = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}
    with pytest.raises(ValueError, match=r"use_flow_sigmas = True.*\n?.*FlowMatchEulerDiscrete"):
        schedule.from_config({**raw, "prediction_type": "flow_prediction"})
