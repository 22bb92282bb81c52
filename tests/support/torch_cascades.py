"""A tiny DeepFloyd IF cascade with random weights, made and saved by PyTorch diffusers.

The networks of `cascades`, 8² → 16². Only tests with PyTorch import this.
"""

from pathlib import Path
from typing import Any

import cascades
import diffusers
import torch
import transformers

CLASSES = {"base": "IFPipeline", "upscaler": "IFSuperResolutionPipeline"}


def make(folder: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    """Writes one stage into `folder`, the base in shards; returns the folder and its parts."""
    config = cascades.UNET if kind == "base" else cascades.UPSCALER
    torch.manual_seed(3)
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel(
            **{key: value for key, value in config.items() if not key.startswith("_")}
        ),
        "text_encoder": transformers.T5EncoderModel(transformers.T5Config(**cascades.TEXT)),
        "tokenizer": transformers.AutoTokenizer.from_pretrained(
            cascades.ASSETS / "base" / "tokenizer"
        ),
        "scheduler": diffusers.DDPMScheduler.from_config(cascades.SCHEDULER),
    }
    if kind == "upscaler":
        parts["image_noising_scheduler"] = diffusers.DDPMScheduler()
    nothing = {"safety_checker": None, "feature_extractor": None, "watermarker": None}
    pipe = getattr(diffusers, CLASSES[kind])(**parts, **nothing, requires_safety_checker=False)
    pipe.save_pretrained(folder, max_shard_size="200KB" if kind == "base" else "1GB")
    return folder, parts
