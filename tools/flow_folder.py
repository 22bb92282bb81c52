"""Folder of a small Z-Image in diffusers' layout, and the weights that its training begins with.

A caption takes 32 tokens there, where Stable Diffusion 3 reads 333 and FLUX.1 512 whatever it says:
of these families it is the one that a CPU teaches fastest. Pictures of 32² are latents of 16², in
64 tokens.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from folders import write_json

from dreambooth_jax import pipeline, tree, weights
from dreambooth_jax.models import layers, qwen3

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")  # as Qwen3's
PIXELS, CHANNELS, WIDTH = 32, 16, 128
FLOW = {
    "_class_name": "ZImageTransformer2DModel",
    "all_patch_size": [2],
    "all_f_patch_size": [1],
    "in_channels": CHANNELS,
    "dim": WIDTH,
    "n_layers": 6,
    "n_refiner_layers": 1,
    "n_heads": 4,
    "n_kv_heads": 4,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 128,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [8, 12, 12],
    "axes_lens": [640, 64, 64],
}
VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [16, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": CHANNELS,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": PIXELS,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
TEXT = {
    "architectures": ["Qwen3Model"],
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,  # the last one is not read
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 2.0,
    "use_dynamic_shifting": False,
}
INDEX = {
    "_class_name": "ZImagePipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def write_tokenizer(captions: Iterable[str], folder: Path, *, vocab_size: int = 1500) -> int:
    """Writes a byte-level BPE of Qwen's kind, learned from captions; returns its vocabulary."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*captions, *["user\n", "assistant\n"] * 1000], trainer)
    learned = json.loads(made.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        pad_token=MARKS[0],
        eos_token=MARKS[2],
        unk_token=MARKS[0],
    )
    tokenizer.add_tokens(list(MARKS), special_tokens=True)
    tokenizer.save_pretrained(str(folder))
    return len(tokenizer)


def write_skeleton(folder: Path, captions: Iterable[str]) -> None:
    """Writes all files of the model folder but the weights."""
    vocabulary = write_tokenizer(captions, folder / "tokenizer")
    files: dict[str, dict[str, Any]] = {
        "model_index.json": INDEX,
        "scheduler/scheduler_config.json": SCHEDULER,
        "text_encoder/config.json": TEXT | {"vocab_size": vocabulary},
        "transformer/config.json": FLOW,
        "vae/config.json": VAE | {"scaling_factor": 1.0, "shift_factor": 0.0},
    }
    write_json(folder, files)


def initial(stage: pipeline.Stage, *, seed: int) -> tree.Flat:
    """Returns fresh parameters of transformer and text encoder.

    What leaves a branch is normed before it is gated, so its last kernel does not begin at zero:
    the gates do (Peebles & Xie 2023), and the output layer.
    """
    rng = np.random.default_rng(seed)
    flat: tree.Flat = {}
    for number, part in enumerate(("transformer", "text_encoder")):
        network = stage.networks[part]
        flat |= tree.with_prefix(layers.initial(network, seed + number), part)
    for path, value in flat.items():
        if path.endswith("to_out/0/kernel"):
            drawn = rng.normal(size=value.shape) / np.sqrt(value.shape[0])
            flat[path] = drawn.astype(np.float32)
        elif "adaLN_modulation" in path or "all_final_layer/2-1/linear" in path:
            flat[path] = np.zeros_like(value)
    return flat


def write_weights(folder: Path, flat: tree.Flat) -> None:
    """Writes transformer and text encoder, float32; layers that are not read are fresh ones."""
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    text = layers.initial(qwen3.build(config), 0) | tree.prefixed(flat, "text_encoder")
    weights.write(folder / "text_encoder", text, dtype="float32", stem="model")
    transformer = tree.prefixed(flat, "transformer")
    stem = "diffusion_pytorch_model"
    weights.write(folder / "transformer", transformer, dtype="float32", stem=stem)
