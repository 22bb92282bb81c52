r"""Textual inversion on the embedded base: nothing but the identifier's embedding is trained.

Gal et al. 2022 (arXiv:2208.01618), the rival that Ruiz et al. 2022 compare with in Table 1: the
model stays as it is, so that nothing is forgotten and little of the subject is learned.

    python -m dreambooth_jax.main --config=configs/textual_inversion.py
    python -m dreambooth_jax.main --config=configs/textual_inversion.py \
        --config.base_model=FOLDER --config.adapt.num_vectors=4 --config.optim.learning_rate=5e-4
"""

from dreambooth_jax import config


def get_config(arg: str = "") -> config.ConfigDict:
    """One new token, started from the class noun; class images are of no use to it."""
    config.variant(arg, ())
    c = config.base_config()
    c.upscaler_model = ""
    c.stages = ("base",)
    c.adapt.name = "textual_inversion"
    c.prior_loss_weight = 0.0
    c.train.num_steps = 300
    c.train.batch_size = 8
    c.optim.learning_rate = 2e-2
    c.optim.weight_decay = 0.0
    c.sampler.num_steps = 50
    c.sampler.guidance_scale = 4.0
    return c
