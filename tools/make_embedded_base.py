"""Makes the embedded base: a small Imagen-like cascade, trained by this project on composites.

    python tools/make_embedded_base.py CACHE OUT --stage base        # 32², with its T5 encoder
    python tools/make_embedded_base.py CACHE OUT --stage upscaler    # 32² → 64², on the base's T5

CACHE keeps the material and the checkpoints; stop it whenever you like (Ctrl-C saves), the same
command goes on. OUT gets ordinary diffusers folders, `OUT/base` (IFPipeline) and `OUT/upscaler`
(IFSuperResolutionPipeline); each checkpoint rewrites the averaged weights there, float16.
`dreambooth_jax/assets` is such an OUT.
"""

import argparse
import functools
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from composites import Composites, prepare
from nouns import all_captions

from dreambooth_jax import optim, pipeline, sharding, train, tree, weights
from dreambooth_jax.adapt import FULL
from dreambooth_jax.checkpoint import Checkpoints
from dreambooth_jax.data.captions import Captions
from dreambooth_jax.metrics import JsonlWriter
from dreambooth_jax.models import layers
from dreambooth_jax.signals import GracefulStop

TEXT = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 2000,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "gated-gelu",
    "dropout_rate": 0.1,
    "is_encoder_decoder": False,
    "use_cache": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "dtype": "float32",  # as PyTorch opens it, beside a UNet that it opens in float32 anyway
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "out_channels": 6,
    "layers_per_block": 1,
    "attention_head_dim": 32,
    "cross_attention_dim": 64,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 64,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "silu",
    "norm_num_groups": 8,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "time_embedding_dim": 256,  # it carries the pooled text too: 4 × 16 channels would be narrow
}
PLAIN, ATTEND = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
BASE_UNET = UNET | {
    "sample_size": 32,
    "in_channels": 3,
    "block_out_channels": [16, 32, 64, 128],
    "down_block_types": [PLAIN, PLAIN, ATTEND, ATTEND],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"] * 2,
}
UPSCALER_UNET = UNET | {
    "sample_size": 64,
    "in_channels": 6,
    "block_out_channels": [16, 16, 48, 96],
    "down_block_types": [PLAIN, PLAIN, PLAIN, ATTEND],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"] + ["ResnetUpsampleBlock2D"] * 3,
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "time_embedding_act_fn": "silu",
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "variance_type": "fixed_small",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "timestep_spacing": "leading",
}
NOISING = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
}
EMPTY = {name: [None, None] for name in ("feature_extractor", "safety_checker", "watermarker")}
INDEX = {
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
} | EMPTY


class Phase(NamedTuple):
    """A part of a stage's training: up to which step, pictures of which size, rows per step."""

    until: int | None  # None: as long as --steps says
    size: int
    rows: int
    plain: float | None = None  # share of pictures on plain backgrounds, when not the usual one


# Per stage: its phases, the peak learning rate, the levels of noise on the low-res side. The base
# begins with small pictures, which cost less, and mostly on plain backgrounds: over panoramas alone
# it learned the places and no noun in 90,000 pictures, for a place is most of the pixels.
STAGES: dict[str, dict[str, Any]] = {
    "base": {
        "phases": [
            Phase(2000, 16, 32, plain=0.8),
            Phase(3000, 16, 32, plain=0.4),
            Phase(4000, 32, 32, plain=0.4),
            Phase(None, 32, 32),
        ],
        "learning_rate": 1e-3,
        "levels": (0, 0),
    },
    "upscaler": {"phases": [Phase(None, 64, 8)], "learning_rate": 8e-4, "levels": (0, 400)},
}


def initial_text(network: layers.Network, seed: int) -> tree.Flat:
    """Fresh parameters of a T5 encoder.

    Its attention is not scaled: the queries begin smaller by √d_kv, the table of positions by
    √d_model (Raffel et al. 2020); else each token would see one other at random.
    """
    flat = layers.initial(network, seed)
    for path, value in flat.items():
        if path.endswith("SelfAttention/q/kernel"):
            flat[path] = value / np.float32(TEXT["d_kv"] ** 0.5)
        elif "relative_attention_bias" in path:
            flat[path] = value / np.float32(TEXT["d_model"] ** 0.5)
    return flat


def skeleton(out: Path, kind: str) -> None:
    """Writes all files of a stage's folder but the weights."""
    limit = {"sample_max_value": 1.5 if kind == "base" else 1.0}
    files: dict[str, dict[str, Any]] = {
        "text_encoder/config.json": TEXT,
        "unet/config.json": BASE_UNET if kind == "base" else UPSCALER_UNET,
        "scheduler/scheduler_config.json": SCHEDULER | limit,
        "model_index.json": {"_class_name": "IFPipeline"} | INDEX,
    }
    if kind == "upscaler":
        files["image_noising_scheduler/scheduler_config.json"] = NOISING
        index = INDEX | {"image_noising_scheduler": ["diffusers", "DDPMScheduler"]}
        files["model_index.json"] = {"_class_name": "IFSuperResolutionPipeline"} | index
        shutil.copytree(out / "base" / "tokenizer", out / kind / "tokenizer", dirs_exist_ok=True)
    for name, content in files.items():
        file = out / kind / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")


