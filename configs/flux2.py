r"""DreamBooth on FLUX.2 [klein]: LoRA of its transformer, the language model as it is.

    python -m dreambooth_jax.main --config=configs/flux2.py:klein_4b \
        --config.subject.images=photos/duck --config.subject.class_noun=toy --workdir=runs/duck

`:klein_4b` has 3.9 billion parameters in the transformer and 3.1 in what is read of Qwen3-4B,
`:klein_9b` 9.1 and 5.8. Tokens are 16 pixels a side: `--config.resolution=512` takes about a third
of the work of 1024. Numbers are those of LoRA trainers of the models at their release: rank 16,
1e-4. The base models are trained; a LoRA of them may be drawn with the distilled ones. Read each
model's licence: 4B and 9B have different ones. `python -m dreambooth_jax.main --mode=precompile`
tells what a device needs.
"""

from dreambooth_jax import config

VARIANTS = {
    "klein_4b": "black-forest-labs/FLUX.2-klein-base-4B",
    "klein_9b": "black-forest-labs/FLUX.2-klein-base-9B",
}


def get_config(arg: str = "klein_4b") -> config.ConfigDict:
    """1024 pixels of a base model; the ones that are distilled to four steps are refused."""
    config.variant(arg, tuple(VARIANTS))
    c = config.flow_lora(VARIANTS[arg or "klein_4b"])
    c.resolution = 1024
    c.prior.num_images = 100
    c.prior.batch_size = 2
    c.train.num_steps = 800
    c.sampler.guidance_scale = 4.0
    return c
