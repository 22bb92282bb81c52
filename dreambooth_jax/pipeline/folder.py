"""Opens a stage: the files of a model folder, local or on the hub, all but the weights."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import tree, weights
from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.models import layers, unet, vae
from dreambooth_jax.pipeline.families import FAMILIES
from dreambooth_jax.pipeline.hub import locate
from dreambooth_jax.pipeline.stage import Latents, Stage
from dreambooth_jax.text import tokenizer as tokenizers
from dreambooth_jax.text.tokenizer import Tokenizer


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: this is not a whole model folder in the diffusers layout."
        )
    try:
        return json.loads(file.read_text())
    except ValueError as error:  # JSONDecodeError, or bytes that are no text
        raise ValueError(f"{file} is not JSON: {error}. Copy or download it again.") from error


def open_stage(
    name: str,
    *,
    kind: str,
    resolution: int | None = None,
    variant: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
    shapes_only: bool = False,
) -> Stage:
    """Reads everything but the weights of the stage called `name`.

    Args:
      cache_dir, offline: see `locate`.
      shapes_only: the networks' shapes are all that is wanted: weights are not downloaded, and
        tokenizers may be missing.
      resolution: pixels along a side, for a latent model, instead of its own.
      variant: which weight files `read_weights` will take: "fp16" for `….fp16.safetensors`.

    Raises:
      FileNotFoundError, ValueError: what is missing, or which value of which file is not supported.
    """
    folder = locate(
        name,
        kind=kind,
        variant=variant,
        cache_dir=cache_dir,
        offline=offline,
        weights=not shapes_only,
    )

    def tokenizer_in(part: str) -> Tokenizer:
        absent = shapes_only and not (folder / part).is_dir()
        return Tokenizer(None) if absent else tokenizers.load(folder / part)

    index = _json(folder / "model_index.json")
    found = index.get("_class_name")
    if found not in FAMILIES:
        raise ValueError(
            f"{folder}: pipeline {found!r} is not supported; supported: {', '.join(FAMILIES)}."
        )
    family = FAMILIES[found]
    if family.kind != kind:
        key = "base_model" if kind == "base" else "upscaler_model"
        raise ValueError(
            f"{key} = {name!r} is an {found}, which is the {family.kind!r} stage, not {kind!r}."
        )
    unet_config = _json(folder / "unet" / "config.json")
    text_configs = {part: _json(folder / part / "config.json") for part in family.text_encoders}
    vae_config = _json(folder / "vae" / "config.json") if family.latent else None
    noising = (
        _json(folder / "image_noising_scheduler" / "scheduler_config.json")
        if kind == "upscaler"
        else None
    )
    scheduler = _json(folder / "scheduler" / "scheduler_config.json")
    try:
        networks: dict[str, layers.Network] = {"unet": unet.build(unet_config)}
        for part, (_, build) in family.text_encoders.items():
            networks[part] = build(text_configs[part])
        latents = None
        if vae_config is not None:
            networks["vae"] = vae.build(vae_config)
            latents = _latents(vae_config)
        return Stage(
            kind=kind,
            folder=folder,
            variant=variant,
            family=family,
            networks=networks,
            tokenizers={
                part: tokenizer_in(tokenizer)
                for part, (tokenizer, _) in family.text_encoders.items()
            },
            schedule=schedules.from_config(scheduler),
            noising=None if noising is None else schedules.from_config(noising),
            size=_size(unet_config, latents, resolution),
            channels=int(unet_config["in_channels"]) // (2 if kind == "upscaler" else 1),
            latents=latents,
            zeros_for_empty=bool(index.get("force_zeros_for_empty_prompt", False)),
        )
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _latents(config: Mapping[str, Any]) -> Latents:
    """The scale of a VAE's latents, from `vae/config.json`."""
    scaling = config.get("scaling_factor", 0.18215)  # files older than the key are all of SD 1
    return Latents(factor=2 ** (len(config["block_out_channels"]) - 1), scaling=float(scaling))


def _size(config: Mapping[str, Any], latents: Latents | None, resolution: int | None) -> int:
    """Pixels along a side of what the model makes."""
    size = config.get("sample_size")
    if not isinstance(size, int):
        raise ValueError(
            f"unet/config.json: sample_size = {size!r}; expected the pixels along a side."
        )
    if latents is None:
        if resolution not in (None, size):
            raise ValueError(
                f"resolution = {resolution}: this model's pictures have {size} pixels along a "
                "side, and only latent models can make others. Leave it out."
            )
        return size
    # Every level but the last halves the latent.
    whole = latents.factor * 2 ** (len(config["block_out_channels"]) - 1)
    if resolution is None:
        return size * latents.factor
    if resolution < whole or resolution % whole:
        near = max(round(resolution / whole), 1) * whole
        raise ValueError(
            f"resolution = {resolution}: expected a multiple of {whole}. Write "
            f"--config.resolution={near}."
        )
    return resolution


def read_leaf(stage: Stage, path: str) -> np.ndarray:
    """One float32 parameter of a stage; only its own component is read."""
    part, _, rest = path.partition("/")
    keep = weights.read(
        stage.folder / part,
        stage.networks[part].abstract,
        variant=stage.variant,
        put=lambda name, array: array if name == rest else None,
    )
    return keep[rest]


def read_weights(
    stage: Stage, *, put: Callable[[str, np.ndarray], Any] = lambda path, array: array
) -> tree.Flat:
    """All float32 parameters of a stage; `put` places each leaf as soon as it is read."""

    def under(part: str) -> Callable[[str, np.ndarray], Any]:
        return lambda path, array: put(f"{part}/{path}", array)

    flat: tree.Flat = {}
    for part, network in stage.networks.items():
        leaves = weights.read(
            stage.folder / part, network.abstract, variant=stage.variant, put=under(part)
        )
        flat |= tree.with_prefix(leaves, part)
    return flat
