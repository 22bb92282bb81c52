"""Rules of the samplers: one step from (alpha_t, sigma_t) to the less noisy (alpha_s, sigma_s).

A rule is one pure function and one line in `sampler.SAMPLERS`; it sees numbers, not steps of a
table, so it serves any noise path, pure noise (alpha = 0) included. The last step goes to (1, 0).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Past(NamedTuple):
    """The readings of the network at an earlier step, and the level they are of."""

    x0_hat: Array
    noise_hat: Array
    alpha: Array
    sigma: Array


@dataclasses.dataclass(frozen=True)
class Step:
    """Arguments of a rule for one step; alpha and sigma are float32, now (t) and next (s).

    told: the number that the network is given for the level now.
    noise: fresh N(0, I).
    variance: the network's own variance channels, or None; `variance_type` says what they mean.
    number: of steps made before, int32, scalar, or `[B,1,1,1]` where rows begin at steps of their
      own.
    before, earlier: the last step's and the last but one's; without meaning where `number` is less
      than 1 and 2.
    corrects: the level now and the next are one: x is a prediction of this level, to be corrected.
    is_flow: the network predicts a velocity.
    """

    alpha_t: Array
    sigma_t: Array
    alpha_s: Array
    sigma_s: Array
    told: Array
    noise: Array
    variance: Array | None
    variance_type: str
    number: Array
    before: Past
    earlier: Past
    corrects: Array
    is_flow: bool


_PURE_NOISE = -13.8  # the half log-SNR, ln(1e-6), below which a level has no signal


def _half_log_snr(alpha: Array, sigma: Array) -> Array:
    return jnp.log(jnp.maximum(alpha, 1e-6)) - jnp.log(jnp.maximum(sigma, 1e-20))


def _of(past: Past) -> Array:
    return _half_log_snr(past.alpha, past.sigma)


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
    """The deterministic step of DDIM (Song et al. 2021, eq. 12 with σ = 0); first order.

    On a flow it is Euler's step, x + (sigma_s - sigma_t)·velocity.
    """
    del x
    return step.alpha_s * x0_hat + step.sigma_s * noise_hat


def euler_ancestral(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """Euler's step to less noise than is asked for, and fresh noise up to it (k-diffusion's).

    It is the step of `ddpm` with the variance of q(x_s | x_t, x0_hat), whatever the network learned
    of variances.
    """
    return ddpm(x, x0_hat, noise_hat, dataclasses.replace(step, variance_type="fixed_small"))


def heun(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """Heun's method (Karras et al. 2022, algorithm 1 without churn); second order.

    Every level but the first and the clean end is visited twice: Euler's step predicts it, then the
    mean of both slopes corrects the prediction. Slopes are noise_hat over sigma / alpha for a table
    and the velocity over sigma for a flow, also used from pure noise, where that ratio is infinite.
    """
    was = step.before
    even = jnp.asarray(step.is_flow) | (was.alpha <= 0)
    now_u, was_u = (s / (a + s) for a, s in ((step.alpha_t, step.sigma_t), (was.alpha, was.sigma)))
    turn = (noise_hat - x0_hat) - (was.noise_hat - was.x0_hat)
    by_velocity = (step.alpha_t + step.sigma_t) * (now_u - was_u) * turn
    ratio = was.sigma / jnp.where(even, 1.0, was.alpha)
    by_noise = (step.sigma_t - step.alpha_t * ratio) * (noise_hat - was.noise_hat)
    corrected = x + 0.5 * jnp.where(even, by_velocity, by_noise)
    return jnp.where(step.corrects, corrected, ddim(x, x0_hat, noise_hat, step))


def _multistep(x0_hat: Array, step: Step) -> tuple[Array, Array]:
    """x0 extrapolated to the middle of the step by the last two readings, and the step's h.

    The last reading alone at the first and the last step, and where the step before it began in
    pure noise, whose log-SNR is infinite.
    """
    lambda_t, lambda_before = _half_log_snr(step.alpha_t, step.sigma_t), _of(step.before)
    h = _half_log_snr(step.alpha_s, step.sigma_s) - lambda_t
    ratio = (lambda_t - lambda_before) / h
    straight = (step.number == 0) | (step.sigma_s <= 0) | (lambda_before < _PURE_NOISE)
    slope = jnp.where(straight, 0.0, 0.5 / jnp.where(straight, 1.0, ratio))
    return x0_hat + slope * (x0_hat - step.before.x0_hat), h


def dpmpp_2m(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    Second order; first order at the first and the last step, and at the second from pure noise.
    """
    del noise_hat
    data, h = _multistep(x0_hat, step)
    shrunk = jnp.where(step.alpha_t > 0, jnp.expm1(-h), -1.0)
    return step.sigma_s / step.sigma_t * x - step.alpha_s * shrunk * data


