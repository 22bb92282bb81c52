"""The base model of a run, opened as its settings ask."""

import dataclasses
from types import SimpleNamespace

import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import generate
from dreambooth_jax.experiment.parts import loading


@pytest.mark.parametrize("key", ["sample.negative_prompt", "prior.negative_prompt"])
def test_a_negative_prompt_without_guidance_is_refused_before_anything_is_read(key: str) -> None:
    plan = configs.resolve(configs.base_config())
    loading.open_stages(configs.changed(plan, {key: "blurry"}))
    off = {"sampler.guidance_scale": 1.0, "sampler.upscaler_guidance_scale": 1.0}
    with pytest.raises(ValueError, match=f"{key} = 'blurry'.*guidance_scale=5.0.*{key}="):
        loading.open_stages(configs.changed(plan, {key: "blurry", **off}))
    loading.open_stages(configs.changed(plan, off))


@pytest.mark.parametrize("threshold", ["static", "dynamic"])
def test_a_threshold_is_for_models_that_draw_pixels(threshold: str) -> None:
    """Saharia et al. 2022: x0 is kept where pixels lie, in [-1, 1]. Latents have no such range."""
    plan = configs.changed(configs.resolve(configs.base_config()), {"sampler.threshold": threshold})
    stage = loading.open_stages(plan)["base"]
    of_latents = dataclasses.replace(stage, codec=SimpleNamespace(factor=1, component="vae"))
    told = generate.Settings("ddim", 2, 1.0, threshold=threshold)
    with pytest.raises(ValueError, match=rf"threshold = '{threshold}'.*latents.*threshold=model"):
        generate.check({"base": of_latents}, {"base": told})
    for own in ("model", "none"):
        usual = dataclasses.replace(told, threshold=own)
        generate.check({"base": of_latents}, {"base": usual})
