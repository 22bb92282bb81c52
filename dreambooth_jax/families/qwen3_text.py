"""Qwen3 as the text encoder of Z-Image and FLUX.2 [klein], and what both families share."""

from dreambooth_jax import weights
from dreambooth_jax.models import qwen3
from dreambooth_jax.pipeline import Encoder, Frame, ModelFolder
from dreambooth_jax.text import chat
from dreambooth_jax.text.tokenizer import Form

COMPONENT = "transformer"
_DEFAULT_SIZE = 1024
# Qwen3's layers in pairs that `mesh.tensor` splits: (columns, rows).
TEXT_PAIRS = (r"text_encoder/.*/([qkv]_proj|gate_proj|up_proj)", r"text_encoder/.*/(o|down)_proj")


def encoder(folder: ModelFolder, form: Form, *, layers_read: int | None) -> Encoder:
    """Returns the first layers of a folder's Qwen3, with the tokenizer beside it.

    Args:
      layers_read: None: all but the last one.
    """
    config = folder.json("text_encoder", "config.json")
    count = qwen3.Qwen3Config.from_dict(config).num_hidden_layers - 1
    count = count if layers_read is None else layers_read
    return Encoder(
        qwen3.build(config, count=count),
        folder.tokenizer("tokenizer", max_length=chat.MAX_LENGTH, form=form),
        "tokenizer",
        unread=qwen3.unread(config, count=count),
    )


def frame(*, factor: int) -> Frame:
    """Returns the sizes of pictures: 1024 along a side, and all of whole tokens.

    Args:
      factor: pixels along a side of one token.
    """
    return Frame((_DEFAULT_SIZE, _DEFAULT_SIZE), multiple=factor)


def joined(path: str) -> str:
    """Returns kohya's name of a transformer's kernel whose keys are the original ones."""
    _, _, rest = path.partition("/")
    return f"lora_unet_{weights.key_of(rest).removesuffix('.weight').replace('.', '_')}"
