"""Tiny Stable Diffusion pipelines with random weights, made and saved by PyTorch diffusers.

8² latents of 16² pictures. Only tests with PyTorch import this.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from dreambooth_jax import generate

UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}
VAE = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 16,
    "scaling_factor": 0.18215,
}
CLIP = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
    "vocab_size": 514,
}
SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
# By variant: what is changed in the UNet, the (first) text encoder and the scheduler.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sd1": {},
    "sd2": {
        "unet": {
            "use_linear_projection": True,
            "upcast_attention": True,
            "attention_head_dim": [2, 8],
            "down_block_types": ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        },
        "text": {"hidden_act": "gelu"},
        "scheduler": {"prediction_type": "v_prediction"},
    },
    "sdxl": {
        "unet": {
            "use_linear_projection": True,
            "attention_head_dim": [2, 4],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2],
            "cross_attention_dim": 32 + 40,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 24,
        },
    },
}


def write_tokenizer(folder: Path, *, pad: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer whose words are their letters: all bytes, alone and at a word's end."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [256 + i for i in range(256 - len(kept))]
    letters = [chr(code) for code in [*kept, *rest]]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    about = {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": pad,
        "model_max_length": 77,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def make(folder: Path, variant: str, **save: Any) -> Path:
    """Writes the pipeline of a variant into `folder`; `save` goes to `save_pretrained`."""
    changed = VARIANTS[variant]
    torch.manual_seed(0)
    clip = transformers.CLIPTextConfig(**CLIP | changed.get("text", {}))
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel(**UNET | changed.get("unet", {})),
        "vae": diffusers.AutoencoderKL(**VAE),
        "text_encoder": transformers.CLIPTextModel(clip),
        "tokenizer": write_tokenizer(folder.with_name(f"{folder.name}-words")),
        "scheduler": diffusers.DDIMScheduler(**SCHEDULER | changed.get("scheduler", {})),
    }
    if variant == "sdxl":
        second = CLIP | {"hidden_size": 40, "projection_dim": 24, "hidden_act": "gelu"}
        config = transformers.CLIPTextConfig(**second)
        words = folder.with_name(f"{folder.name}-words2")
        pipe = diffusers.StableDiffusionXLPipeline(
            **parts,
            text_encoder_2=transformers.CLIPTextModelWithProjection(config),
            tokenizer_2=write_tokenizer(words, pad="!"),
            force_zeros_for_empty_prompt=True,
            add_watermarker=False,
        )
    else:
        pipe = diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )
    pipe.save_pretrained(folder, **save)
    return folder


def drawn_by_them(pipe: Any, stage: Any, prompts: Sequence[str]) -> np.ndarray:
    """What PyTorch's pipeline draws in 3 steps of DDIM from our first noise of the seeds 1 and 2.

    Its height and width are those that the files tell.

    Pictures `[2,H,W,3]` in [0, 1]; ours are those of `generate.Settings("ddim", 3, 4.0)`.
    """
    named = [generate.rng.named(jax.random.key(seed), "sample/base") for seed in (1, 2)]
    noise = generate.sampler.first_noise(jnp.stack(named), stage.sample_shape)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        list(prompts),
        num_inference_steps=3,
        guidance_scale=4.0,
        latents=torch.from_numpy(np.array(noise)).movedim(-1, 1),
        output_type="np",
    ).images
