"""Keys of FLUX.2's first authors, for LoRA files of ComfyUI, kohya's scripts and ai-toolkit.

There one kernel makes queries, keys and values of a double block, and the last norm's shift comes
before its scale.
"""

import re

from dreambooth_jax import weights
from dreambooth_jax.pipeline.family import Slot

_DOUBLE = {
    "attn.to_q": Slot("img_attn.qkv", 0, 3),
    "attn.to_k": Slot("img_attn.qkv", 1, 3),
    "attn.to_v": Slot("img_attn.qkv", 2, 3),
    "attn.add_q_proj": Slot("txt_attn.qkv", 0, 3),
    "attn.add_k_proj": Slot("txt_attn.qkv", 1, 3),
    "attn.add_v_proj": Slot("txt_attn.qkv", 2, 3),
    "attn.to_out.0": Slot("img_attn.proj"),
    "attn.to_add_out": Slot("txt_attn.proj"),
    "ff.linear_in": Slot("img_mlp.0"),
    "ff.linear_out": Slot("img_mlp.2"),
    "ff_context.linear_in": Slot("txt_mlp.0"),
    "ff_context.linear_out": Slot("txt_mlp.2"),
}
_SINGLE = {"attn.to_qkv_mlp_proj": Slot("linear1"), "attn.to_out": Slot("linear2")}
_ENDS = {
    "x_embedder": Slot("img_in"),
    "context_embedder": Slot("txt_in"),
    "time_guidance_embed.timestep_embedder.linear_1": Slot("time_in.in_layer"),
    "time_guidance_embed.timestep_embedder.linear_2": Slot("time_in.out_layer"),
    "double_stream_modulation_img.linear": Slot("double_stream_modulation_img.lin"),
    "double_stream_modulation_txt.linear": Slot("double_stream_modulation_txt.lin"),
    "single_stream_modulation.linear": Slot("single_stream_modulation.lin"),
    "norm_out.linear": Slot("final_layer.adaLN_modulation.1", swapped=True),
    "proj_out": Slot("final_layer.linear"),
}
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


def slot(path: str) -> Slot:
    """Returns the place of a kernel of the transformer, under its key without `.weight`."""
    key = weights.key_of(path.partition("/")[2]).removesuffix(".weight")
    found = _BLOCK.fullmatch(key)
    if found is None:
        return _ENDS[key]
    single, number, rest = found.groups()
    place = (_SINGLE if single else _DOUBLE)[rest]
    blocks = "single_blocks" if single else "double_blocks"
    return place._replace(name=f"{blocks}.{number}.{place.name}")


def kohya(path: str) -> Slot:
    """Returns the place of a kernel in kohya's files, whose names are keys joined by `_`."""
    place = slot(path)
    return place._replace(name=f"lora_unet_{place.name.replace('.', '_')}")
