"""The families of base models, one file each, and the table of them."""

import functools
from pathlib import Path

from dreambooth_jax import untrusted
from dreambooth_jax.families import (
    deepfloyd_if,
    flux,
    flux2,
    sd3,
    sdxl,
    sources,
    stable_diffusion,
    z_image,
)
from dreambooth_jax.families.sources import Changes, Sources
from dreambooth_jax.pipeline import Family, ModelFolder, Resolution, Stage

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        deepfloyd_if.BASE,
        deepfloyd_if.UPSCALER,
        stable_diffusion.FAMILY,
        sdxl.FAMILY,
        sd3.FAMILY,
        flux.FAMILY,
        z_image.FAMILY,
        flux2.FAMILY,
    )
}

_FLUX1, _KLEIN = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.2-klein-base-4B"
# Pipelines of the same makers that read other inputs, and a base model to train in their place.
_INSTEAD = {
    "FluxControlPipeline": _FLUX1,
    "FluxFillPipeline": _FLUX1,
    "FluxKontextPipeline": _FLUX1,
    "Flux2Pipeline": _KLEIN,  # FLUX.2 dev, with another text encoder
    "ZImageOmniPipeline": "Tongyi-MAI/Z-Image",
}


def open_stage(
    name: str,
    *,
    kind: str,
    resolution: Resolution | None = None,
    variant: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
    shapes_only: bool = False,
    changes: Changes = Changes(),  # noqa: B008 - frozen
) -> Stage:
    """Reads everything but the weights of the stage called `name`.

    Args:
      name: as `pipeline.locate` takes it, or a safetensors file with the whole model, of which a
        folder is made once in the cache.
      cache_dir, offline: see `pipeline.locate`.
      changes: what is to be otherwise than in the model's folder.
      shapes_only: the networks' shapes are all that is wanted: weights are not downloaded, and
        tokenizers may be missing.
      resolution: pixels of what it makes, a side or (height, width), instead of the model's own.
      variant: which weight files `read_weights` will take: "fp16" for `….fp16.safetensors`.

    Raises:
      FileNotFoundError, ValueError: what is missing, or which value of which file is not supported.
    """
    given = Sources(changes.settings, changes.vae, variant, cache_dir, offline, shapes_only)
    whole = functools.partial(_opened, kind=kind, name=name)

    def own(root: Path) -> Stage:
        return whole(ModelFolder(root, shapes_only=shapes_only))

    if sources.is_file(name):
        root = sources.of_file(name, given, own)
        variant = None
    elif changes.settings:
        raise ValueError(
            f"base_settings = {changes.settings!r}: expected none, because base_model = {name!r} "
            'is no safetensors file and has settings of its own. Write --config.base_settings="".'
        )
    else:
        root = given.locate(name, kind=kind, weights=not shapes_only)
    root = sources.with_vae(root, given, own) if changes.vae else root
    return whole(ModelFolder(root, variant, shapes_only, changes.clip_skip)).at(resolution)


def _opened(folder: ModelFolder, *, kind: str, name: str) -> Stage:
    """The stage of a folder; `name` is that of the model in messages."""
    root = folder.root
    found = folder.json("model_index.json").get("_class_name")
    if isinstance(found, list) and len(found) == 2:  # of a custom pipeline: (module, class)
        found = found[1]
    if not isinstance(found, str) or found not in FAMILIES:
        near = _INSTEAD.get(f"{found}")
        hint = f" Write --config.base_model={near}." if near else ""
        raise ValueError(
            f"{root}: pipeline {found!r} is not supported; supported: {', '.join(FAMILIES)}.{hint}"
        )
    family = FAMILIES[found]
    if family.kind != kind:
        key = "base_model" if kind == "base" else "upscaler_model"
        raise ValueError(
            f"{key} = {name!r} is an {found}, which is the {family.kind!r} stage, not {kind!r}."
        )
    if folder.clip_skip and not family.skips:
        raise ValueError(
            f"clip_skip = {folder.clip_skip}: expected 0, because a {found} does not read the "
            "layers of a CLIP. Write --config.clip_skip=0."
        )
    with untrusted.values(root):
        return family.build(folder)
