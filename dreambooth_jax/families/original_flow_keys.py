"""Keys of the first authors' code of Stable Diffusion 3 and FLUX.1, for diffusers' keys.

Projections of one input are one matrix there, stacked along outputs, and the last norms have shift
before scale (Esser et al. 2024; Black Forest Labs 2024).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dreambooth_jax import weights
from dreambooth_jax.pipeline.family import Slot, Tensors
from dreambooth_jax.pipeline.stage import Stage

Rules = Sequence[tuple[str, str]]
# Parts of a stacked matrix, in their order, and its key; the end is "weight" or "bias".
Stacks = Sequence[tuple[Sequence[str], str]]

_MLP_RATIO = 4  # outputs of FLUX.1's `proj_mlp` for each of a query
_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_LAST = "norm_out.linear."
_BLOCK = re.compile(r"(\w+_blocks)\.(\d+)\.(.+)\.(weight|bias)$")

_SD3_ENDS: Rules = (
    (r"^pos_embed\.pos_embed$", "pos_embed"),
    (r"^pos_embed\.proj\.", "x_embedder.proj."),
    (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
    (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
    (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
    (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
)
_SD3_BLOCK: Rules = (
    (r"^norm1\.linear\.", "x_block.adaLN_modulation.1."),
    (r"^norm1_context\.linear\.", "context_block.adaLN_modulation.1."),
    (r"^(attn2?)\.to_out\.0\.", r"x_block.\1.proj."),
    (r"^attn\.to_add_out\.", "context_block.attn.proj."),
    (r"^(attn2?)\.norm_([qk])\.", r"x_block.\1.ln_\2."),
    (r"^attn\.norm_added_([qk])\.", r"context_block.attn.ln_\1."),
    (r"^ff\.net\.0\.proj\.", "x_block.mlp.fc1."),
    (r"^ff\.net\.2\.", "x_block.mlp.fc2."),
    (r"^ff_context\.net\.0\.proj\.", "context_block.mlp.fc1."),
    (r"^ff_context\.net\.2\.", "context_block.mlp.fc2."),
)
_SD3_STACKS: Stacks = (
    (tuple(f"attn.{name}" for name in _QKV), "x_block.attn.qkv"),
    (tuple(f"attn2.{name}" for name in _QKV), "x_block.attn2.qkv"),
    (tuple(f"attn.{name}" for name in _ADDED), "context_block.attn.qkv"),
)
_FLUX_ENDS: Rules = (
    (r"^x_embedder\.", "img_in."),
    (r"^context_embedder\.", "txt_in."),
    (r"^time_text_embed\.timestep_embedder\.linear_1\.", "time_in.in_layer."),
    (r"^time_text_embed\.timestep_embedder\.linear_2\.", "time_in.out_layer."),
    (r"^time_text_embed\.text_embedder\.linear_1\.", "vector_in.in_layer."),
    (r"^time_text_embed\.text_embedder\.linear_2\.", "vector_in.out_layer."),
    (r"^time_text_embed\.guidance_embedder\.linear_1\.", "guidance_in.in_layer."),
    (r"^time_text_embed\.guidance_embedder\.linear_2\.", "guidance_in.out_layer."),
    (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
    (r"^proj_out\.", "final_layer.linear."),
)
_FLUX_DOUBLE: Rules = (
    (r"^norm1\.linear\.", "img_mod.lin."),
    (r"^norm1_context\.linear\.", "txt_mod.lin."),
    (r"^attn\.norm_q\.weight", "img_attn.norm.query_norm.scale"),
    (r"^attn\.norm_k\.weight", "img_attn.norm.key_norm.scale"),
    (r"^attn\.norm_added_q\.weight", "txt_attn.norm.query_norm.scale"),
    (r"^attn\.norm_added_k\.weight", "txt_attn.norm.key_norm.scale"),
    (r"^attn\.to_out\.0\.", "img_attn.proj."),
    (r"^attn\.to_add_out\.", "txt_attn.proj."),
    (r"^ff\.net\.0\.proj\.", "img_mlp.0."),
    (r"^ff\.net\.2\.", "img_mlp.2."),
    (r"^ff_context\.net\.0\.proj\.", "txt_mlp.0."),
    (r"^ff_context\.net\.2\.", "txt_mlp.2."),
)
_FLUX_DOUBLE_STACKS: Stacks = (
    (tuple(f"attn.{name}" for name in _QKV), "img_attn.qkv"),
    (tuple(f"attn.{name}" for name in _ADDED), "txt_attn.qkv"),
)
_FLUX_SINGLE: Rules = (
    (r"^norm\.linear\.", "modulation.lin."),
    (r"^attn\.norm_q\.weight", "norm.query_norm.scale"),
    (r"^attn\.norm_k\.weight", "norm.key_norm.scale"),
    (r"^proj_out\.", "linear2."),
)
_FLUX_SINGLE_STACKS: Stacks = (((*(f"attn.{name}" for name in _QKV), "proj_mlp"), "linear1"),)


class Layout(NamedTuple):
    """Keys of one model: rules of the ends, and of each list of blocks name, rules and stacks."""

    ends: Rules
    blocks: Mapping[str, tuple[str, Rules, Stacks]]


SD3 = Layout(_SD3_ENDS, {"transformer_blocks": ("joint_blocks", _SD3_BLOCK, _SD3_STACKS)})
FLUX = Layout(
    _FLUX_ENDS,
    {
        "transformer_blocks": ("double_blocks", _FLUX_DOUBLE, _FLUX_DOUBLE_STACKS),
        "single_transformer_blocks": ("single_blocks", _FLUX_SINGLE, _FLUX_SINGLE_STACKS),
    },
)


def sd3(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the transformer of Stable Diffusion 3 under its original keys."""
    return _renamed(tensors, SD3)


