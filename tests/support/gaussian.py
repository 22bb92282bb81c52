"""Data whose denoiser and trajectories are known in closed form.

With x0 ~ N(m, s²) per pixel and v = alpha² s² + sigma²: E[x0 | xt] = m + alpha s²/v (xt - alpha m),
and the probability-flow ODE keeps (xt - alpha m) / sqrt(v) constant (Song et al. 2021, 4.3).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import path, sampler, schedule

MEAN, SPREAD = 0.3, 0.5
IMAGES = (16, 32, 32, 1)  # 16,384 independent pixels: standard error of the variance 1.1%


def by_log_snr(limit: float, count: int) -> path.BetaTable:
    """A schedule whose log SNR falls smoothly, not evenly, from `limit` to `-limit`."""
    u = np.linspace(-1, 1, count)
    return path.BetaTable(
        alphas_cumprod=1 / (1 + np.exp(limit * (u + 0.15 * np.sin(2 * np.pi * u)))),
        prediction_type="sample",
        clip_sample=False,
    )


def cosine(**settings: object) -> path.BetaTable:
    raw = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": False, "prediction_type": "sample"}
    return schedule.from_config({**raw, **settings})


def known_denoiser(sched: path.NoisePath, *, mean=MEAN, spread=SPREAD, words="sample"):
    """What a perfect network says, in the words of `words`."""

    def denoise(x, t):
        alpha, sigma = (value[:, None, None, None] for value in sched.alpha_sigma(t))
        gain = alpha * spread**2 / (alpha**2 * spread**2 + sigma**2)
        x0 = mean + gain * (x - alpha * mean)
        noise = (x - alpha * x0) / sigma
        velocity = alpha * noise - sigma * x0
        return {
            "sample": x0,
            "epsilon": noise,
            "v_prediction": velocity,
            "flow": noise - x0,
        }[words]

    return denoise


def at_level(sched: path.BetaTable, t: int, z: np.ndarray) -> jax.Array:
    """The point of the exact ODE trajectory of latent z at step t."""
    remaining = sched.alphas_cumprod[t]
    spread = np.sqrt(remaining * SPREAD**2 + 1 - remaining)
    return jnp.asarray(np.sqrt(remaining) * MEAN + spread * z, jnp.float32)


def keys(count: int, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), count)


# Small programs run in no time; optimising them would take most of it.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def solve(name: str, sched: path.NoisePath, num_steps: int, x: jax.Array, **kwargs) -> np.ndarray:
    kwargs = {"denoise": known_denoiser(sched), **kwargs}
    if "times" not in kwargs:
        kwargs["times"] = sampler.levels(name, sched, num_steps)
    run = jax.jit(
        partial(sampler.sample, path=sched, rule=sampler.SAMPLERS[name], **kwargs),
        compiler_options=UNOPTIMISED if x.size < 1000 else {},
    )
    return np.asarray(run(x=x, keys=keys(x.shape[0])))


def within_standard_errors(found: np.ndarray, mean: float, variance: float) -> None:
    count = found.size
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / count)
    assert abs(found.var() - variance) < 4 * variance * np.sqrt(2 / count)
