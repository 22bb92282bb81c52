"""Folders of the embedded cascade in diffusers' layout, and the weights that it begins with."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import families, pipeline, tree, weights
from dreambooth_jax.models import layers

SHIPPED = Path(pipeline.__file__).resolve().parents[1] / "assets"
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


def base_unet(channels: tuple[int, ...], layers_per_block: int = 1) -> dict[str, Any]:
    """Returns the configuration of a base UNet: levels of 16² and above do not attend."""
    plain = [32 >> level > 8 for level in range(len(channels))]
    return BASE_UNET | {
        "block_out_channels": list(channels),
        "layers_per_block": layers_per_block,
        "down_block_types": [PLAIN if p else ATTEND for p in plain],
        "up_block_types": [
            "ResnetUpsampleBlock2D" if p else "SimpleCrossAttnUpBlock2D" for p in plain[::-1]
        ],
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


def write_json(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the files of a model folder, by their names in it."""
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n")


def skeleton(out: Path, kind: str, unet: dict[str, Any]) -> None:
    """Writes all files of a stage's folder but the weights; the tokenizer is the shipped one."""
    limit = {"sample_max_value": 1.5 if kind == "base" else 1.0}
    files: dict[str, dict[str, Any]] = {
        "text_encoder/config.json": TEXT,
        "unet/config.json": unet,
        "scheduler/scheduler_config.json": SCHEDULER | limit,
        "model_index.json": {"_class_name": "IFPipeline"} | INDEX,
    }
    if kind == "upscaler":
        files["image_noising_scheduler/scheduler_config.json"] = NOISING
        index = INDEX | {"image_noising_scheduler": ["diffusers", "DDPMScheduler"]}
        files["model_index.json"] = {"_class_name": "IFSuperResolutionPipeline"} | index
    base = out / "base" / "tokenizer"
    words = base if kind == "upscaler" and base.is_dir() else SHIPPED / "base" / "tokenizer"
    if words.resolve() != (out / kind / "tokenizer").resolve():
        shutil.copytree(words, out / kind / "tokenizer", dirs_exist_ok=True)
    write_json(out / kind, files)


def initial(stage: pipeline.Stage, start: Path | None, *, seed: int = 0) -> tree.Flat:
    """Returns fresh parameters, those of a stage's folder in their place where shapes match.

    start: a folder with weights, or None. The names of leaves are compared, so the first levels of
    two UNets match when their channels do, and text encoders of one configuration match whole.
    """
    flat = tree.with_prefix(layers.initial(stage.denoiser.network, seed=seed), "unet")
    flat |= tree.with_prefix(initial_text(stage.networks["text_encoder"], seed + 1), "text_encoder")
    if start is not None:
        known = pipeline.read_weights(families.open_stage(str(start), kind=stage.kind))
        flat |= {p: x for p, x in known.items() if p in flat and flat[p].shape == x.shape}
    return flat


def write_weights(folder: Path, flat: tree.Flat) -> None:
    """Writes both components, float16, into their folders."""
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        weights.write(folder / part, tree.prefixed(flat, part), dtype="float16", stem=stem)
