"""Tiny pipelines of flow transformers with random weights, made and saved by PyTorch diffusers.

8² latents of 16² pictures. Only tests with PyTorch import this.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cascades
import diffusers
import jax
import jax.numpy as jnp
import latents
import numpy as np
import tokenizers
import torch
import transformers

from dreambooth_jax import generate

CLASSES = {
    "sd3": "StableDiffusion3Pipeline",
    "sd3 without t5": "StableDiffusion3Pipeline",
    "flux dev": "FluxPipeline",
    "flux schnell": "FluxPipeline",
}
SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 80,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 16 + 24,
    "pos_embed_max_size": 12,
    "dual_attention_layers": (0,),
    "qk_norm": "rms_norm",
}
FLUX = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 80,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 6, 6),
}
VAE = latents.VAE | {
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}

# A short run of the main command by LoRA, in `commands.config`'s words.
SHORT = {
    "stages": ("base",),
    "resolution": 16,
    "subject__identifier": "zib",
    "upscaler__num_steps": None,
    "upscaler__batch_size": None,
    "prior__num_images": 2,
    "adapt__name": "lora",
    "adapt__rank": 2,
    "train__num_steps": 3,
    "train__sample_every": 0,
    "train__checkpoint_every": 2,
    "train__remat": "blocks",
    "optim__learning_rate": 1e-2,
    "sampler__name": "ddim",
    "sampler__num_steps": 3,
}


def _clip(kind: str, folder: Path, number: int, **changed: Any) -> tuple[Any, Any]:
    config = transformers.CLIPTextConfig(**latents.CLIP | changed)
    words = folder.with_name(f"{folder.name}-words{number}")
    return getattr(transformers, kind)(config), latents.write_tokenizer(words)


def _t5() -> tuple[Any, Any]:
    config = transformers.T5Config(**cascades.TEXT | {"d_model": 80})
    tokenizer = transformers.AutoTokenizer.from_pretrained(cascades.ASSETS / "base" / "tokenizer")
    tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFKC()  # cased, as T5's own is
    return transformers.T5EncoderModel(config), tokenizer


def make(folder: Path, variant: str) -> Path:
    """Writes the pipeline of a variant into `folder`."""
    torch.manual_seed(0)
    shift: dict[str, Any] = {"shift": 3.0}
    parts: dict[str, Any] = {"vae": diffusers.AutoencoderKL(**VAE)}
    if variant.startswith("sd3"):
        kind = "CLIPTextModelWithProjection"
        parts["text_encoder"], parts["tokenizer"] = _clip(kind, folder, 1, projection_dim=16)
        second = {"hidden_size": 40, "projection_dim": 24, "hidden_act": "gelu"}
        parts["text_encoder_2"], parts["tokenizer_2"] = _clip(kind, folder, 2, **second)
        without = variant.endswith("without t5")
        parts["text_encoder_3"], parts["tokenizer_3"] = (None, None) if without else _t5()
        parts["transformer"] = diffusers.SD3Transformer2DModel(**SD3)
    else:
        parts["text_encoder"], parts["tokenizer"] = _clip("CLIPTextModel", folder, 1)
        parts["text_encoder_2"], parts["tokenizer_2"] = _t5()
        dev = variant == "flux dev"
        parts["transformer"] = diffusers.FluxTransformer2DModel(**FLUX, guidance_embeds=dev)
        shift = {"shift": 3.0 if dev else 1.0, "use_dynamic_shifting": dev}
    parts["scheduler"] = diffusers.FlowMatchEulerDiscreteScheduler(**shift)
    with torch.no_grad():
        for parameter in parts["transformer"].parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    getattr(diffusers, CLASSES[variant])(**parts).save_pretrained(folder)
    return folder


def opened_by_them(folder: Path, variant: str) -> Any:
    """The pipeline of a variant; one without its T5 has to be told so."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "without" in variant else {}
    return getattr(diffusers, CLASSES[variant]).from_pretrained(folder, **absent)


def drawn_by_them(
    pipe: Any, stage: Any, prompts: Sequence[str], *, scale: float, steps: int = 3
) -> np.ndarray:
    """Pictures `[2,H,W,3]` in [0, 1] by PyTorch's pipeline, from our noise of seeds 1 and 2."""
    named = [generate.rng.named(jax.random.key(seed), "sample/base") for seed in (1, 2)]
    noise = generate.sampler.first_noise(jnp.stack(named), stage.sample_shape)
    first = torch.from_numpy(np.array(noise)).movedim(-1, 1)
    height, width = (side * stage.codec.factor for side in noise.shape[1:3])
    if isinstance(pipe, diffusers.FluxPipeline):
        first = pipe._pack_latents(first, *first.shape)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=scale,
        height=height,
        width=width,
        latents=first,
        output_type="np",
    ).images
