"""The forward process, and the readings of what the network says.

    xt = alpha_t x0 + sigma_t noise

    epsilon:       output = noise
    v_prediction:  output = alpha_t noise - sigma_t x0     (Salimans & Ho 2022, appendix D)
    sample:        output = x0

All arrays are `[B, ...]`, t is int32 `[B]`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion.schedule import Schedule

Array = jax.Array


def along(values: Array, x: Array) -> Array:
    """`[B]` reshaped to broadcast against x `[B, ...]`."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def add_noise(schedule: Schedule, x0: Array, noise: Array, t: Array) -> Array:
    """The noisy sample xt of a clean x0, noise and time step."""
    alpha, sigma = schedule.alpha_sigma(t)
    return along(alpha, x0) * x0 + along(sigma, x0) * noise


def target(schedule: Schedule, x0: Array, noise: Array, t: Array) -> Array:
    """What the network should have said."""
    alpha, sigma = (along(value, x0) for value in schedule.alpha_sigma(t))
    return {
        "epsilon": lambda: noise,
        "v_prediction": lambda: alpha * noise - sigma * x0,
        "sample": lambda: x0,
    }[schedule.prediction_type]()


def readings(schedule: Schedule, output: Array, xt: Array, t: Array) -> tuple[Array, Array]:
    """(x0_hat, noise_hat): the two readings of the network's output."""
    alpha, sigma = (along(value, xt) for value in schedule.alpha_sigma(t))
    return {
        "epsilon": lambda: ((xt - sigma * output) / alpha, output),
        "v_prediction": lambda: (alpha * xt - sigma * output, alpha * output + sigma * xt),
        "sample": lambda: (output, (xt - alpha * output) / sigma),
    }[schedule.prediction_type]()


def upsample_bilinear(x: Array, size: int) -> Array:
    """`[B,h,w,C] -> [B,size,size,C]`, corners on corners, as IF enlarges what its upscaler sees."""

    def weights(small: int) -> np.ndarray:
        at = np.linspace(0, small - 1, size)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(small)[None, :])).astype(np.float32)

    rows, columns = weights(x.shape[1]), weights(x.shape[2])
    return jnp.einsum("Hh,Ww,bhwc->bHWc", rows, columns, x)
