"""The denoising loss, its weighting over time, and the sum with prior preservation.

Equations 1 and 2 of Ruiz et al. 2022.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from dreambooth_jax.diffusion import process
from dreambooth_jax.diffusion.path import NoisePath

Array = jax.Array


def min_snr_weight(path: NoisePath, t: Array, gamma: float) -> Array:
    """Min-SNR-γ weight `[B]` of the squared error in the network's own output.

    min(SNR, γ) weighs the error of x0 (Hang et al. 2023, section 3.4); the output's squared error
    is SNR (ε), SNR + 1 (v), 1 (x0) or (1 + √SNR)² (velocity, on a flow) times that error.
    """
    snr = path.snr(t)
    divisors = {
        "epsilon": lambda: snr,
        "v_prediction": lambda: snr + 1,
        "sample": lambda: jnp.ones_like(snr),
        "flow": lambda: jnp.square(1 + jnp.sqrt(snr)),
    }
    return jnp.minimum(snr, gamma) / jnp.maximum(divisors[path.prediction_type](), 1e-20)


def picture_mean(error: Array, pixel_weights: Array | None = None) -> Array:
    """The mean over each picture `[B,...] -> [B]`, weighted where there are weights `[B,H,W,1]`."""
    if pixel_weights is not None:
        error = error * (pixel_weights / pixel_weights.mean((1, 2, 3), keepdims=True))
    return error.mean(tuple(range(1, error.ndim)))


def denoising(
    path: NoisePath,
    output: Array,
    *,
    x0: Array,
    noise: Array,
    t: Array,
    min_snr_gamma: float = 0.0,
    target: Array | None = None,
    pixel_weights: Array | None = None,
) -> Array:
    """Mean squared error of the network's output per example: `[B,H,W,C or 2C] -> [B]`, float32.

    Channels after the first C are a learned variance: see `variance.bound`. γ = 0 means no
    weighting. target `[B,H,W,C]`: what the output is to be, instead of what x0 and noise make it.
    pixel_weights `[B,H,W,1]`, not negative: the mean over a picture is weighted by them,
    Σ w·e / Σ w, so that only their ratios count; no picture may have zeros alone.
    """
    output = output[..., : x0.shape[-1]].astype(jnp.float32)
    wanted = process.target(path, x0, noise, t) if target is None else target
    per_example = picture_mean(jnp.square(output - wanted), pixel_weights)
    if not min_snr_gamma:
        return per_example
    return per_example * min_snr_weight(path, t, min_snr_gamma)


def row_weights(is_prior: Array, prior_loss_weight: float) -> dict[str, Array]:
    """Weights `[B]` that make sums over rows means over the subject's and over the class's rows.

    `loss = Σ subject·l + λ Σ prior·l`: equation 2 with any number of rows of either kind, however
    they are sharded or split.
    """
    is_prior = is_prior.astype(jnp.float32)
    subject = (1 - is_prior) / jnp.maximum((1 - is_prior).sum(), 1)
    prior = is_prior / jnp.maximum(is_prior.sum(), 1)
    return {"subject": subject, "prior": prior, "total": subject + prior_loss_weight * prior}


def with_prior(per_example: Array, weights: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
    """The loss of equation 2, and its two parts under their names in the logs."""
    parts = {"loss/subject": weights["subject"], "loss/prior": weights["prior"]}
    sums = {name: (per_example * weight).sum() for name, weight in parts.items()}
    return (per_example * weights["total"]).sum(), sums
