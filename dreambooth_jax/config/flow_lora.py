"""The settings that the configurations of flow transformers share: LoRA in bfloat16."""

from ml_collections import ConfigDict

from dreambooth_jax.config.base import base_config


def flow_lora(model: str) -> ConfigDict:
    """LoRA of rank 16 on a flow transformer at 1e-4, one photo and one class row a step.

    Samples are drawn by Euler's method. Other settings are those of `base_config`.
    """
    c = base_config()
    c.base_model = model
    c.upscaler_model = ""
    c.stages = ("base",)
    c.dtype = "bfloat16"
    c.subject.images = "photos"
    c.subject.class_noun = "dog"
    c.sample.batch_size = 2
    c.adapt.name = "lora"
    c.adapt.rank = 16
    c.train.batch_size = 2  # one photo and one class row
    c.train.remat = "blocks"
    c.optim.learning_rate = 1e-4
    c.sampler.name = "ddim"  # Euler's method, on a flow
    c.sampler.num_steps = 28
    c.export.dtype = "bfloat16"  # float16 has no room for what bfloat16 weights may hold
    return c
