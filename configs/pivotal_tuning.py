r"""Pivotal tuning on the embedded base: first a new word for the subject, then the model around it.

Roich et al. 2021 (arXiv:2106.05744) invert a picture first and fine-tune the generator around the
fixed result, the pivot; of a diffusion model the pivot is the embedding of a new token.

    python -m dreambooth_jax.main --config=configs/pivotal_tuning.py
    python -m dreambooth_jax.main --config=configs/pivotal_tuning.py:lora \
        --config.base_model=FOLDER --config.adapt.num_vectors=2

The folder `export` has the whole model with its tokenizer; of `lora`, diffusers also takes
`learned_embeds.safetensors` and `lora/` over the untouched base.
"""

from dreambooth_jax import config


def get_config(arg: str = "") -> config.ConfigDict:
    """100 steps for the new token's embedding, then 200 in full, or by LoRA with `lora`."""
    then = config.variant(arg, ("full", "lora")) or "full"
    c = config.base_config()
    c.upscaler_model = ""
    c.stages = ("base",)
    c.adapt.name = "pivotal"
    c.adapt.then = then
    c.adapt.inversion_steps = 100
    c.adapt.inversion_learning_rate = 2e-2  # as configs/textual_inversion.py
    c.train.num_steps = 300
    c.train.batch_size = 8
    c.optim.learning_rate = 1e-3 if then == "lora" else 2e-4
    c.optim.warmup_steps = 10  # of each phase
    c.prior.batch_size = 16
    c.sample.batch_size = 16
    c.sampler.num_steps = 50
    c.sampler.guidance_scale = 4.0
    return c
