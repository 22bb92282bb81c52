"""Checks of the settings of levels: those that training draws, and the sampler's."""

from collections.abc import Iterator, Mapping
from typing import Any

from dreambooth_jax.config.base import base_config, flatten
from dreambooth_jax.config.problems import Problem, default, write
from dreambooth_jax.diffusion.sampler import OWN_SPACING

DENSITY_KEYS = {  # a number of a density of levels -> the density
    "loss.logit_mean": "logit_normal",
    "loss.logit_std": "logit_normal",
    "loss.mode_scale": "mode",
}


def wrong(c: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields the problems of settings by dotted key."""
    key = "sampler.guidance_interval"
    interval = c[key]
    numbers = len(interval) == 2 and all(type(share) in (int, float) for share in interval)
    if not numbers or not 0 <= interval[0] < interval[1] <= 1:
        expected = "two shares of the steps, rising, in [0, 1]"
        yield Problem(key, interval, expected, write(key, (0.0, 1.0)))

    own = OWN_SPACING.get(c["sampler.name"])
    if own is not None and c["sampler.spacing"] not in ("model", own):
        expected = f"'model' with the sampler {c['sampler.name']!r}, whose own spacing is {own!r}"
        key = "sampler.spacing"
        yield Problem(key, c[key], expected, write(key, "model"))

    defaults = flatten(base_config())
    for key, name in DENSITY_KEYS.items():
        if c[key] != defaults[key] and c["loss.density"] != name:
            expected = f"{defaults[key]}, because loss.density is {c['loss.density']!r}"
            hint = f"{write('loss.density', name)} Or: {default(key)}"
            yield Problem(key, c[key], expected, hint)
