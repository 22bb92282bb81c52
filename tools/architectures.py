r"""Writes folders that hold published models' configuration and no weights, for --mode=precompile.

    python tools/architectures.py build/architectures
    python -m dreambooth_jax.main --config=configs/stable_diffusion.py:sd15 --mode=precompile \
        --config.base_model=build/architectures/sd15

Values: the models' config.json files, as far as they shape the networks. Who has the models, or the
network to download their configuration, does not need this.
"""

import argparse
import json
from pathlib import Path
from typing import Any

_SD_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
_CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "vocab_size": 49408,
    "projection_dim": 768,
}
_CLIP_G = _CLIP_L | {
    "architectures": ["CLIPTextModelWithProjection"],
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
_T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
_LATENT_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}
_IF_SCHEDULER = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
    "thresholding": True,
    "dynamic_thresholding_ratio": 0.95,
    "sample_max_value": 1.5,
}
_IF_UNET = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 6,
    "block_out_channels": [704, 1408, 2112, 2816],
    "layers_per_block": 3,
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "attention_head_dim": 64,
    "cross_attention_dim": 2816,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu",
}
_IF_UPSCALER = _IF_UNET | {
    "sample_size": 256,
    "in_channels": 6,
    "block_out_channels": [160, 320, 640, 960, 1280],
    "layers_per_block": [2, 2, 3, 5, 5],
    "down_block_types": [
        *["ResnetDownsampleBlock2D"] * 3,
        *["SimpleCrossAttnDownBlock2D"] * 2,
    ],
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 2, *["ResnetUpsampleBlock2D"] * 3],
    "cross_attention_dim": 1280,
    "class_embed_type": "timestep",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4142271248762552,
    "mid_block_scale_factor": 1.4142271248762552,
    "time_embedding_act_fn": "gelu",
    "time_embedding_dim": 1280,
}
_SDXL_UNET = {
    "sample_size": 128,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
_FLUX = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
_FLOW_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
_FLOW_VAE = _VAE | {
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


def _sd3(**changed: Any) -> dict[str, dict[str, Any]]:
    return {
        "model_index.json": {
            "_class_name": "StableDiffusion3Pipeline",
            "text_encoder_3": ["transformers", "T5EncoderModel"],
        },
        "transformer/config.json": _SD3 | changed,
        "vae/config.json": _FLOW_VAE | {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        "text_encoder/config.json": _CLIP_L | {"architectures": _CLIP_G["architectures"]},
        "text_encoder_2/config.json": _CLIP_G,
        "text_encoder_3/config.json": _T5_XXL,
        "scheduler/scheduler_config.json": _FLOW_SCHEDULER,
    }


_QWEN3_4B = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}
_QWEN3_8B = _QWEN3_4B | {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "tie_word_embeddings": False,
}
_KLEIN = {
    "patch_size": 1,
    "in_channels": 128,
    "attention_head_dim": 128,
    "mlp_ratio": 3.0,
    "axes_dims_rope": [32, 32, 32, 32],
    "rope_theta": 2000,
    "eps": 1e-6,
    "timestep_guidance_channels": 256,
    "guidance_embeds": False,
}
_KLEIN_VAE = _VAE | {
    "latent_channels": 32,
    "sample_size": 1024,
    "batch_norm_eps": 1e-4,
    "batch_norm_momentum": 0.1,
    "patch_size": [2, 2],
}
del _KLEIN_VAE["scaling_factor"]  # it has the statistics of its latents instead


def _klein(qwen3: dict[str, Any], **changed: Any) -> dict[str, dict[str, Any]]:
    return {
        "model_index.json": {"_class_name": "Flux2KleinPipeline", "is_distilled": False},
        "transformer/config.json": _KLEIN | changed,
        "vae/config.json": _KLEIN_VAE,
        "text_encoder/config.json": qwen3 | {"architectures": ["Qwen3ForCausalLM"]},
        "scheduler/scheduler_config.json": _FLOW_SCHEDULER | {"use_dynamic_shifting": True},
    }


MODELS: dict[str, dict[str, dict[str, Any]]] = {
    "sd15": {
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
        "unet/config.json": _SD_UNET,
        "vae/config.json": _VAE,
        "text_encoder/config.json": _CLIP_L,
        "scheduler/scheduler_config.json": _LATENT_SCHEDULER,
    },
    "sdxl": {
        "model_index.json": {
            "_class_name": "StableDiffusionXLPipeline",
            "force_zeros_for_empty_prompt": True,
        },
        "unet/config.json": _SDXL_UNET,
        "vae/config.json": _VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
        "text_encoder/config.json": _CLIP_L,
        "text_encoder_2/config.json": _CLIP_G,
        "scheduler/scheduler_config.json": _LATENT_SCHEDULER,
    },
    "if_xl": {
        "model_index.json": {"_class_name": "IFPipeline"},
        "unet/config.json": _IF_UNET,
        "text_encoder/config.json": _T5_XXL,
        "scheduler/scheduler_config.json": _IF_SCHEDULER,
    },
    "if_upscaler": {
        "model_index.json": {"_class_name": "IFSuperResolutionPipeline"},
        "unet/config.json": _IF_UPSCALER,
        "text_encoder/config.json": _T5_XXL,
        "scheduler/scheduler_config.json": _IF_SCHEDULER | {"sample_max_value": 1.0},
        "image_noising_scheduler/scheduler_config.json": {
            "beta_schedule": "squaredcos_cap_v2",
        },
    },
    "sd3_medium": _sd3(),
    "sd35_medium": _sd3(
        pos_embed_max_size=384, dual_attention_layers=[*range(13)], qk_norm="rms_norm"
    ),
    "sd35_large": _sd3(
        num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"
    ),
    "flux_dev": {
        "model_index.json": {"_class_name": "FluxPipeline"},
        "transformer/config.json": _FLUX,
        "vae/config.json": _FLOW_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder/config.json": _CLIP_L,
        "text_encoder_2/config.json": _T5_XXL,
        "scheduler/scheduler_config.json": _FLOW_SCHEDULER | {"use_dynamic_shifting": True},
    },
    "z_image": {
        "model_index.json": {"_class_name": "ZImagePipeline"},
        "transformer/config.json": {
            "all_patch_size": [2],
            "all_f_patch_size": [1],
            "in_channels": 16,
            "dim": 3840,
            "n_layers": 30,
            "n_refiner_layers": 2,
            "n_heads": 30,
            "n_kv_heads": 30,
            "norm_eps": 1e-5,
            "qk_norm": True,
            "cap_feat_dim": 2560,
            "rope_theta": 256.0,
            "t_scale": 1000.0,
            "axes_dims": [32, 48, 48],
            "axes_lens": [1536, 512, 512],
        },
        "vae/config.json": _FLOW_VAE | {"scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder/config.json": _QWEN3_4B | {"architectures": ["Qwen3Model"]},
        "scheduler/scheduler_config.json": _FLOW_SCHEDULER | {"shift": 6.0},
    },
    "klein_4b": _klein(
        _QWEN3_4B,
        num_layers=5,
        num_single_layers=20,
        num_attention_heads=24,
        joint_attention_dim=7680,
    ),
    "klein_9b": _klein(
        _QWEN3_8B,
        num_layers=8,
        num_single_layers=24,
        num_attention_heads=32,
        joint_attention_dim=12288,
    ),
}


def write(folder: Path) -> None:
    for name, files in MODELS.items():
        for file, content in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
