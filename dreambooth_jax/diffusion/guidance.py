"""Classifier-free guidance and thresholding of the predicted x0."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion.path import NoisePath

Array = jax.Array
Threshold = Callable[[Array], Array]


def classifier_free(
    conditional: Array,
    unconditional: Array,
    scale: float | Array,
    *,
    channels: int,
    rescale: float = 0.0,
) -> Array:
    """`uncond + scale · (cond - uncond)` (Ho & Salimans 2022); scale 1 is the conditional model.

    Channels after the first `channels` (a learned variance) are taken from the conditional branch.

    rescale: share, 0 to 1, of the guided output that is brought to the conditional one's standard
      deviation in each picture (Lin et al. 2023, section 3.4).
    """
    cond, rest = conditional[..., :channels], conditional[..., channels:]
    guided = unconditional[..., :channels] * (1 - scale) + scale * cond
    if rescale:
        axes = tuple(range(1, cond.ndim))
        wanted, found = cond.std(axes, keepdims=True), guided.std(axes, keepdims=True)
        ratio = wanted / jnp.maximum(found, 1e-12)
        guided = guided * (rescale * ratio + 1 - rescale)
    return jnp.concatenate([guided, rest], -1)


def in_interval(t: Array, times: np.ndarray, interval: tuple[float, float]) -> Array:
    """True for the levels t at which guidance is on (Kynkäänniemi et al. 2024), in t's shape.

    times: the levels that the sampler visits, falling, with the clean end.
    interval: shares of the sampler's steps, first and last: (0, 1) is all of them.
    """
    visited = np.unique(times)[::-1]
    count = len(visited) - 1
    first, last = (round(share * count) for share in interval)
    upper = visited[first] if first else np.inf
    return (t <= upper) & (t > visited[last])


def dynamic_threshold(x0_hat: Array, *, ratio: float, max_value: float) -> Array:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3) of x0_hat `[B, ...]`.

    Clips each image to its own `ratio` quantile of |x0|, held within [1, max_value], and divides
    by it.
    """
    flat = jnp.abs(x0_hat).reshape(x0_hat.shape[0], -1)
    limit = jnp.clip(jnp.quantile(flat, ratio, axis=1), 1.0, max_value)
    limit = limit.reshape((-1,) + (1,) * (x0_hat.ndim - 1))
    return jnp.clip(x0_hat, -limit, limit) / limit


def _as_model(path: NoisePath) -> Threshold:
    if path.thresholding:
        return THRESHOLDS["dynamic"](path)
    return THRESHOLDS["static" if path.clip_sample else "none"](path)


def _static(path: NoisePath) -> Threshold:
    limit = path.clip_sample_range
    return lambda x: jnp.clip(x, -limit, limit)


def _dynamic(path: NoisePath) -> Threshold:
    ratio, max_value = path.dynamic_thresholding_ratio, path.sample_max_value
    return lambda x: dynamic_threshold(x, ratio=ratio, max_value=max_value)


# Name in the configuration -> noise path -> what is done to x0_hat.
THRESHOLDS: dict[str, Callable[[NoisePath], Threshold]] = {
    "none": lambda path: lambda x: x,
    "static": _static,
    "dynamic": _dynamic,
    "model": _as_model,
}
