"""A tiny cascade in the diffusers layout with random weights, for tests that run things.

8² → 16², seconds to compile. The layout is DeepFloyd IF's, the tokenizer the embedded one. Weights
are random but not zero anywhere, so that every leaf matters to the output.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import dreambooth_jax
from dreambooth_jax import families, tree, weights

ASSETS = Path(dreambooth_jax.__file__).parent / "assets"

TEXT = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "vocab_size": 2000,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "use_cache": False,
    "tie_word_embeddings": False,
}
UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 32,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4,
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
    "norm_num_groups": 8,
}
# One level and two heads: half of what `UNET` takes to trace and compile.
ONE_LEVEL = {
    "block_out_channels": [16],
    "down_block_types": ["SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D"],
    "attention_head_dim": 8,
}
UPSCALER = UNET | {
    "sample_size": 16,
    "in_channels": 6,
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "time_embedding_act_fn": "gelu",
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
}
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
    "clip_sample": True,
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
}
INDEX = {
    "requires_safety_checker": False,
    "feature_extractor": [None, None],
    "safety_checker": [None, None],
    "watermarker": [None, None],
    "scheduler": ["diffusers", "DDPMScheduler"],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
}


def make(folder: Path, kind: str, *, seed: int = 0, **changed: dict[str, Any]) -> Path:
    """Writes one stage, "base" or "upscaler", into `folder`; `unet=…`, … change keys of a file."""
    files = {
        "unet/config.json": (UNET if kind == "base" else UPSCALER) | changed.get("unet", {}),
        "text_encoder/config.json": TEXT | changed.get("text_encoder", {}),
        "scheduler/scheduler_config.json": SCHEDULER | changed.get("scheduler", {}),
        "model_index.json": {"_class_name": "IFPipeline"} | INDEX,
    }
    if kind == "upscaler":
        files["image_noising_scheduler/scheduler_config.json"] = {
            "_class_name": "DDPMScheduler",
            "beta_schedule": "squaredcos_cap_v2",
        }
        index = INDEX | {"image_noising_scheduler": ["diffusers", "DDPMScheduler"]}
        files["model_index.json"] = {"_class_name": "IFSuperResolutionPipeline"} | index
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    shutil.copytree(ASSETS / "base" / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    stage = families.open_stage(str(folder), kind=kind)
    flat = random_weights(stage.abstract, seed=seed)
    for part, stem in stage.components.items():
        weights.write(folder / part, tree.prefixed(flat, part), dtype="float32", stem=stem)
    return folder


def random_weights(abstract: tree.Flat, *, seed: int) -> tree.Flat:
    """Values of a size that keeps activations near one, and no leaf zero."""
    rng = np.random.default_rng(seed)
    flat = {}
    for path, leaf in abstract.items():
        value = rng.normal(size=leaf.shape)
        if path.endswith("/kernel"):
            value = value / np.sqrt(np.prod(leaf.shape[:-1]))
        elif path.endswith("/scale"):
            value = 1 + 0.1 * value
        else:
            value = 0.1 * value
        flat[path] = value.astype(np.float32)
    return flat
