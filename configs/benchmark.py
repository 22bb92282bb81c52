r"""The paper's benchmark: every subject learned by itself, 25 prompts with 4 pictures each, scored.

Ruiz et al. 2022 (arXiv:2208.12242), section 4: 30 subjects, 3,000 pictures. Runs on the embedded
base, or on the models that people compare:

    git clone https://github.com/google/dreambooth
    python -m dreambooth_jax.main --config=configs/benchmark.py --mode=benchmark \
        --config.benchmark.data=dreambooth --workdir=runs/benchmark
    python -m dreambooth_jax.main --config=configs/benchmark.py:trial …  # all parts, small numbers
    python -m dreambooth_jax.main --config=configs/benchmark.py:sd15 …  # as Table 1's second row
    python -m dreambooth_jax.main --config=configs/benchmark.py:sd15_inversion …  # as its third

`scores.json` in the workdir has every score; `--config.benchmark.subjects="('dog3', 'vase')"` takes
some of the subjects. The same command goes on after a stop.
"""

from dreambooth_jax import config

VARIANTS = ("trial", "sd15", "sd15_inversion", "deepfloyd_if")


def get_config(arg: str = "") -> config.ConfigDict:
    """The embedded base as in `configs/imagen_like.py`, or another base model by its name."""
    name = config.variant(arg, VARIANTS)
    c = config.base_config()
    c.sample.num_images = 4  # of each prompt, by the untouched model and by the tuned one
    if name in ("", "trial"):
        _embedded(c)
    else:
        _published(c, name)
    if name == "trial":
        c.benchmark.subjects = ("backpack_dog", "dog3")
        c.benchmark.num_prompts = 3
        c.benchmark.trial_steps = 2
        c.sample.num_images = 2
        c.prior.num_images = c.prior.batch_size = c.sample.batch_size = 8
        c.train.num_steps = 4
        c.upscaler.num_steps = 2
        c.optim.warmup_steps = 1
        c.sampler.num_steps = c.sampler.upscaler_num_steps = 2
    return c


def _embedded(c: config.ConfigDict) -> None:
    c.prior.num_images = 64
    c.prior.batch_size = c.sample.batch_size = 16
    c.train.num_steps, c.train.batch_size, c.train.checkpoint_every = 300, 8, 100
    c.optim.learning_rate, c.optim.warmup_steps = 2e-4, 20
    c.upscaler.num_steps, c.upscaler.batch_size, c.upscaler.learning_rate = 100, 4, 1e-4
    c.sampler.num_steps, c.sampler.guidance_scale = 50, 4.0
    c.sampler.upscaler_num_steps, c.sampler.upscaler_guidance_scale = 20, 1.0


def _published(c: config.ConfigDict, name: str) -> None:
    """Learning rates and steps as in the configuration of each family."""
    c.dtype = "bfloat16"
    c.prior.num_images = 200
    c.prior.batch_size = c.sample.batch_size = 8
    c.export.dtype = "bfloat16"
    if name == "deepfloyd_if":
        c.base_model, c.upscaler_model = "DeepFloyd/IF-I-XL-v1.0", "DeepFloyd/IF-II-L-v1.0"
        c.stages = ("base",)
        c.train.num_steps, c.train.batch_size = 150, 4
        c.optim.learning_rate = 1e-7
        return
    c.upscaler_model, c.stages = "", ("base",)
    c.sampler.name = "ddim"
    c.sampler.num_steps = 50
    c.train.batch_size = 2  # one photo and one class image
    c.base_model = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    c.train.num_steps = 800
    c.optim.learning_rate = 5e-6
    c.sampler.guidance_scale = 7.5
    if name == "sd15_inversion":
        c.adapt.name = "textual_inversion"
        c.prior_loss_weight = 0.0
        c.train.num_steps = 3000
        c.optim.learning_rate = 5e-3
        c.optim.weight_decay = 0.0
