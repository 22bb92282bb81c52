"""Samplers on data whose denoiser and trajectories are known in closed form (`gaussian`)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import (
    IMAGES,
    MEAN,
    SPREAD,
    UNOPTIMISED,
    at_level,
    cosine,
    keys,
    known_denoiser,
    solve,
    within_standard_errors,
)

from dreambooth_jax.diffusion import rules, sampler, schedule

DETERMINISTIC = ["ddim", "heun", "dpmpp_2m", "dpmpp_2m_karras", "unipc"]


@pytest.mark.parametrize("words", schedule.PREDICTION_TYPES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_solvers_reach_the_known_image_whatever_the_network_predicts(name, words, rng):
    sched = cosine(prediction_type=words)
    z = rng.normal(size=(2, 3, 3, 3))
    denoise = known_denoiser(sched, words=words)
    x = at_level(sched, int(sampler.levels(name, sched, 250)[0]), z)
    found = solve(name, sched, 250, x, denoise=denoise)
    np.testing.assert_allclose(found, MEAN + SPREAD * z, atol=2e-2 if name == "ddim" else 2e-3)


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
    # A consistency model keeps 1e-5 of the sample at the last time step that it is distilled at.
    image = jnp.asarray(rng.uniform(-1, 1, (1, 4, 4, 3)), jnp.float32)
    for count in (2, 50 if name == "lcm" else 1000):
        x = jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32)
        found = solve(name, cosine(), count, x, denoise=lambda x, t: image)
        np.testing.assert_allclose(found, image, atol=2e-5 if name == "lcm" else 1e-6)


def test_zero_terminal_snr_starts_every_sampler_from_pure_noise(rng):
    sched = cosine(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    z = rng.normal(size=(1, 4, 4, 3))
    assert sched.times(100)[0] == 999
    for name, tolerance in (("ddim", 4e-2), ("dpmpp_2m", 1e-2), ("heun", 1e-2), ("unipc", 1e-2)):
        found = solve(name, sched, 100, jnp.asarray(z, jnp.float32))
        np.testing.assert_allclose(found, MEAN + SPREAD * z, atol=tolerance)
    for name in ("ddpm", "euler_ancestral", "dpmpp_2m_sde", "lcm"):
        found = solve(name, sched, 20, jnp.asarray(z, jnp.float32))
        assert np.isfinite(found).all()
    with pytest.raises(ValueError, match=r"ends in pure noise.*--config.sampler.spacing=trailing"):
        sampler.levels("dpmpp_2m_karras", sched, 20)


def test_ancestral_sampling_with_small_variance_keeps_mean_and_variance():
    sched = cosine(variance_type="fixed_small")
    x = sampler.first_noise(keys(IMAGES[0], 1), IMAGES[1:])
    within_standard_errors(solve("ddpm", sched, 1000, x), MEAN, SPREAD**2)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_a_short_chain_has_the_moments_that_bayes_rule_gives_it(variance_type):
    # Each step draws x_s from q(x_s | x_t, x0_hat): of two normal variables with known covariance,
    # so the chain is linear and its mean and variance follow from step to step.
    sched = cosine(variance_type=variance_type)
    times = sched.times(8).astype(int)
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
    times = sched.times(10).astype(int)
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
        said = jnp.asarray(2 * share - 1, jnp.float32)[t.astype(int)][:, None, None, None]
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
        return sampler.sample(denoise, x, keys, path=sched, rule=rules.ddpm, times=times)

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
        last = sampler.sample(lambda x, t: x, x, keys, path=cosine(), rule=keep, times=times)
        return jnp.concatenate([x, last])

    seen = np.asarray(run(keys(2)))
    assert len(np.unique(seen)) == seen.size


def test_the_threshold_is_what_the_rule_sees(rng):
    x = jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32)
    found = solve("ddim", cosine(), 20, x, threshold=lambda x0: jnp.full_like(x0, 0.25))
    np.testing.assert_allclose(found, 0.25, atol=1e-6)


# ---- Image-to-image and inpainting


def begun(name: str, sched, count: int, start, noise, strength) -> np.ndarray:
    times = sampler.levels(name, sched, count)

    def run(start, noise, strength):
        x, begin = sampler.begun(sched, start, noise, times=times, strength=strength)
        return sampler.sample(
            known_denoiser(sched),
            x,
            keys(len(start)),
            path=sched,
            rule=sampler.SAMPLERS[name],
            times=times,
            begin=begin,
        )

    return np.asarray(jax.jit(run)(start, noise, jnp.asarray(strength, jnp.float32)))


@pytest.mark.parametrize("name", list(sampler.SAMPLERS))
def test_strength_zero_returns_the_start_and_one_starts_from_noise_alone(name, rng):
    sched = cosine()
    start, noise = (jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32) for _ in range(2))
    found = begun(name, sched, 10, start, noise, [0.0, 1.0])
    np.testing.assert_array_equal(found[0], start[0])
    np.testing.assert_allclose(found[1], solve(name, sched, 10, noise)[1], atol=1e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_rows_of_several_strengths_are_each_the_last_steps_of_the_sampler(name, rng):
    sched, strength = cosine(), [0.3, 0.5, 0.85]
    start, noise = (jnp.asarray(rng.normal(size=(3, 4, 4, 3)), jnp.float32) for _ in range(2))
    found = begun(name, sched, 20, start, noise, strength)
    plain = np.unique(sampler.levels(name, sched, 20))[::-1]
    for row, kept in enumerate((6, 10, 17)):
        left = plain[20 - kept :]
        alpha, sigma = sched.alpha_sigma(left[0])
        x = alpha * start[row] + sigma * noise[row]
        left = sampler.twice(left) if name == "heun" else left
        alone = solve(name, sched, kept, jnp.asarray(x[None], jnp.float32), times=left)
        np.testing.assert_allclose(found[row], alone[0], atol=2e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_start_of_middle_strength_follows_the_exact_trajectory(name, rng):
    sched = cosine()
    start, noise = (jnp.asarray(rng.normal(size=(1, 4, 4, 3)), jnp.float32) for _ in range(2))
    found = begun(name, sched, 500, start, noise, [0.6])
    level = np.unique(sampler.levels(name, sched, 500))[::-1][200]
    alpha, sigma = (float(value) for value in sched.alpha_sigma(level))
    xt = alpha * start + sigma * noise
    z = (xt - alpha * MEAN) / np.sqrt(alpha**2 * SPREAD**2 + sigma**2)
    np.testing.assert_allclose(found, MEAN + SPREAD * z, atol=5e-3)


@pytest.mark.parametrize("name", list(sampler.SAMPLERS))
def test_what_is_known_stays_bit_for_bit_and_the_rest_is_drawn(name, rng):
    sched, x = cosine(), jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
    known = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    mask = np.zeros((2, 4, 4, 1), np.float32)
    mask[:, :, 2:] = 1

    def run(x, mask):
        rule = sampler.blended(sampler.SAMPLERS[name], mask, known, x)
        times = sampler.levels(name, sched, 12)
        return sampler.sample(known_denoiser(sched), x, keys(2), path=sched, rule=rule, times=times)

    found = np.asarray(jax.jit(run)(x, mask))
    np.testing.assert_array_equal(found[:, :, :2], known[:, :, :2])
    # The pixels of this denoiser are independent: those that are drawn do not see the known ones.
    np.testing.assert_allclose(found[:, :, 2:], solve(name, sched, 12, x)[:, :, 2:], atol=1e-6)
    half = np.asarray(jax.jit(run)(x, 0.5 + 0 * mask))
    assert np.isfinite(half).all()
    assert not np.array_equal(half, found)


def test_the_known_part_has_the_noise_of_every_level_on_the_way(rng):
    sched, seen = cosine(), []
    x, known = (jnp.asarray(rng.normal(size=(1, 2, 2, 1)), jnp.float32) for _ in range(2))

    def denoise(x, t):
        jax.debug.callback(lambda x, t: seen.append((float(t[0]), np.array(x))), x, t)
        return jnp.zeros_like(x)

    rule = sampler.blended(rules.ddim, jnp.zeros((1, 2, 2, 1)), known, x)
    times = sched.times(4)
    sampler.sample(denoise, x, keys(1), path=sched, rule=rule, times=times)
    jax.effects_barrier()
    for t, found in seen[1:]:
        remaining = sched.alphas_cumprod[int(t)]
        expected = np.sqrt(remaining) * known + np.sqrt(1 - remaining) * x
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert [t for t, _ in seen] == times[:-1].tolist()


def test_a_sampler_s_own_spacing_is_not_exchanged_for_another():
    with pytest.raises(ValueError, match=r"'dpmpp_2m_karras' has a spacing of its own"):
        sampler.levels("dpmpp_2m_karras", cosine(), 20, spacing="trailing")
    found = sampler.levels("dpmpp_2m", cosine(), 20, spacing="karras")
    np.testing.assert_array_equal(found, sampler.levels("dpmpp_2m_karras", cosine(), 20))
    with pytest.raises(ValueError, match=r"found 51, expected 1 to 50.*'lcm'.*num_steps=4"):
        sampler.levels("lcm", cosine(), 51)


def test_corrections_begin_at_no_level_of_image_to_image(rng):
    times = sampler.levels("heun", cosine(), 5)
    assert len(times) == 10
    start, noise = (jnp.asarray(rng.normal(size=(6, 2, 2, 1)), jnp.float32) for _ in range(2))
    strength = jnp.arange(6) / 5
    _, begin = sampler.begun(cosine(), start, noise, times=times, strength=strength)
    assert begin.tolist() == [9, 8, 6, 4, 2, 0]
