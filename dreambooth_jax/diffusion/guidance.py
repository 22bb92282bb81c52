"""What is done to the network's words before a sampler steps: guidance and thresholds."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dreambooth_jax.diffusion.schedule import Schedule

Array = jax.Array
Threshold = Callable[[Array], Array]


def classifier_free(
    conditional: Array, unconditional: Array, scale: float, *, channels: int
) -> Array:
    """`uncond + scale · (cond - uncond)` (Ho & Salimans 2022); scale 1 is the conditional model.

    Channels after the first `channels` (a learned variance) are taken from the conditional branch.
    """
    cond, rest = conditional[..., :channels], conditional[..., channels:]
    return jnp.concatenate([unconditional[..., :channels] * (1 - scale) + scale * cond, rest], -1)


def dynamic_threshold(x0_hat: Array, *, ratio: float, max_value: float) -> Array:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3) of x0_hat `[B, ...]`.

    Clips each image to its own `ratio` quantile of |x0|, held within [1, max_value], and divides
    by it.
    """
    flat = jnp.abs(x0_hat).reshape(x0_hat.shape[0], -1)
    limit = jnp.clip(jnp.quantile(flat, ratio, axis=1), 1.0, max_value)
    limit = limit.reshape((-1,) + (1,) * (x0_hat.ndim - 1))
    return jnp.clip(x0_hat, -limit, limit) / limit


def _as_model(schedule: Schedule) -> Threshold:
    if schedule.thresholding:
        return THRESHOLDS["dynamic"](schedule)
    return THRESHOLDS["static" if schedule.clip_sample else "none"](schedule)


def _static(schedule: Schedule) -> Threshold:
    limit = schedule.clip_sample_range
    return lambda x: jnp.clip(x, -limit, limit)


def _dynamic(schedule: Schedule) -> Threshold:
    ratio, max_value = schedule.dynamic_thresholding_ratio, schedule.sample_max_value
    return lambda x: dynamic_threshold(x, ratio=ratio, max_value=max_value)


# Name in the configuration -> schedule -> what is done to x0_hat.
THRESHOLDS: dict[str, Callable[[Schedule], Threshold]] = {
    "none": lambda schedule: lambda x: x,
    "static": _static,
    "dynamic": _dynamic,
    "model": _as_model,
}