def write_weights(folder: Path, flat: tree.Flat) -> None:
    """Both components, float16, into their folders."""
    for part in ("unet", "text_encoder"):
        stem = pipeline.COMPONENTS[part]
        weights.write(folder / part, tree.prefixed(flat, part), dtype="float16", stem=stem)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stage", choices=STAGES, required=True)
    parser.add_argument(
        "--steps", type=int, required=True, help="optimizer steps in all, over all runs"
    )
    parser.add_argument(
        "--save_every", type=int, default=250, help="optimizer steps between two checkpoints"
    )
    parser.add_argument(
        "--first_step",
        type=int,
        default=0,
        help="without checkpoints, begin at this step with the weights that lie in OUT",
    )
    args = parser.parse_args()
    logging.set_verbosity(logging.INFO)
    made, kind = STAGES[args.stage], args.stage

    skeleton(args.out, kind)
    stage = pipeline.open_stage(str(args.out / kind), kind=kind)
    fresh = tree.with_prefix(layers.initial(stage.unet, seed=0), "unet")
    if kind == "base":
        fresh |= tree.with_prefix(initial_text(stage.text_encoder, seed=1), "text_encoder")
        rules = [(".*", True)]
    else:
        text = weights.read(args.out / "base" / "text_encoder", stage.text_encoder.abstract)
        fresh |= tree.with_prefix(text, "text_encoder")
        rules = [("unet/.*", True), (".*", False)]
    if args.first_step:
        fresh = pipeline.read_weights(stage)

    adapter = FULL
    trainable, frozen_weights = adapter.init(fresh, rules)
    settings = ml_collections.ConfigDict(
        {
            "name": "adamw",
            "learning_rate": made["learning_rate"],
            "text_encoder_learning_rate": None,
            "warmup_steps": 200,
            "schedule": "cosine",
            "final_fraction": 0.05,
            "b1": 0.9,
            "b2": 0.99,
            "eps": 1e-8,
            "weight_decay": 1e-2,
            "grad_clip": 1.0,
        }
    )
    recipe = train.Recipe(seed=0, ema_decay=0.999, aug_levels=made["levels"])
    prompts = ["", *all_captions()]
    material = prepare(args.cache)
    sources = []
    for number, phase in enumerate(made["phases"]):
        render = Composites(material, size=phase.size, seed=number, plain=phase.plain).render
        low_size = 32 if kind == "upscaler" else None
        source = Captions(render, prompts, batch_size=phase.rows, seed=number, low_size=low_size)
        sources.append((phase.until, source))
    encoded = stage.tokens(prompts)
    frozen: dict[str, Any] = {"weights": frozen_weights}
    if kind == "upscaler":
        encode = jax.jit(functools.partial(stage.encode_text, dtype=jnp.float32))
        frozen["table"] = encode(frozen_weights, encoded)

    def batch_at(step: int) -> dict[str, Any]:
        source = next(source for until, source in sources if until is None or step < until)
        batch = source.batch(step)
        if kind == "base":  # the text encoder learns too: the rows' own tokens travel with them
            rows = batch["prompt"]
            batch |= {"ids": encoded["ids"][rows], "mask": encoded["mask"][rows]}
            batch["prompt"] = jnp.arange(len(rows), dtype=jnp.int32)
        return batch

    mesh = sharding.make_mesh()
    run = train.compiled(
        trainable,
        frozen,
        stage=stage,
        recipe=recipe,
        adapter=adapter,
        tx=optim.make(settings, num_steps=args.steps - args.first_step),
        mesh=mesh,
        rules=[(".*", "replicate")],
        min_bytes=0,
    )
    state = run.init(trainable).replace(step=jnp.int32(args.first_step))
    frozen = jax.tree.map(lambda x, s: sharding.put(x, s), frozen, run.frozen)
    millions = tree.count(trainable) / 1e6
    logging.info("%s: %d leaves, %.2f M parameters trained", kind, len(trainable), millions)

    config = {
        "stage": made,
        "optim": settings.to_dict(),
        "unet": BASE_UNET if kind == "base" else UPSCALER_UNET,
    }
    folder = args.cache / "checkpoints" / kind
    with (
        Checkpoints(folder, max_to_keep=2, config=config, may_differ=["stage"]) as checkpoints,
        GracefulStop() as stop,
    ):
        restored = checkpoints.restore(run.state)
        state = state if restored is None else restored[0]

        def export(step: int, state: train.TrainState) -> None:
            write_weights(args.out / kind, {**fresh, **jax.tree.map(sharding.fetch, state.ema)})

        train.fit(
            run,
            state,
            frozen,
            batch_at,
            pace=train.Pace(args.steps, 50, args.save_every, args.save_every, 5),
            label=kind,
            writer=JsonlWriter(args.cache / f"{kind}.jsonl"),
            checkpoints=checkpoints,
            stop=stop,
            on_sample=export,
        )
    logging.info("%s: done", kind)


if __name__ == "__main__":
    main()
