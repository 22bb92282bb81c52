"""Rules that families with a flow transformer share: LoRA's targets, splits over a mesh, sizes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.diffusion.path import Flow
from dreambooth_jax.families import unet
from dreambooth_jax.pipeline import Encoder, Frame, ModelFolder
from dreambooth_jax.text.tokenizer import CASED

COMPONENT = "transformer"
_PATCH = 2  # positions of a latent along a side of one token
_LATENT = 128  # positions of a latent along a side, where the file does not tell

# Attention and feed-forward layers of all blocks, and the attention of CLIP. Paths are whole, since
# the output layer is called `proj_out` as well.
LORA_TARGETS = (
    r"(transformer/(single_)?transformer_blocks/\d+/(attn2?/(to_[qkv]|to_out/0|add_[qkv]_proj|"
    r"to_add_out)|ff(_context)?/net/(0/proj|2)|proj_mlp|proj_out)|"
    r"text_encoder(_2)?/.*/([qkv]_proj|out_proj))/kernel"
)

_FIRST = "to_[qkv]|add_[qkv]_proj|[qkv]_proj|SelfAttention/[qkv]|ff(_context)?/net/0/proj|proj_mlp"
_FIRST = rf"{_FIRST}|fc1|wi_[01]|linear_1"
_SECOND = "to_out/0|to_add_out|out_proj|SelfAttention/o|ff(_context)?/net/2|fc2|wo|linear_2"
# A single block's proj_out reads attention and hidden values side by side: rows of one device would
# be parts of either, so it is not among the second layers.
SHARDING_RULES = (
    (rf".*/({_FIRST})/(kernel|bias)(/lora_up|/dora_length)?", "columns"),
    (rf".*/({_SECOND})/kernel(/lora_down)?", "rows"),
    (".*", "fsdp"),
)


class FlowText(NamedTuple):
    """Embeddings of a prompt: tokens `[P,L,D]`, and one vector for the whole prompt `[P,E]`."""

    states: Any
    pooled: Any


def frame(config: Mapping[str, Any], *, factor: int) -> Frame:
    """Returns the sizes of pictures that a transformer of latents can make.

    Args:
      factor: pixels along a side of one position of a latent.
    """
    own, most = int(config.get("sample_size") or _LATENT) * factor, config.get("pos_embed_max_size")
    whole = _PATCH * factor
    return Frame((own, own), multiple=whole, most=None if most is None else most * whole)


def path(folder: ModelFolder) -> Flow:
    """Returns the noise path of the folder.

    Raises:
      ValueError: it is no flow.
    """
    found = schedules.from_config(folder.json("scheduler", "scheduler_config.json"))
    if not isinstance(found, Flow):
        raise ValueError(
            "scheduler/scheduler_config.json is not that of a FlowMatchEulerDiscreteScheduler, by "
            "which this model is trained and sampled. Copy the folder scheduler again."
        )
    return found


def clip_encoder(folder: ModelFolder, *, suffix: str) -> Encoder:
    """Returns a CLIP with the tokenizer beside it; `suffix` ends both components' names."""
    return unet.clip_encoder(folder, suffix=suffix, form=CASED)


def t5_encoder(folder: ModelFolder, *, suffix: str, length: int) -> Encoder:
    """Returns a T5 that reads `length` tokens, with the tokenizer beside it."""
    # Prompts as they are written: T5's vocabulary is cased, and CLIP's own tokenizer is not.
    return unet.t5_encoder(folder, suffix=suffix, max_length=length, form=CASED)
