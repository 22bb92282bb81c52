"""The base model of a run, opened as its settings ask."""

import pytest

from dreambooth_jax import config as configs
from dreambooth_jax.experiment.parts import loading


@pytest.mark.parametrize("key", ["sample.negative_prompt", "prior.negative_prompt"])
def test_a_negative_prompt_without_guidance_is_refused_before_anything_is_read(key: str) -> None:
    plan = configs.resolve(configs.base_config())
    loading.open_stages(configs.changed(plan, {key: "blurry"}))
    off = {"sampler.guidance_scale": 1.0, "sampler.upscaler_guidance_scale": 1.0}
    with pytest.raises(ValueError, match=f"{key} = 'blurry'.*guidance_scale=5.0.*{key}="):
        loading.open_stages(configs.changed(plan, {key: "blurry", **off}))
    loading.open_stages(configs.changed(plan, off))
