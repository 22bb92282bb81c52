"""Rules that all families with a UNet share: what LoRA adapts, what a mesh splits, sizes."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from dreambooth_jax import untrusted, weights
from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.diffusion.path import NoisePath
from dreambooth_jax.families import original_keys
from dreambooth_jax.models import clip, t5, unet, vae
from dreambooth_jax.pipeline import Codec, Denoiser, Encoder, Frame, ModelFolder, Stage
from dreambooth_jax.text.tokenizer import LOWER, Form

Array = jax.Array
COMPONENT = "unet"

# The projections of every kind of attention: UNet's, added text's, CLIP's, T5's.
LORA_TARGETS = (
    r".*/(to_[qkv]|to_out/0|add_[kv]_proj|[qkv]_proj|out_proj|SelfAttention/[qkvo])/kernel"
)

# Layers in pairs, what `mesh.tensor` splits: attention's projections in and out, the two of a
# feed-forward layer or of a residual block, with LoRA's factors of each.
_FIRST = "to_[qkv]|add_[kv]_proj|[qkv]_proj|SelfAttention/[qkv]|ff/net/0/proj|fc1|wi_[01]|linear_1"
_FIRST = rf"{_FIRST}|conv1|time_emb_proj|(resnets|(up|down)samplers)/\d+/norm2"
_SECOND = "to_out/0|out_proj|SelfAttention/o|ff/net/2|fc2|wo|linear_2|add_embedding/proj"
_SECOND = rf"{_SECOND}|conv2|conv_shortcut|(up|down)samplers/0/conv"
SHARDING_RULES = (
    (rf".*/({_FIRST})/(kernel|bias|scale)(/lora_up|/dora_length)?", "columns"),
    (rf".*/({_SECOND})/kernel(/lora_down)?", "rows"),
    (".*", "fsdp"),
)


def denoiser(
    config: Mapping[str, Any], call: Callable[..., Array], *, latent: bool, low_res: bool = False
) -> Denoiser:
    """Returns the UNet of `unet/config.json`; with `low_res` half of its input is a picture."""
    network = unet.build(config)
    channels = int(config["in_channels"]) // (2 if low_res else 1)
    outputs = network.abstract["conv_out/kernel"].shape[-1]
    return Denoiser(
        COMPONENT,
        network,
        call,
        channels,
        learns_variance=not latent and outputs == 2 * channels,
        attends=True,
    )


def frame(config: Mapping[str, Any], *, factor: int = 1) -> Frame:
    """Returns the sizes of pictures that a UNet can make.

    Args:
      factor: pixels along a side of one position of a latent; 1 for a model of pixels.

    Raises:
      ValueError: `sample_size` is neither a number nor height and width.
    """
    own = config.get("sample_size")
    sides = [own, own] if isinstance(own, int) else own
    pair = isinstance(sides, list) and len(sides) == 2
    if sides is None or not pair or not all(type(side) is int and side > 0 for side in sides):
        raise ValueError(
            f"unet/config.json: sample_size = {own!r}; expected the pixels along a side, or "
            "height and width."
        )
    # Every level but the last halves the sample.
    halved = 2 ** (len(config["block_out_channels"]) - 1)
    return Frame((sides[0] * factor, sides[1] * factor), multiple=factor * halved)


def square_size(stage: Stage) -> dict[str, Any]:
    """Returns `sample_size` for an export; {} where the base model's own stays.

    It is one number: that of a picture that is not square cannot be written.
    """
    height, width, _ = stage.sample_shape
    return {} if stage.size == stage.frame.own or height != width else {"sample_size": height}


def any_size(stage: Stage) -> dict[str, Any]:
    """Returns `sample_size` for an export whose pipeline reads height and width as well."""
    height, width, _ = stage.sample_shape
    return square_size(stage) if height == width else {"sample_size": [height, width]}


def path(folder: ModelFolder, component: str = "scheduler") -> NoisePath:
    """Returns the noise path of a component of the folder."""
    config = folder.json(component, "scheduler_config.json")
    with untrusted.values(folder.root / component / "scheduler_config.json"):
        return schedules.from_config(config)


def clip_encoder(folder: ModelFolder, *, suffix: str = "", form: Form = LOWER) -> Encoder:
    """Returns a CLIP with the tokenizer beside it; `suffix` ends both components' names.

    Its class is that of `model_index.json`, by which diffusers opens it: a `config.json` may lack
    it, or name that of the whole CLIP from which it was taken.
    """
    file = folder.root / f"text_encoder{suffix}" / "config.json"
    config, tokenizer = folder.json(file.parent.name, file.name), f"tokenizer{suffix}"
    named = folder.json("model_index.json").get(file.parent.name)
    if isinstance(named, list) and named[-1] in clip.ARCHITECTURES:
        config = {**config, "architectures": named[-1:]}
    read = folder.tokenizer(tokenizer, form=form)
    if read.hf is not None and config.get("eos_token_id") == clip.OLD_EOS:
        # Such a file means the largest id, which is the end's until there are new tokens.
        config = {**config, "eos_token_id": read.hf.eos_token_id}
    with untrusted.values(file):
        encoder = Encoder(clip.build(config, skip=folder.clip_skip), read, tokenizer, suffix)
    end = config.get("eos_token_id", 49407)
    if read.hf is not None and read.hf.eos_token_id != end:
        raise untrusted.FileError(
            f"{file}: eos_token_id = {end}, but the tokenizer in {folder.root / tokenizer} ends "
            f"prompts with {read.hf.eos_token_id}: they are not of one model. Copy both again."
        )
    return _matching(encoder, file)


def t5_encoder(folder: ModelFolder, *, suffix: str = "", **how: Any) -> Encoder:
    """Returns a T5 with the tokenizer beside it; `how` as `text.tokenizer.load` takes it."""
    file = folder.root / f"text_encoder{suffix}" / "config.json"
    config, tokenizer = folder.json(file.parent.name, file.name), f"tokenizer{suffix}"
    with untrusted.values(file):
        network = t5.build(config)
    return _matching(Encoder(network, folder.tokenizer(tokenizer, **how), tokenizer, suffix), file)


def _matching(encoder: Encoder, file: Path) -> Encoder:
    """The same encoder, whose table has a row for every id that its tokenizer may give.

    An index outside of an array is no error in JAX: the last row would be taken, without a word.

    Raises:
      FileError: the tokenizer knows more words than the table has rows.
    """
    rows = encoder.network.abstract[encoder.table].shape[0]
    if encoder.tokenizer.hf is not None and encoder.tokenizer.vocab_size > rows:
        raise untrusted.FileError(
            f"{file}: the table has {rows} rows, but the tokenizer beside it gives ids up to "
            f"{encoder.tokenizer.vocab_size - 1}: they are not of one model. Resize the table, or "
            "copy the tokenizer that belongs to it."
        )
    return encoder


def latent_codec(folder: ModelFolder, *, unet_channels: int | None = None) -> Codec:
    """Returns the autoencoder of a folder, with scale and shift of its latents.

    Raises:
      FileError: `unet_channels`, those of the UNet's input, are not those of its latents.
    """
    config = folder.json("vae", "config.json")
    latent = config.get("latent_channels", 4)
    if unet_channels not in (None, latent):
        raise untrusted.FileError(
            f"{folder.root}/unet/config.json: in_channels = {unet_channels}, but "
            f"the VAE's latents have {latent} channels: an inpainting UNet, not supported."
        )
    scaling = config.get("scaling_factor", 0.18215)  # files older than the key are all of SD 1
    shift = float(config.get("shift_factor") or 0.0)
    with untrusted.values(folder.root / "vae" / "config.json"):
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        network = vae.build(config)
    return Codec("vae", network, factor=factor, scaling=float(scaling), shift=shift)


def original_names(stage: Stage) -> Callable[[str], str]:
    """Returns the function from diffusers' keys of the stage's UNet to the original ones."""
    return original_keys.unet_name(weights.key_of(path) for path in stage.denoiser.network.abstract)


def kohya(
    starts: Mapping[str, str], *, original: bool = False
) -> Callable[[Stage], Callable[[str], str]]:
    """Returns the names of kernels in kohya's LoRA files: paths joined by `_`.

    Args:
      starts: beginning of the names, by component.
      original: the UNet's keys are those of the first authors' code (SDXL).
    """

    def of_stage(stage: Stage) -> Callable[[str], str]:
        rename = original_names(stage) if original else None

        def name(path: str) -> str:
            part, _, rest = path.partition("/")
            key = weights.key_of(rest)
            key = rename(key) if rename and part == COMPONENT else key
            return f"{starts[part]}_{re.sub(r'[.]weight$', '', key).replace('.', '_')}"

        return name

    return of_stage
