"""Small models of every family with random weights, made and saved by PyTorch diffusers.

Latents of 8 positions a side, pictures of 16 pixels; IF's stages make 8 and 16 pixels.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import tokenizers
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

import dreambooth_jax
from dreambooth_jax import pipeline

READ = (1, 2, 3)  # layers of the small Qwen3 that klein reads, for those of `families.flux2.READ`
_ASSETS = Path(dreambooth_jax.__file__).parent / "assets"
_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
# The published template's meaning for one message of a user.
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_T5 = {
    "vocab_size": 2000, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False,
    "tie_word_embeddings": False,
}  # fmt: skip
_CLIP = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 77, "hidden_act": "quick_gelu", "bos_token_id": 512,
    "eos_token_id": 513, "pad_token_id": 513, "vocab_size": 514,
}  # fmt: skip
_SECOND_CLIP = _CLIP | {"hidden_size": 40, "projection_dim": 24, "hidden_act": "gelu"}
_QWEN3 = {
    "vocab_size": 270, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_theta": 1e6,
}  # fmt: skip
_KL = {
    "block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4, "layers_per_block": 1,
    "norm_num_groups": 8,
}  # fmt: skip
_KL_OF_FLOWS = _KL | {"use_quant_conv": False, "use_post_quant_conv": False}
_UNET = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": [32, 64],
    "layers_per_block": 1, "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "attention_head_dim": 4,
    "cross_attention_dim": 32, "norm_num_groups": 8,
}  # fmt: skip
_UNET_SD2 = _UNET | {
    "use_linear_projection": True, "upcast_attention": True, "attention_head_dim": [2, 8],
    "down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}  # fmt: skip
_UNET_XL = _UNET | {
    "use_linear_projection": True, "attention_head_dim": [2, 4], "cross_attention_dim": 72,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}  # fmt: skip
_UNET_IF = {
    "sample_size": 8, "in_channels": 3, "out_channels": 6, "block_out_channels": [16, 32],
    "layers_per_block": 1, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "attention_head_dim": 16, "cross_attention_dim": 64, "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 32, "encoder_hid_dim_type": "text_proj", "addition_embed_type": "text",
    "addition_embed_type_num_heads": 4, "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu", "norm_num_groups": 8,
}  # fmt: skip
_UNET_IF_II = _UNET_IF | {
    "sample_size": 16, "in_channels": 6, "class_embed_type": "timestep",
    "resnet_skip_time_act": True, "time_embedding_act_fn": "gelu",
    "resnet_out_scale_factor": 1.4142271248762552, "mid_block_scale_factor": 1.4142271248762552,
}  # fmt: skip
_SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2,
    "attention_head_dim": 8, "num_attention_heads": 4, "joint_attention_dim": 80,
    "caption_projection_dim": 32, "pooled_projection_dim": 40, "pos_embed_max_size": 12,
    "dual_attention_layers": (0,), "qk_norm": "rms_norm",
}  # fmt: skip
_FLUX = {
    "patch_size": 1, "in_channels": 16, "num_layers": 1, "num_single_layers": 1,
    "attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 80,
    "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6),
}  # fmt: skip
_Z_IMAGE = {
    "in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 2, "cap_feat_dim": 24, "axes_dims": [4, 6, 6], "axes_lens": [640, 64, 64],
}  # fmt: skip
_KLEIN = {
    "in_channels": 16, "num_layers": 1, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 72, "axes_dims_rope": (4, 4, 4, 4),
    "guidance_embeds": False,
}  # fmt: skip
_BETAS = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1,
    "timestep_spacing": "leading",
}  # fmt: skip
_BETAS_IF = {
    "beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range", "thresholding": True,
    "dynamic_thresholding_ratio": 0.95, "sample_max_value": 1.5,
}  # fmt: skip


def clip_words(folder: Path, *, pad: str = "<|endoftext|>") -> Any:
    """A CLIP tokenizer whose words are their letters: all bytes, alone and at a word's end."""
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    about = {"tokenizer_class": "CLIPTokenizer", "bos_token": "<|startoftext|>", "pad_token": pad}
    about |= {"eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return transformers.CLIPTokenizer.from_pretrained(folder)


def qwen_words(folder: Path) -> Any:
    """A tokenizer of Qwen's kind: one token per byte, and the marks of a chat."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    pad, _, end, *_ = _MARKS
    made = transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], pad_token=pad, eos_token=end, unk_token=pad
    )
    made.add_tokens(list(_MARKS), special_tokens=True)
    made.chat_template = _TEMPLATE
    made.save_pretrained(str(folder))
    return transformers.Qwen2Tokenizer.from_pretrained(folder)


def _t5(**changed: Any) -> tuple[Any, Any]:
    """A T5 and the embedded tokenizer; one that is wider reads capitals, as T5's own does."""
    words = transformers.AutoTokenizer.from_pretrained(_ASSETS / "base" / "tokenizer")
    if changed:
        words.backend_tokenizer.normalizer = tokenizers.normalizers.NFKC()
    return transformers.T5EncoderModel(transformers.T5Config(**_T5 | changed)), words


def _clip(words: Path, kind: str = "CLIPTextModel", **changed: Any) -> tuple[Any, Any]:
    config = transformers.CLIPTextConfig(**_CLIP | changed)
    return getattr(transformers, kind)(config), clip_words(words)


def _stable_diffusion(words: Path, unet: dict[str, Any], **how: Any) -> Any:
    text, tokenizer = _clip(words, hidden_act=how.pop("hidden_act", "quick_gelu"))
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(**unet),
        vae=diffusers.AutoencoderKL(**_KL),
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=diffusers.DDIMScheduler(**_BETAS | how),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(words: Path) -> Any:
    text, tokenizer = _clip(words)
    second = transformers.CLIPTextConfig(**_SECOND_CLIP)
    return diffusers.StableDiffusionXLPipeline(
        unet=diffusers.UNet2DConditionModel(**_UNET_XL),
        vae=diffusers.AutoencoderKL(**_KL),
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=transformers.CLIPTextModelWithProjection(second),
        tokenizer_2=clip_words(words.with_name(f"{words.name}2"), pad="!"),
        scheduler=diffusers.DDIMScheduler(**_BETAS),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def _deepfloyd(words: Path, *, upscaler: bool) -> Any:
    del words
    text, tokenizer = _t5()
    unet = diffusers.UNet2DConditionModel(**_UNET_IF_II if upscaler else _UNET_IF)
    # Random layers enlarge a difference of rounding at each step: 20 steps of DDIM made 0.03 of
    # 1e-6 in the first noise, in PyTorch alone. With a quieter last layer they do not.
    with torch.no_grad():
        unet.conv_out.weight.mul_(0.2)
    parts: dict[str, Any] = {
        "unet": unet,
        "text_encoder": text,
        "tokenizer": tokenizer,
        "scheduler": diffusers.DDPMScheduler(**_BETAS_IF),
        "safety_checker": None,
        "feature_extractor": None,
        "watermarker": None,
        "requires_safety_checker": False,
    }
    if not upscaler:
        return diffusers.IFPipeline(**parts)
    noising = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    return diffusers.IFSuperResolutionPipeline(**parts, image_noising_scheduler=noising)


def _sd3(words: Path, *, t5: bool) -> Any:
    kind = "CLIPTextModelWithProjection"
    text, tokenizer = _clip(words, kind, projection_dim=16)
    wide = {"hidden_size": 40, "projection_dim": 24, "hidden_act": "gelu"}
    text_2, tokenizer_2 = _clip(words.with_name(f"{words.name}2"), kind, **wide)
    text_3, tokenizer_3 = _t5(d_model=80) if t5 else (None, None)
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(**_SD3),
        vae=diffusers.AutoencoderKL(**_KL_OF_FLOWS, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=text_2,
        tokenizer_2=tokenizer_2,
        text_encoder_3=text_3,
        tokenizer_3=tokenizer_3,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(words: Path, *, dev: bool) -> Any:
    text, tokenizer = _clip(words)
    text_2, tokenizer_2 = _t5(d_model=80)
    shift = {"shift": 3.0 if dev else 1.0, "use_dynamic_shifting": dev}
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(**_FLUX, guidance_embeds=dev),
        vae=diffusers.AutoencoderKL(**_KL_OF_FLOWS, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=text,
        tokenizer=tokenizer,
        text_encoder_2=text_2,
        tokenizer_2=tokenizer_2,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**shift),
    )


def _z_image(words: Path) -> Any:
    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(**_Z_IMAGE),
        vae=diffusers.AutoencoderKL(**_KL_OF_FLOWS, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=transformers.Qwen3Model(transformers.Qwen3Config(**_QWEN3)),
        tokenizer=qwen_words(words),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=6.0),
    )


def _klein(words: Path) -> Any:
    vae = diffusers.AutoencoderKLFlux2(**_KL)
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return diffusers.Flux2KleinPipeline(
        transformer=diffusers.Flux2Transformer2DModel(**_KLEIN),
        vae=vae,
        text_encoder=transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**_QWEN3)),
        tokenizer=qwen_words(words),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


