r"""DreamBooth on Stable Diffusion 1.5 or 2.1: the UNet, or with it the text encoder.

Ruiz et al. 2022 (arXiv:2208.12242) give 5e-6 for Stable Diffusion, about 1000 steps and λ = 1;
"less can be used" than their 1000 class images, and 200 are what most people use.

    python -m dreambooth_jax.main --config=configs/stable_diffusion.py:sd15 \
        --config.subject.images=photos/duck --config.subject.class_noun=toy --workdir=runs/duck
    python -m dreambooth_jax.main --config=configs/stable_diffusion.py:sd21 …  # 768 pixels, v
    python -m dreambooth_jax.main --config=configs/stable_diffusion.py:sd15_text …  # and the text

`base_model` may be any folder or hub id of a `StableDiffusionPipeline`, `resolution` any multiple
of 64 pixels.
"""

from dreambooth_jax import config

MODELS = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd15_text": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "stabilityai/stable-diffusion-2-1",
}


def get_config(arg: str = "") -> config.ConfigDict:
    """`sd15` (the default), `sd15_text` with its text encoder, or `sd21`."""
    name = config.variant(arg, tuple(MODELS)) or "sd15"
    c = config.base_config()
    c.base_model = MODELS[name]
    c.upscaler_model = ""
    c.stages = ("base",)
    c.dtype = "bfloat16"
    c.subject.images = "photos"
    c.subject.class_noun = "dog"
    c.prior.num_images = 200
    c.prior.batch_size = 8
    c.sample.batch_size = 8
    c.train.num_steps = 800
    c.train.batch_size = 2  # one photo and one class image
    c.train.remat = "dots"  # less memory, and fewer bytes to move than "none": docs/tpu.md
    c.train.text_encoder = name.endswith("_text")
    c.optim.learning_rate = 2e-6 if c.train.text_encoder else 5e-6
    if c.train.text_encoder:
        c.optim.text_encoder_learning_rate = 1e-6  # it forgets sooner than the UNet learns
    c.sampler.name = "ddim"
    c.sampler.num_steps = 50
    c.sampler.guidance_scale = 7.5
    return c
