r"""DreamBooth by LoRA on FLUX.1-dev, 1024 pixels; FLUX.1-schnell with care.

    python -m dreambooth_jax.main --config=configs/flux.py:dev \
        --config.subject.images=photos/duck --config.subject.class_noun=toy --workdir=runs/duck

11.9 billion parameters, 22.2 GiB in bfloat16, divided over `mesh.fsdp` devices, and a T5 of 8.9 GiB
that is freed once prompts are encoded. `--mode=precompile` tells memory and time on a device.

Rank 16 on attention and feed-forward layers, AdamW at 1e-4, as diffusers' and other scripts have
it; not measured here. The scale of guidance is an input of the network: it is trained at 1.0, since
at others the loss would undo what it was distilled for, and drawn at 3.5
(black-forest-labs/flux, issue 79). Class rows are held to what the untouched model predicts, at the
same guidance; class images, drawn at 3.5, would be another function's.

`schnell` was distilled to draw in four steps without guidance, which training undoes. It is trained
beside a LoRA that makes up for that, `--config.adapt.assistant=FILE`, such as
ostris/FLUX.1-schnell-training-adapter; the file has no part in what is drawn or exported.

The licence of FLUX.1-dev is not for commercial use and the weights are gated; schnell's is
Apache-2.0.
"""

from dreambooth_jax import config

MODELS = {
    "dev": "black-forest-labs/FLUX.1-dev",
    "schnell": "black-forest-labs/FLUX.1-schnell",
}


def get_config(arg: str = "") -> config.ConfigDict:
    """`dev` (the default) or `schnell`."""
    name = config.variant(arg, tuple(MODELS)) or "dev"
    c = config.flow_lora(MODELS[name])
    c.prior.kind = "prediction"
    c.sample.batch_size = 4
    c.train.num_steps = 1000
    c.sampler.num_steps = 28 if name == "dev" else 4
    c.sampler.guidance_scale = 3.5 if name == "dev" else 1.0
    return c
