r"""DreamBooth on Stable Diffusion XL 1.0: the UNet in full, both text encoders as they are.

    python -m dreambooth_jax.main --config=configs/sdxl.py \
        --config.subject.images=photos/duck --config.subject.class_noun=toy --workdir=runs/duck

2.6 billion parameters in float32 with AdamW take 41 GB, divided over `mesh.fsdp` devices.
"""

from dreambooth_jax import config


def get_config(arg: str = "") -> config.ConfigDict:
    """1024 pixels; `--config.resolution=512` takes a quarter of the work."""
    config.variant(arg, ())
    c = config.base_config()
    c.base_model = "stabilityai/stable-diffusion-xl-base-1.0"
    c.upscaler_model = ""
    c.stages = ("base",)
    c.dtype = "bfloat16"
    c.subject.images = "photos"
    c.subject.class_noun = "dog"
    c.prior.num_images = 200
    c.prior.batch_size = 4
    c.sample.batch_size = 4
    c.train.num_steps = 500
    c.train.batch_size = 2  # one photo and one class image
    c.train.remat = "dots"  # less memory, and fewer bytes to move than "none": docs/tpu.md
    c.optim.learning_rate = 2e-6
    c.sampler.name = "ddim"
    c.sampler.num_steps = 50
    c.sampler.guidance_scale = 5.0
    return c
