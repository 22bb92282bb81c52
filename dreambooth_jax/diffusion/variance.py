"""The variational bound that trains a learned variance (Nichol & Dhariwal 2021, arXiv:2102.09672).

A network with twice the channels also says v in [-1, 1], where between β̃_t (-1) and β_t (1) the
logarithm of a sampling step's variance lies (equation 15). The simple loss does not see it; the
bound of equations 4-7 does, with the mean detached, weighed by λ = 0.001 (equation 16).
"""

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import process
from dreambooth_jax.diffusion.loss import picture_mean
from dreambooth_jax.diffusion.path import BetaTable, NoisePath

Array = jax.Array

LAMBDA = 0.001
_HALF_LEVEL = 1 / 255  # half the distance of two of the 256 levels in [-1, 1]


def _tables(path: NoisePath) -> dict[str, Array]:
    """Tables of the step from t to t - 1, float32 `[T]`; β̃_0, which is 0, takes the next value.

    Raises:
      ValueError: the path is a flow, for which no such bound is known.
    """
    if not isinstance(path, BetaTable):
        raise ValueError(
            "loss.learned_variance = 'trained' is for tables of betas; this model is a flow. Write "
            "--config.loss.learned_variance=fixed."
        )
    now = path.alphas_cumprod
    then = np.append(1.0, now[:-1])
    beta = 1 - now / then
    small = beta * (1 - then) / (1 - now)
    small[0] = small[1]
    share = np.sqrt(then) * beta / (1 - now)  # of x0 in the mean of q(x_{t-1} | x_t, x0)
    tables = {"large": np.log(beta), "small": np.log(small), "share": share}
    return {name: jnp.asarray(x.astype(np.float32)) for name, x in tables.items()}


def log_variance(path: NoisePath, values: Array, t: Array) -> Array:
    """The logarithm of the variance that v `[B,H,W,C]` stands for at t `[B]`."""
    tables, step = _tables(path), t.astype(jnp.int32)
    large, small = (process.along(tables[name][step], values) for name in ("large", "small"))
    fraction = (values + 1) / 2
    return fraction * large + (1 - fraction) * small


def _divergence(mean_apart: Array, log_q: Array, log_p: Array) -> Array:
    """KL(q ‖ p) of normal distributions, in nats, from the distance of their means."""
    apart = log_q - log_p
    return 0.5 * (jnp.expm1(apart) - apart + jnp.square(mean_apart) * jnp.exp(-log_p))


def _level_nll(x0: Array, mean: Array, log_p: Array) -> Array:
    """-log of the probability of x0's level, one of 256; the outermost ones have all the rest."""
    per = jnp.exp(-0.5 * log_p)
    above = jax.scipy.stats.norm.cdf((x0 + _HALF_LEVEL - mean) * per)
    below = jax.scipy.stats.norm.cdf((x0 - _HALF_LEVEL - mean) * per)
    above = jnp.where(x0 > 1 - _HALF_LEVEL, 1.0, above)
    below = jnp.where(x0 < -1 + _HALF_LEVEL, 0.0, below)
    return -jnp.log(jnp.maximum(above - below, 1e-12))


def bound(
    path: NoisePath,
    output: Array,
    *,
    x0: Array,
    xt: Array,
    t: Array,
    before: Array | None = None,
    is_prior: Array | None = None,
    pixel_weights: Array | None = None,
) -> Array:
    """The bound's term of t in bits per number, times λ T: `[B,H,W,2C] -> [B]`, float32.

    Its expectation over t is λ times the whole bound. Only the variance channels have a gradient.
    Rows with is_prior `[B]` are held to the step that `before` `[B,H,W,2C]`, another output, means.
    """
    channels = x0.shape[-1]
    mean, values = jax.lax.stop_gradient(output[..., :channels]), output[..., channels:]
    x0_hat, _ = process.readings(path, mean, xt, t)
    log_p = log_variance(path, values, t)
    tables, step = _tables(path), t.astype(jnp.int32)
    share, small = (process.along(tables[name][step], x0) for name in ("share", "small"))
    later = _divergence(share * (x0 - x0_hat), small, log_p)
    first = _level_nll(x0, x0_hat, log_p)
    term = jnp.where(process.along(t, x0) == 0, first, later)
    if before is not None and is_prior is not None:
        before = jax.lax.stop_gradient(before)
        x0_before, _ = process.readings(path, before[..., :channels], xt, t)
        log_q = log_variance(path, before[..., channels:], t)
        held = _divergence(share * (x0_before - x0_hat), log_q, log_p)
        term = jnp.where(process.along(is_prior, x0), held, term)
    scale = LAMBDA * path.num_steps / np.log(2)
    return scale * picture_mean(term, pixel_weights)