def flux(tensors: Mapping[str, np.ndarray]) -> Tensors:
    """Returns the transformer of FLUX.1 under its original keys."""
    return _renamed(tensors, FLUX)


def kohya(layout: Layout, text: Mapping[str, str]) -> Callable[[Stage], Callable[[str], Slot]]:
    """Returns the places of kernels in kohya's LoRA files: original keys joined by `_`.

    Args:
      text: beginning of the names, by component of a text encoder.
    """

    def of_stage(stage: Stage) -> Callable[[str], Slot]:
        keys = [weights.key_of(path) for path in stage.denoiser.network.abstract]
        swapped = _swapped(keys)

        def place(path: str) -> Slot:
            part, _, rest = path.partition("/")
            key = weights.key_of(rest)
            if part in text:
                return Slot(f"{text[part]}_{_joined(key)}")
            found = _place(key, layout)._replace(swapped=key.startswith(swapped))
            return found._replace(name=f"lora_unet_{_joined(found.name)}")

        return place

    return of_stage


def _joined(key: str) -> str:
    return key.removesuffix(".weight").replace(".", "_")


def _swap(x: np.ndarray) -> np.ndarray:
    """Returns the halves along outputs exchanged: scale and shift have the other order there."""
    return np.concatenate(np.split(x, 2)[::-1])


def _first(key: str, rules: Rules) -> str:
    for pattern, new in rules:
        renamed, found = re.subn(pattern, new, key)
        if found:
            return renamed
    return key


def _swapped(keys: Sequence[str]) -> tuple[str, ...]:
    """Beginnings of the keys whose two halves have the other order in the original files.

    The output's norm, and that of the text in the last block of Stable Diffusion 3, which goes no
    further and has no gates.
    """
    numbers = [int(m[1]) for key in keys if (m := re.match(r"transformer_blocks\.(\d+)", key))]
    last = f"transformer_blocks.{max(numbers)}."
    ends = not any(key.startswith(f"{last}attn.to_add_out.") for key in keys)
    return (_LAST, f"{last}norm1_context.linear.") if ends else (_LAST,)


def _place(key: str, layout: Layout) -> Slot:
    """Returns the place of a tensor: its original key, and the rows it has there."""
    found = _BLOCK.match(key)
    if not found:
        return Slot(_first(key, layout.ends))
    start, number, part, end = found.groups()
    name, rules, stacks = layout.blocks[start]
    for parts, whole in stacks:
        if part in parts:
            sizes = [_MLP_RATIO if each == "proj_mlp" else 1 for each in parts]
            i = parts.index(part)
            stacked = f"{name}.{number}.{whole}.{end}"
            return Slot(stacked, part=sum(sizes[:i]), parts=sum(sizes), span=sizes[i])
    return Slot(f"{name}.{number}.{_first(f'{part}.{end}', rules)}")


def _renamed(tensors: Mapping[str, np.ndarray], layout: Layout) -> Tensors:
    swapped, stacks = _swapped([*tensors]), dict[str, list[tuple[int, np.ndarray]]]()
    for key, x in tensors.items():
        place = _place(key, layout)
        one = _swap(x) if key.startswith(swapped) else x
        stacks.setdefault(place.name, []).append((place.part, one))
    ordered = {key: [x for _, x in sorted(parts, key=_number)] for key, parts in stacks.items()}
    return {key: np.concatenate(xs) if xs[1:] else xs[0] for key, xs in ordered.items()}


def _number(part: tuple[int, np.ndarray]) -> int:
    return part[0]
