r"""DreamBooth on Z-Image: LoRA of its transformer, the language model as it is.

    python -m dreambooth_jax.main --config=configs/z_image.py \
        --config.subject.images=photos/duck --config.subject.class_noun=toy --workdir=runs/duck

6.2 billion parameters of the transformer and 3.9 of the text encoder, which is read once. Tokens
are 16 pixels a side: `--config.resolution=512` takes about a quarter of the work of 1024. Numbers
are those of LoRA trainers of the model at its release: rank 16, 1e-4. Guidance here counts from the
prediction without a prompt: 5 is what diffusers calls 4. Z-Image Turbo is distilled: it is trained
beside a LoRA that makes up for that, `--config.adapt.assistant=FILE`, and drawn without. Read the
licence in the model's repository. `python -m dreambooth_jax.main --mode=precompile` tells what a
device needs.
"""

from dreambooth_jax import config


def get_config(arg: str = "") -> config.ConfigDict:
    """1024 pixels of Z-Image, not of the distilled Turbo, whose distillation training undoes."""
    config.variant(arg, ())
    c = config.flow_lora("Tongyi-MAI/Z-Image")
    c.resolution = 1024
    c.prior.num_images = 100
    c.prior.batch_size = 2
    c.train.num_steps = 800
    c.sampler.guidance_scale = 5.0
    return c