# Name -> a pipeline; the folder is for its tokenizer's files.
PIPELINES: dict[str, Callable[[Path], Any]] = {
    "sd1": lambda words: _stable_diffusion(words, _UNET),
    "sd2": lambda words: _stable_diffusion(
        words, _UNET_SD2, prediction_type="v_prediction", hidden_act="gelu"
    ),
    "sdxl": _sdxl,
    "if base": lambda words: _deepfloyd(words, upscaler=False),
    "if upscaler": lambda words: _deepfloyd(words, upscaler=True),
    "sd3": lambda words: _sd3(words, t5=True),
    "sd3 without t5": lambda words: _sd3(words, t5=False),
    "flux dev": lambda words: _flux(words, dev=True),
    "flux schnell": lambda words: _flux(words, dev=False),
    "z_image": _z_image,
    "klein": _klein,
}
EMBEDDED = ("embedded base", "embedded upscaler")  # trained, and lying in the package
MODELS = (*PIPELINES, *EMBEDDED)


def make(model: str, folder: Path) -> tuple[Path, Any]:
    """Writes a small model into `folder`; returns the folder of it, and PyTorch's pipeline."""
    if model in EMBEDDED:
        kind = model.partition(" ")[2]
        found = pipeline.locate("embedded", kind=kind)
        name = "IFPipeline" if kind == "base" else "IFSuperResolutionPipeline"
        return found, getattr(diffusers, name).from_pretrained(found).to(torch.float32)
    torch.manual_seed(0)
    made = PIPELINES[model](folder.with_name(f"{folder.name}_words"))
    if hasattr(made, "transformer"):  # norms of ones and layers of zeros would hide mistakes
        with torch.no_grad():
            for parameter in made.transformer.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    shutil.rmtree(folder, ignore_errors=True)
    made.save_pretrained(folder)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return folder, made
