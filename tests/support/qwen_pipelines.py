"""Tiny pipelines of Z-Image and FLUX.2 klein with random weights, made and saved by diffusers.

Only tests with PyTorch import this.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import qwen_tokenizers
import torch
import transformers

from dreambooth_jax import generate

READ = (1, 2, 3)  # layers of the tiny Qwen3 that klein reads, instead of `families.flux2.READ`
CLASSES = {
    "z_image": diffusers.ZImagePipeline,
    "klein": diffusers.Flux2KleinPipeline,
}
QWEN3 = {
    "vocab_size": 270,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 1e6,
}
_VAE = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
_DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def _z_image() -> dict[str, Any]:
    return {
        "transformer": diffusers.ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=24,
            axes_dims=[4, 6, 6],
            axes_lens=[640, 64, 64],
        ),
        "vae": diffusers.AutoencoderKL(
            **_VAE,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": transformers.Qwen3Model(transformers.Qwen3Config(**QWEN3)),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    }


def _klein() -> dict[str, Any]:
    return {
        "transformer": diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=72,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        "vae": diffusers.AutoencoderKLFlux2(**_VAE),
        "text_encoder": transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**QWEN3)),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(**_DYNAMIC),
    }


_PARTS = {"z_image": _z_image, "klein": _klein}


def make(folder: Path, family: str) -> Path:
    """Writes the tiny pipeline of a family into `folder`."""
    torch.manual_seed(0)
    parts = _PARTS[family]()
    with torch.no_grad():
        for name in ("transformer", "text_encoder"):
            for parameter in parts[name].parameters():
                parameter.normal_(0.0, 0.15)
        if family == "klein":
            parts["vae"].bn.running_mean.normal_()
            parts["vae"].bn.running_var.uniform_(0.5, 2.0)
    words = qwen_tokenizers.make(folder.with_name(f"{folder.name}-words"))
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(words)
    CLASSES[family](**parts, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def drawn_by_them(
    pipe: Any, stage: Any, prompts: Sequence[str], *, height: int, width: int
) -> np.ndarray:
    """Pictures `[2,H,W,3]` in [0, 1] of PyTorch's pipeline in 3 steps from our first noise.

    The seeds are 1 and 2; ours are those of `generate.Settings("ddim", 3, 4.0)`.
    """
    named = [generate.rng.named(jax.random.key(seed), "sample/base") for seed in (1, 2)]
    noise = generate.sampler.first_noise(jnp.stack(named), stage.sample_shape)
    klein = isinstance(pipe, diffusers.Flux2KleinPipeline)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt=list(prompts),
        num_inference_steps=3,
        guidance_scale=4.0 if klein else 3.0,  # Z-Image's is counted from the prompt's prediction
        height=height,
        width=width,
        latents=torch.from_numpy(np.array(noise)).movedim(-1, 1),
        output_type="np",
        **({"text_encoder_out_layers": READ} if klein else {"negative_prompt": [""] * 2}),
    ).images
