r"""DreamBooth on DeepFloyd IF: the open Imagen-like cascade, 64² then 256² pixels, with T5-XXL.

    python -m dreambooth_jax.main --config=configs/deepfloyd_if.py \
        --config.subject.images=photos/duck --config.subject.class_noun=toy --workdir=runs/duck
    python -m dreambooth_jax.main --config=configs/deepfloyd_if.py:medium …  # 0.4 and 1.2 billion

The licence must be accepted on the models' pages, then `hf auth login`. The learning rates are
those of diffusers' recipe: larger ones harm the first stage. The second needs fine-tuning only for
subjects with fine detail; `--config.stages="('base',)"` leaves it as it is.
"""

from dreambooth_jax import config

MODELS = {"": "DeepFloyd/IF-I-XL-v1.0", "medium": "DeepFloyd/IF-I-M-v1.0"}


def get_config(arg: str = "") -> config.ConfigDict:
    """IF-I-XL and IF-II-L; `medium` takes the smallest first stage."""
    c = config.base_config()
    c.base_model = MODELS[config.variant(arg, ("medium",))]
    c.upscaler_model = "DeepFloyd/IF-II-L-v1.0"
    c.dtype = "bfloat16"
    c.subject.images = "photos"
    c.subject.class_noun = "dog"
    c.prior.num_images = 200
    c.prior.batch_size = 8
    c.sample.batch_size = 8
    c.train.num_steps = 150
    c.train.batch_size = 4
    c.train.remat = "dots"  # less memory, and fewer bytes to move than "none": docs/tpu.md
    c.optim.learning_rate = 1e-7
    c.upscaler.num_steps = 2000
    c.upscaler.batch_size = 12
    c.upscaler.accumulate = 6
    c.upscaler.learning_rate = 5e-6
    c.sampler.num_steps = 100
    c.sampler.guidance_scale = 7.0
    c.sampler.upscaler_num_steps = 50
    c.sampler.upscaler_guidance_scale = 4.0
    return c