def dpmpp_2m_sde(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, appendix on SDE solvers): `dpmpp_2m` with fresh noise.

    Second order in x0_hat; of first order where `dpmpp_2m` is.
    """
    del noise_hat
    data, h = _multistep(x0_hat, step)
    shrunk = jnp.where(step.alpha_t > 0, jnp.expm1(-2 * h), -1.0)
    kept = jnp.where(step.alpha_t > 0, jnp.exp(-h), 0.0)
    noise = step.sigma_s * jnp.sqrt(-shrunk) * step.noise
    return step.sigma_s / step.sigma_t * kept * x - step.alpha_s * shrunk * data + noise


def _phis(z: Array) -> tuple[Array, Array, Array]:
    """phi_1, phi_2 and phi_3 of z <= 0, where phi_k(z) = (phi_(k-1)(z) - 1/(k-1)!) / z.

    A series near 0, where the differences would cancel.
    """
    near = jnp.maximum(z, -1.0)
    series = jnp.ones_like(near)
    for k in range(12, 3, -1):  # 1 + z/4·(1 + z/5·(1 + …))
        series = 1 + near / k * series
    third = series / 6
    far = jnp.minimum(z, -1.0)
    firsts = jnp.expm1(far) / far
    seconds = (firsts - 1) / far
    third = jnp.where(z > -1.0, third, (seconds - 0.5) / far)
    second = jnp.where(z > -1.0, 0.5 + near * third, seconds)
    return jnp.where(z > -1.0, 1 + near * second, firsts), second, third


def unipc(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """UniPC of order 2 (Zhao et al. 2023, algorithm 1), with B_2(h) = exp(-h) - 1 on x0.

    The network's answer to the prediction first corrects it (UniC-2), without another evaluation;
    the next step is that of `dpmpp_2m`, which is UniP-2. Third order where log-SNRs are finite.
    """
    before, earlier = step.before, step.earlier
    lambda_before, lambda_earlier = _of(before), _of(earlier)
    h = _half_log_snr(step.alpha_t, step.sigma_t) - lambda_before
    phi_1, phi_2, phi_3 = _phis(-jnp.maximum(h, 1e-6))
    turn = x0_hat - before.x0_hat
    place = (lambda_earlier - lambda_before) / jnp.maximum(h, 1e-6)
    first = (step.number == 1) | (lambda_earlier < _PURE_NOISE)
    place = jnp.where(first, -1.0, place)
    old = (phi_2 / phi_1 - 2 * phi_3 / phi_1) / (1 - place)  # weight of the older difference
    older = jnp.where(first, 0.0, (old - 0.5) / place) * (earlier.x0_hat - before.x0_hat)
    change = older + jnp.where(first, 0.5, phi_2 / phi_1 - old) * turn
    none = (step.number == 0) | (lambda_before < _PURE_NOISE)
    corrected = x - step.alpha_t * jnp.where(none, 0.0, jnp.expm1(-h)) * change
    return dpmpp_2m(jnp.where(none, x, corrected), x0_hat, noise_hat, step)


def lcm(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3), for models distilled for it.

    The consistency function is c_skip·x + c_out·x0_hat, with sigma_data = 0.5 and ten times the
    time step; fresh noise of the next level is added to it.
    """
    del noise_hat
    scaled = 10.0 * step.told
    skip, out = 0.25 / (jnp.square(scaled) + 0.25), scaled / jnp.sqrt(jnp.square(scaled) + 0.25)
    return step.alpha_s * (skip * x + out * x0_hat) + step.sigma_s * step.noise


Rule = Callable[[Array, Array, Array, Step], Array]
