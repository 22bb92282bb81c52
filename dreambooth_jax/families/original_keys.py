"""Keys of the first authors' code of Stable Diffusion, for diffusers' keys.

Blocks are numbered through there (`input_blocks.4.1`), text encoders of SD 2 and SDXL are
OpenCLIP's, with queries, keys and values in one matrix (Rombach et al. 2022; Ilharco et al. 2021;
Podell et al. 2023).
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from dreambooth_jax.pipeline.family import Tensors

Rules = tuple[tuple[str, str], ...]

_RESNET: Rules = (
    (r"\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
_UNET_ENDS: Rules = (
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^add_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^add_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
)
_VAE: Rules = (
    (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
    (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
    (r"\.up\.(\d+)\.resnets\.", r".up.\1.block."),
    (r"\.up\.(\d+)\.upsamplers\.0\.", r".up.\1.upsample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
_OPEN_CLIP: Rules = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.", ".attn."),
)


def _renamed(key: str, rules: Rules) -> str:
    for pattern, new in rules:
        key = re.sub(pattern, new, key)
    return key


def unet_name(keys: Iterable[str]) -> Callable[[str], str]:
    """A function from diffusers' keys to the original ones; counts the blocks of these keys."""
    keys = set(keys)
    layers = 1 + max(int(m[1]) for key in keys if (m := re.match(r"down_.*?resnets\.(\d+)", key)))

    def name(key: str) -> str:
        found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
        if not found:
            renamed = _renamed(key, _UNET_ENDS)
            return _renamed(renamed, _RESNET) if "mid_block.resnets" in key else renamed
        way, level, part, place, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        number = level * (layers + 1) + (place if part in ("resnets", "attentions") else layers)
        if way == "down":
            number += 1  # after the first convolution
            if part == "downsamplers":
                return f"input_blocks.{number}.0.op.{rest.removeprefix('conv.')}"
        start = f"{'input' if way == 'down' else 'output'}_blocks.{number}"
        if part == "upsamplers":
            attends = any(key.startswith(f"up_blocks.{level}.attentions.{layers}.") for key in keys)
            return f"{start}.{2 if attends else 1}.{rest}"
        if part == "attentions":
            return f"{start}.1.{rest}"
        return _renamed(f"{start}.0.{rest}", _RESNET)

    return name


def unet(tensors: Tensors) -> Tensors:
    """Returns a UNet's tensors under the original keys."""
    name = unet_name(tensors)
    return {name(key): value for key, value in tensors.items()}


def vae(tensors: Tensors) -> Tensors:
    """Returns an autoencoder's tensors under the original keys; linear layers as convolutions."""
    last = max(int(m[1]) for key in tensors if (m := re.match(r"decoder\.up_blocks\.(\d+)", key)))
    made = {}
    for key, value in tensors.items():
        # The original counts the decoder's levels from the finest.
        turned = re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up.{last - int(found[1])}.", key)
        name = _renamed(turned, _VAE)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name):
            value = value[:, :, None, None]  # 1×1 convolutions
        made[name] = value
    return made


def clip(tensors: Tensors) -> Tensors:
    """Returns the tensors of a CLIP of transformers, as SD 1's files have them."""
    positions = len(tensors["text_model.embeddings.position_embedding.weight"])
    ids = {"text_model.embeddings.position_ids": np.arange(positions, dtype=np.int64)[None]}
    return {f"transformer.{key}": value for key, value in {**tensors, **ids}.items()}


def open_clip(tensors: Tensors, *, whole: bool) -> Tensors:
    """Returns a CLIP's tensors under OpenCLIP's keys.

    whole: the encoder has all its layers; SD 2's folders lack the last, which nothing reads.
    """
    made: Tensors = {}
    for key, value in tensors.items():
        if key == "text_projection.weight":
            made["text_projection"] = np.ascontiguousarray(value.T)
        elif not re.search(r"self_attn\.[qkv]_proj", key):
            made[_renamed(key, _OPEN_CLIP)] = value
    layers = [int(m[1]) for key in tensors if (m := re.search(r"encoder\.layers\.(\d+)\.", key))]
    for layer in range(max(layers) + 1):
        for end in ("weight", "bias"):
            attention = f"text_model.encoder.layers.{layer}.self_attn"
            parts = [tensors[f"{attention}.{part}_proj.{end}"] for part in "qkv"]
            made[f"transformer.resblocks.{layer}.attn.in_proj_{end}"] = np.concatenate(parts)
    dtype = made["positional_embedding"].dtype
    if not whole:
        here, beyond = (f"transformer.resblocks.{max(layers) + n}." for n in (0, 1))
        made |= {key.replace(here, beyond): value for key, value in made.items() if here in key}
        made["text_projection"] = np.eye(made["positional_embedding"].shape[1], dtype=dtype)
    made["logit_scale"] = np.array(math.log(1 / 0.07), dtype)  # CLIP's start; images do not need it
    return made


def joined(parts: Mapping[str, Tensors]) -> Tensors:
    """Returns all tensors in one dictionary, each key after the name of its part and a dot."""
    return {f"{start}.{key}": x for start, part in parts.items() for key, x in part.items()}
