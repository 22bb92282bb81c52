"""The forward process, and the conversion of the network's output to x0 and noise.

    xt = alpha_t x0 + sigma_t noise

    epsilon:       output = noise
    v_prediction:  output = alpha_t noise - sigma_t x0     (Salimans & Ho 2022, appendix D)
    sample:        output = x0
    flow:          output = noise - x0, the velocity    (Lipman et al. 2023, section 4.1)

All arrays are `[B, ...]`, levels t are float32 `[B]`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion.path import NoisePath

Array = jax.Array


def along(values: Array, x: Array) -> Array:
    """`[B]` reshaped to broadcast against x `[B, ...]`."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def add_noise(path: NoisePath, x0: Array, noise: Array, t: Array) -> Array:
    """The noisy sample xt of a clean x0, noise and level."""
    alpha, sigma = path.alpha_sigma(t)
    return along(alpha, x0) * x0 + along(sigma, x0) * noise


def target(path: NoisePath, x0: Array, noise: Array, t: Array) -> Array:
    """The training target of each prediction type."""
    alpha, sigma = (along(value, x0) for value in path.alpha_sigma(t))
    return {
        "epsilon": lambda: noise,
        "v_prediction": lambda: alpha * noise - sigma * x0,
        "sample": lambda: x0,
        "flow": lambda: noise - x0,
    }[path.prediction_type]()


def readings(path: NoisePath, output: Array, xt: Array, t: Array) -> tuple[Array, Array]:
    """(x0_hat, noise_hat): the two readings of the network's output."""
    alpha, sigma = (along(value, xt) for value in path.alpha_sigma(t))
    return {
        "epsilon": lambda: ((xt - sigma * output) / alpha, output),
        "v_prediction": lambda: (alpha * xt - sigma * output, alpha * output + sigma * xt),
        "sample": lambda: (output, (xt - alpha * output) / sigma),
        "flow": lambda: (
            (xt - sigma * output) / (alpha + sigma),
            (xt + alpha * output) / (alpha + sigma),
        ),
    }[path.prediction_type]()


def upsample_bilinear(x: Array, size: tuple[int, int]) -> Array:
    """`[B,h,w,C] -> [B,H,W,C]`, corners on corners, as IF enlarges what its upscaler sees.

    size: H and W.
    """

    def weights(small: int, large: int) -> np.ndarray:
        at = np.linspace(0, small - 1, large)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(small)[None, :])).astype(np.float32)

    rows, columns = weights(x.shape[1], size[0]), weights(x.shape[2], size[1])
    return jnp.einsum("Hh,Ww,bhwc->bHWc", rows, columns, x)
