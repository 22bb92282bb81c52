"""Samplers: a fold of one pure rule over falling time steps, inside one `lax.scan`.

A rule takes the sample from (alpha_t, sigma_t) to the next, less noisy (alpha_s, sigma_s); the last
step goes to (1, 0). A rule is one function and one line in `SAMPLERS`; it sees numbers, not steps
of a table, so it serves any schedule.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import process
from dreambooth_jax.diffusion.schedule import Schedule

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Step:
    """What a rule sees of one step; alpha and sigma are float32 scalars, now (t) and next (s).

    noise: fresh N(0, I).
    variance: the network's own variance channels, or None; `variance_type` says what they mean.
    x0_before, lambda_before: the previous step's x0_hat and half log-SNR; zeros where `is_first`.
    """

    alpha_t: Array
    sigma_t: Array
    alpha_s: Array
    sigma_s: Array
    noise: Array
    variance: Array | None
    variance_type: str
    x0_before: Array
    lambda_before: Array
    is_first: Array


def _half_log_snr(alpha: Array, sigma: Array) -> Array:
    return jnp.log(alpha) - jnp.log(jnp.maximum(sigma, 1e-20))


def ddpm(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """Ancestral sampling from q(x_s | x_t, x0_hat) (Ho et al. 2020, eqs. 6-7).

    The variance is fixed or learned; a learned range (Nichol & Dhariwal 2021, eq. 15) has its log
    variance between that of q and beta. No noise at the last step.
    """
    del noise_hat
    alpha_ts = step.alpha_t / step.alpha_s
    # Equal to 1 - alpha_ts², which in float32 would lose up to 0.1% of x0 near the clean end, where
    # beta is about 1e-4.
    beta = jnp.square(step.sigma_t) - jnp.square(alpha_ts * step.sigma_s)
    left = jnp.square(step.sigma_s) / jnp.square(step.sigma_t)
    mean = step.alpha_s * beta / jnp.square(step.sigma_t) * x0_hat + alpha_ts * left * x
    small = jnp.maximum(left * beta, 1e-20)
    if step.variance_type == "learned_range":
        if step.variance is None:
            raise ValueError(
                "variance_type 'learned_range' needs a network with twice as many output channels "
                "as the image has; this one has none for the variance. Use 'fixed_small'."
            )
        fraction = (step.variance + 1) / 2
        log_variance = fraction * jnp.log(beta) + (1 - fraction) * jnp.log(small)
    elif step.variance_type == "fixed_large":
        log_variance = jnp.log(beta)
    else:
        log_variance = jnp.log(small)
    return mean + jnp.where(step.sigma_s > 0, jnp.exp(0.5 * log_variance), 0.0) * step.noise


def ddim(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """The deterministic step of DDIM (Song et al. 2021, eq. 12 with σ = 0); first order."""
    del x
    return step.alpha_s * x0_hat + step.sigma_s * noise_hat


def dpmpp_2m(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    Second order; first order at the first and the last step.
    """
    del noise_hat
    lambda_t = _half_log_snr(step.alpha_t, step.sigma_t)
    h = _half_log_snr(step.alpha_s, step.sigma_s) - lambda_t
    ratio = (lambda_t - step.lambda_before) / h
    straight = step.is_first | (step.sigma_s <= 0)
    slope = jnp.where(straight, 0.0, 0.5 / jnp.where(straight, 1.0, ratio))
    data = x0_hat + slope * (x0_hat - step.x0_before)
    return step.sigma_s / step.sigma_t * x - step.alpha_s * jnp.expm1(-h) * data


Rule = Callable[[Array, Array, Array, Step], Array]
SAMPLERS: dict[str, Rule] = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}

Denoise = Callable[[Array, Array], Array]
Carry = tuple[Array, Array, Array]


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def first_noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """The starting noise `[B, *shape]`: one key for each image, so it is the same in any batch."""
    return _normal(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape)


def sample(
    denoise: Denoise,
    x: Array,
    keys: Array,
    *,
    schedule: Schedule,
    rule: Rule,
    times: np.ndarray,
    threshold: Callable[[Array], Array] = lambda x0_hat: x0_hat,
) -> Array:
    """Takes noise x `[B,H,W,C]` at `times[0]` to x0 `[B,H,W,C]`.

    Args:
      denoise: (xt, t int32 `[B]`) -> the network's output `[B,H,W,C or 2C]`, guidance included.
      keys: one key for each image, `[B]`; the noise of step i comes from fold_in(key, i + 1).
      rule: one of `SAMPLERS`.
      times: int32 `[S+1]`, falling, ending in -1 (`Schedule.times`).
      threshold: what is done to x0_hat before it is used (`guidance.THRESHOLDS`).
    """
    channels = x.shape[-1]
    x = x.astype(jnp.float32)

    def body(carry: Carry, i: Array) -> tuple[Carry, None]:
        x, x0_before, lambda_before = carry
        now_and_next = jnp.asarray(times)[jnp.stack([i, i + 1])]
        (alpha_t, alpha_s), (sigma_t, sigma_s) = schedule.alpha_sigma(now_and_next)
        batch_t = jnp.full((x.shape[0],), now_and_next[0], jnp.int32)
        output = denoise(x, batch_t).astype(jnp.float32)
        x0_hat, noise_hat = process.readings(schedule, output[..., :channels], x, batch_t)
        x0_hat = threshold(x0_hat)
        step = Step(
            alpha_t=alpha_t,
            sigma_t=sigma_t,
            alpha_s=alpha_s,
            sigma_s=sigma_s,
            noise=_normal(jax.vmap(lambda key: jax.random.fold_in(key, i + 1))(keys), x.shape[1:]),
            variance=output[..., channels:] if output.shape[-1] > channels else None,
            variance_type=schedule.variance_type,
            x0_before=x0_before,
            lambda_before=lambda_before,
            is_first=i == 0,
        )
        return (rule(x, x0_hat, noise_hat, step), x0_hat, _half_log_snr(alpha_t, sigma_t)), None

    start = (x, jnp.zeros_like(x), jnp.zeros((), jnp.float32))
    (x, _, _), _ = jax.lax.scan(body, start, jnp.arange(len(times) - 1))
    return x
