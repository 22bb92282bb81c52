r"""DreamBooth on an Imagen-like pixel cascade with T5 text, both stages fine-tuned: the main job.

Ruiz et al. 2022 (arXiv:2208.12242) fine-tune Imagen for about 1000 steps at 1e-5 with λ = 1, 3-5
photos and about 1000 class images, and its super-resolution stage on pairs of the same photos with
little noise on the low-res side. The embedded cascade is some thousand times smaller than Imagen:
it wants a larger learning rate, fewer steps and fewer class images.

    python -m dreambooth_jax.main --config=configs/imagen_like.py
    python -m dreambooth_jax.main --config=configs/imagen_like.py \
        --config.subject.images=photos/duck --config.subject.class_noun=toy --workdir=runs/duck
    python -m dreambooth_jax.main --config=configs/imagen_like.py:smoke  # a trial, seconds

Needs nothing but the package: the base cascade and the photos are embedded.
"""

from dreambooth_jax import config


def get_config(arg: str = "") -> config.ConfigDict:
    """The main job; `smoke` walks through all its parts in a few steps."""
    c = config.base_config()
    c.prior.num_images = 64
    c.prior.batch_size = 16  # as the grids' below: one compiled program draws both
    c.sample.batch_size = 16
    c.sample.prompts = (  # places where the embedded photos do not show the subject, a material
        "a {subject}",
        "a {subject} in the desert",
        "a {subject} at sunset",
        "a {subject} in the sky",
        "a {subject} at night",
        "a gold {subject}",
        "{class_prompt}",
        "{class_prompt} in the desert",
    )

    c.train.num_steps = 300
    c.train.batch_size = 8
    c.train.log_every = 5
    c.train.held_out_every = 50
    c.train.sample_every = 100
    c.train.keep_weights_every = 100
    c.train.checkpoint_every = 100
    c.optim.learning_rate = 5e-4
    c.optim.warmup_steps = 20
    c.upscaler.num_steps = 100
    c.upscaler.batch_size = 4
    c.upscaler.learning_rate = 1e-4

    c.sampler.num_steps = 50
    c.sampler.guidance_scale = 2.0
    c.sampler.upscaler_num_steps = 20
    c.sampler.upscaler_guidance_scale = 1.0

    if config.variant(arg, ("smoke",)) == "smoke":
        c.prior.num_images = 4
        c.prior.batch_size = c.sample.batch_size = 4
        c.train.num_steps = 4
        c.train.batch_size = 4
        c.train.log_every = 1
        c.train.held_out_every = 2
        c.train.sample_every = 2
        c.train.checkpoint_every = 2
        c.optim.warmup_steps = 1
        c.upscaler.num_steps = 2
        c.sampler.num_steps = 2
        c.sampler.upscaler_num_steps = 2
        c.sample.prompts = ("a {subject} in the forest", "a {class_noun}")
        c.sample.num_images = 1
        c.evaluate.at_end = False  # a judge takes longer to compile than all of the rest
    return c
