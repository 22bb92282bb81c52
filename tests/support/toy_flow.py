"""A family of its own in sixty lines: a small flow transformer over pixels that reads a T5.

What a new family costs: a network, its four parts, one entry in `families.FAMILIES`.
"""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from cascades import ASSETS, TEXT, random_weights
from flax import nnx

from dreambooth_jax import tree, weights
from dreambooth_jax.families import unet
from dreambooth_jax.models import layers
from dreambooth_jax.pipeline import Codec, Conditioner, Denoiser, Family, Frame, Stage

NAME, WIDTH = "ToyFlowPipeline", 16
PARTS = ("transformer", "text_encoder", "tokenizer", "scheduler")


class Network(nnx.Module):
    """Tokens of one pixel each attend to each other and to the text, then give a velocity."""

    def __init__(self) -> None:
        self.x_in, self.text_in = layers.Linear(3, WIDTH), layers.Linear(TEXT["d_model"], WIDTH)
        self.time_in, self.to_out = layers.Linear(WIDTH, WIDTH), layers.Linear(WIDTH, WIDTH)
        self.to_q, self.to_k, self.to_v = (layers.Linear(WIDTH, WIDTH) for _ in range(3))
        self.proj_out = layers.Linear(WIDTH, 3)

    def __call__(self, x, t, text):
        waves = layers.time_sinusoid(t, WIDTH, flip_sin_to_cos=True, freq_shift=0.0)
        tokens = self.x_in(x.reshape(len(x), -1, 3))
        tokens += self.time_in(waves.astype(x.dtype))[:, None]
        both = jnp.concatenate([tokens, self.text_in(text)], 1)
        q, k, v = (f(y)[:, :, None] for f, y in ((self.to_q, tokens), (self.to_k, both),
                                                 (self.to_v, both)))  # fmt: skip
        tokens += self.to_out(layers.attention(q, k, v)[:, :, 0])
        return self.proj_out(tokens).reshape(x.shape)


def _predict(network, xt, t, text, *, remat):
    del remat
    return network(xt.astype(text.dtype), t, text)


def _build(folder):
    encoder = {"text_encoder": unet.t5_encoder(folder)}
    return Stage(
        kind="base", folder=folder.root, variant=folder.variant, family=FAMILY,
        denoiser=Denoiser("transformer", layers.take_apart(Network()), _predict, channels=3),
        codec=Codec(), conditioner=Conditioner(encoder, _states, trainable=("text_encoder",)),
        path=unet.path(folder), frame=Frame((8, 8)),
    )  # fmt: skip


def _states(encoders, tokens, dtype):
    return encoders["text_encoder"](tokens["ids"], tokens["mask"], dtype=dtype)


FAMILY = Family(
    NAME, "base", _build, r".*/to_[qkv]/kernel", ((".*", "fsdp"),),
    unet.kohya({"transformer": "lora_transformer", "text_encoder": "lora_te"}),
)  # fmt: skip


def make(folder: Path, *, seed: int = 0) -> Path:
    """Writes a model folder of this family with random weights; `FAMILY` must be in the table."""
    from dreambooth_jax import families

    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    for name, content in {
        "transformer/config.json": {},
        "text_encoder/config.json": TEXT,
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": {"_class_name": NAME, **{part: [None, None] for part in PARTS}},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    shutil.copytree(ASSETS / "base" / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    stage = families.open_stage(str(folder), kind="base")
    flat = random_weights(stage.abstract, seed=seed)
    for part, stem in stage.components.items():
        weights.write(folder / part, tree.prefixed(flat, part), dtype="float32", stem=stem)
    assert all(np.isfinite(leaf).all() for leaf in flat.values())
    return folder
