"""Samplers on data whose denoiser and trajectories are known in closed form.

With x0 ~ N(m, s²) per pixel and v = alpha² s² + sigma²: E[x0 | xt] = m + alpha s²/v (xt - alpha m),
and the probability-flow ODE keeps (xt - alpha m) / sqrt(v) constant (Song et al. 2021, 4.3).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import sampler, schedule

MEAN, SPREAD = 0.3, 0.5


def by_log_snr(limit: float, count: int) -> schedule.Schedule:
    """A schedule whose log SNR falls smoothly, not evenly, from `limit` to `-limit`."""
    u = np.linspace(-1, 1, count)
    return schedule.Schedule(
        alphas_cumprod=1 / (1 + np.exp(limit * (u + 0.15 * np.sin(2 * np.pi * u)))),
        prediction_type="sample",
        clip_sample=False,
    )


def cosine(**settings: object) -> schedule.Schedule:
    raw = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "prediction_type": "sample"}
    return schedule.from_config({**raw, **settings})


def known_denoiser(sched: schedule.Schedule, *, mean=MEAN, spread=SPREAD, words="sample"):
    """What a perfect network says, in the words of `words`."""

    def denoise(x, t):
        alpha, sigma = (value[:, None, None, None] for value in sched.alpha_sigma(t))
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        x0 = mean + gain * (x - alpha * mean)
        noise = (x - alpha * x0) / sigma
        return {"sample": x0, "epsilon": noise, "v_prediction": alpha * noise - sigma * x0}[words]

    return denoise


def at_level(sched: schedule.Schedule, t: int, z: np.ndarray) -> jax.Array:
    """The point of the exact ODE trajectory of latent z at step t."""
    remaining = sched.alphas_cumprod[t]
    spread = np.sqrt(remaining * SPREAD**2 + 1 - remaining)
    return jnp.asarray(np.sqrt(remaining) * MEAN + spread * z, jnp.float32)


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


# Small programs run in no time; optimising them would take most of it.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def solve(
    name: str, sched: schedule.Schedule, num_steps: int, x: jax.Array, **kwargs
) -> np.ndarray:
    kwargs = {"denoise": known_denoiser(sched), "times": sched.times(num_steps), **kwargs}
    run = jax.jit(
        partial(sampler.sample, schedule=sched, rule=sampler.SAMPLERS[name], **kwargs),
        compiler_options=UNOPTIMISED if x.size < 1000 else {},
    )
    return np.asarray(run(x=x, keys=keys(x.shape[0])))


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_error_falls_at_the_order_of_the_solver(name, order, rng):
    sched = by_log_snr(14.0, 4096)
    z = rng.normal(size=(1, 4, 4, 3))
    counts, errors = [16, 32, 64, 128, 256], []
    for count in counts:
        x = at_level(sched, sched.times(count)[0], z)
        errors.append(np.abs(solve(name, sched, count, x) - (MEAN + SPREAD * z)).max())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(-slope - order) < 0.15 * order, (slope, errors)
    assert errors[-1] < {"ddim": 5e-2, "dpmpp_2m": 2e-3}[name]


@pytest.mark.parametrize("words", schedule.PREDICTION_TYPES)
@pytest.mark.parametrize("name", ["ddim", "dpmpp_2m"])
def test_solvers_reach_the_known_image_whatever_the_network_predicts(name, words, rng):
    sched = cosine(prediction_type=words)
    z = rng.normal(size=(2, 3, 3, 3))
    denoise = known_denoiser(sched, words=words)
    x = at_level(sched, sched.times(250)[0], z)
    found = solve(name, sched, 250, x, denoise=denoise)
    np.testing.assert_allclose(
        found, MEAN + SPREAD * z, atol={"ddim": 2e-2, "dpmpp_2m": 2e-3}[name]
    )


def test_the_first_step_of_the_second_order_solver_is_of_first_order(rng):
    # It has no earlier x0_hat yet (Lu et al. 2022, algorithm 2, line 4); that step is DDIM's.
    x, times = jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32), np.array([700, 400])
    first, second = (solve(n, cosine(), 1, x, times=times) for n in ("ddim", "dpmpp_2m"))
    np.testing.assert_allclose(second, first, atol=1e-5)


@pytest.mark.parametrize("name", list(sampler.SAMPLERS))
def test_one_step_to_the_clean_end_is_the_denoised_image(name, rng):
    sched, x = cosine(), jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
    found = solve(name, sched, 1, x, times=np.array([400, -1]))
    expected = known_denoiser(sched)(x, jnp.array([400, 400]))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", list(sampler.SAMPLERS))
def test_a_certain_denoiser_is_believed_to_float32_precision(name, rng):
    # Data that is one image: every sampler must end exactly there, in any number of steps.
    image = jnp.asarray(rng.uniform(-1, 1, (1, 4, 4, 3)), jnp.float32)
    for count in (2, 1000):
        x = jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32)
        found = solve(name, cosine(), count, x, denoise=lambda x, t: image)
        np.testing.assert_allclose(found, image, atol=1e-6)


def test_zero_terminal_snr_starts_every_sampler_from_pure_noise(rng):
    sched = cosine(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    z = rng.normal(size=(1, 4, 4, 3))
    assert sched.times(100)[0] == 999
    for name, tolerance in (("ddim", 4e-2), ("dpmpp_2m", 1e-2)):
        found = solve(name, sched, 100, jnp.asarray(z, jnp.float32))
        np.testing.assert_allclose(found, MEAN + SPREAD * z, atol=tolerance)
    assert np.isfinite(solve("ddpm", sched, 100, jnp.asarray(z, jnp.float32))).all()


def within_standard_errors(found: np.ndarray, mean: float, variance: float) -> None:
    count = found.size
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / count)
    assert abs(found.var() - variance) < 4 * variance * np.sqrt(2 / count)


IMAGES = (16, 32, 32, 1)  # 16,384 independent pixels: standard error of the variance 1.1%


def test_ancestral_sampling_with_small_variance_keeps_mean_and_variance():
    sched = cosine(variance_type="fixed_small")
    x = sampler.first_noise(keys(IMAGES[0], 1), IMAGES[1:])
    within_standard_errors(solve("ddpm", sched, 1000, x), MEAN, SPREAD**2)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_a_short_chain_has_the_moments_that_bayes_rule_gives_it(variance_type):
    # Each step draws x_s from q(x_s | x_t, x0_hat): of two normal variables with known covariance,
    # so the chain is linear and its mean and variance follow from step to step.
    sched = cosine(variance_type=variance_type)
    times = sched.times(8)
    remaining = np.append(sched.alphas_cumprod, 1.0)
    mean, variance = 0.0, 1.0
    for now, then in zip(remaining[times[:-1]], remaining[times[1:]], strict=True):
        slope = np.sqrt(now / then) * (1 - then) / (1 - now)  # Cov(x_s, x_t | x0) / Var(x_t | x0)
        drawn = (1 - then) - slope**2 * (1 - now)
        if variance_type == "fixed_large" and then < 1:
            drawn = 1 - now / then  # Var(x_t | x_s), which Ho et al. 2020 take instead
        gain = np.sqrt(now) * SPREAD**2 / (now * SPREAD**2 + 1 - now)
        pull = np.sqrt(then) - slope * np.sqrt(now)  # x_s = slope x_t + pull x0_hat + noise
        mean = slope * mean + pull * (MEAN + gain * (mean - np.sqrt(now) * MEAN))
        variance = (slope + pull * gain) ** 2 * variance + drawn
    x = sampler.first_noise(keys(IMAGES[0], 1), IMAGES[1:])
    within_standard_errors(solve("ddpm", sched, 8, x), mean, variance)
    # Eight steps are few enough to tell the two variances apart.
    assert abs(variance / SPREAD**2 - 1) > 0.1


def test_ancestral_sampling_with_large_variance_is_exact_for_data_of_variance_one():
    # Then x_s given x_t has variance beta (Ho et al. 2020, section 3.2), in any number of steps.
    sched = cosine(variance_type="fixed_large")
    denoise = known_denoiser(sched, mean=MEAN, spread=1.0)
    x = sampler.first_noise(keys(IMAGES[0], 1), IMAGES[1:])
    within_standard_errors(solve("ddpm", sched, 12, x, denoise=denoise), MEAN, 1.0)


@pytest.mark.parametrize("spread", [0.2, SPREAD])
def test_a_learned_variance_that_is_right_makes_ancestral_sampling_exact(spread):
    # The network tells the true variance of x_s given x_t (two jointly normal variables) as its
    # share of the way from q's to beta, in logarithms (Nichol & Dhariwal 2021, eq. 15). Ten steps
    # are then enough.
    sched = cosine(variance_type="learned_range")
    times = sched.times(10)
    remaining = sched.alphas_cumprod
    # Without the step to the clean end, which adds no noise.
    now, then = remaining[times[:-2]], remaining[times[1:-1]]
    step = now / then
    variance_now, variance_then = (a * spread**2 + 1 - a for a in (now, then))
    true = variance_then - step * variance_then**2 / variance_now
    low, high = (1 - then) / (1 - now) * (1 - step), 1 - step
    share = np.zeros(1000)
    share[times[:-2]] = np.log(true / low) / np.log(high / low)
    assert (share >= 0).all()
    assert (share <= 1).all()

    mean_of = known_denoiser(sched, spread=spread)

    def denoise(x, t):
        said = jnp.asarray(2 * share - 1, jnp.float32)[t][:, None, None, None]
        return jnp.concatenate([mean_of(x, t), jnp.broadcast_to(said, x.shape)], -1)

    x = sampler.first_noise(keys(IMAGES[0], 1), IMAGES[1:])
    # The last step ends in E[x0 | x at step 0], whose variance is a little smaller than that of x0.
    first = sched.alphas_cumprod[times[-2]]
    last = first * spread**4 / (first * spread**2 + 1 - first)
    found = solve("ddpm", sched, 10, x, denoise=denoise, times=times)
    within_standard_errors(found, MEAN, last)


def test_an_image_does_not_depend_on_its_batch_or_on_the_number_of_devices():
    sched, all_keys = cosine(), keys(8, 3)
    mesh = jax.make_mesh((8,), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    @partial(jax.jit, compiler_options=UNOPTIMISED)
    def run(keys):
        x, times = sampler.first_noise(keys, (4, 4, 3)), sched.times(12)
        denoise = known_denoiser(sched)
        return sampler.sample(denoise, x, keys, schedule=sched, rule=sampler.ddpm, times=times)

    whole = run(all_keys)
    assert len(np.unique(whole)) == whole.size
    np.testing.assert_allclose(run(all_keys[5:7]), whole[5:7], atol=1e-6)
    np.testing.assert_allclose(run(jax.device_put(all_keys, rows)), whole, atol=1e-6)


def test_noise_of_the_start_and_of_every_step_is_fresh():
    # A rule that only hands over its noise shows what the fold feeds it.
    def keep(x, x0_hat, noise_hat, step):
        return jnp.concatenate([x[..., 1:], step.noise[..., :1]], -1)

    @partial(jax.jit, compiler_options=UNOPTIMISED)
    def run(keys):
        x, times = sampler.first_noise(keys, (3, 3, 5)), np.array([9, 7, 5, 3, 1, -1])
        last = sampler.sample(lambda x, t: x, x, keys, schedule=cosine(), rule=keep, times=times)
        return jnp.concatenate([x, last])

    seen = np.asarray(run(keys(2)))
    assert len(np.unique(seen)) == seen.size


def test_the_threshold_is_what_the_rule_sees(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32)
    found = solve("ddim", cosine(), 20, x, threshold=lambda x0: jnp.full_like(x0, 0.25))
    np.testing.assert_allclose(found, 0.25, atol=1e-6)
