"""Model folders made from other sources: one file with the whole model, another autoencoder.

What a folder is made of stays where it is; the folder lies in the cache of downloads, is made once,
and is read like any other.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from dreambooth_jax import files, untrusted, weights
from dreambooth_jax.families.single_files import (
    DENOISER,
    Place,
    name_in,
    places,
    write_parts,
)
from dreambooth_jax.pipeline import Stage, cache_folder, locate

# Of another autoencoder: in a folder of its own, or in that of a whole model.
_VAE_FILES = tuple(
    f"{place}{name}"
    for place in ("", "vae/")
    for name in ("config.json", "diffusion_pytorch_model.safetensors")
)
INDEX = "model_index.json"
_SETTINGS_FILES = (".json", ".txt", ".model", ".jinja")
_VERSION = 1  # of what is made of a file: another one makes it anew
_SETTINGS = {  # names that tell a file -> the model whose settings and tokenizers it has
    "conditioner.embedders.1.model.ln_final.weight": "stabilityai/stable-diffusion-xl-base-1.0",
    "cond_stage_model.model.ln_final.weight": "stabilityai/stable-diffusion-2-1",
    "model.diffusion_model.input_blocks.0.0.weight": (
        "stable-diffusion-v1-5/stable-diffusion-v1-5"
    ),
    "joint_blocks.0.x_block.attn2.qkv.weight": "stabilityai/stable-diffusion-3.5-medium",
    "joint_blocks.0.x_block.attn.ln_q.weight": "stabilityai/stable-diffusion-3.5-large",
    "joint_blocks.0.x_block.attn.qkv.weight": "stabilityai/stable-diffusion-3-medium-diffusers",
    "guidance_in.in_layer.weight": "black-forest-labs/FLUX.1-dev",
    "double_blocks.0.img_attn.qkv.weight": "black-forest-labs/FLUX.1-schnell",
}
# Ends of the names of scales beside weights of 8 bits, as ComfyUI and TensorRT's tools write them.
_SCALES = ("scale_weight", "scale_input", "weight_scale", "input_scale", "scaled_fp8")
_REFINER = "conditioner.embedders.0.model.ln_final.weight"

OpenFolder = Callable[[Path], Stage]


@dataclasses.dataclass(frozen=True)
class Changes:
    """Parts of a base model that are to be otherwise than in its folder.

    Args:
      settings, vae: see `Sources`.
      clip_skip: last layers of CLIPs that are left out of what prompts become.
    """

    settings: str = ""
    vae: str = ""
    clip_skip: int = 0


@dataclasses.dataclass(frozen=True)
class Sources:
    """Origins of the parts of a base model, beside its folder or file.

    Args:
      settings: model whose settings and tokenizers a single file has; "" is the published one.
      vae: folder or file of another autoencoder; "" is the model's own.
      variant, cache_dir, offline: see `pipeline.locate`.
      shapes_only: no weights are needed.
    """

    settings: str = ""
    vae: str = ""
    variant: str | None = None
    cache_dir: str | None = None
    offline: bool = False
    shapes_only: bool = False

    def locate(self, name: str, *, kind: str = "base", **how: Any) -> Path:
        """Returns a model's folder; see `pipeline.locate`."""
        given = {"variant": self.variant, "cache_dir": self.cache_dir, "offline": self.offline}
        return locate(name, kind=kind, **given | how)


def is_file(name: str) -> bool:
    """Returns True for the path of a safetensors file that is there."""
    path = files.local(name)
    return path.suffix.lower() == ".safetensors" and path.is_file()


def settings_of(file: Path, names: Mapping[str, Any]) -> str:
    """The hub id of the model whose settings a single file has, by the names of its tensors.

    Raises:
      FileError: it is none of these models.
    """
    if _REFINER in names:
        raise untrusted.FileError(f"{file} is SDXL's refiner, which is not supported.")
    for name, model in _SETTINGS.items():
        if name in names or f"{DENOISER}{name}" in names:
            return model
    some = ", ".join(sorted(names)[:3])
    raise untrusted.FileError(
        f"{file} has no tensors of a whole model in its first authors' layout; found {some}, …. "
        "Expected Stable Diffusion 1, 2, XL, 3 or FLUX.1. A LoRA, an embedding or a text encoder "
        "is no base model."
    )


def of_file(name: str, sources: Sources, open_folder: OpenFolder) -> Path:
    """Returns the folder made of a single file: its weights, and settings and tokenizers beside.

    Args:
      open_folder: opens the stage of a folder.

    Raises:
      FileNotFoundError, FileError: what is missing, or does not fit the settings.
    """
    file = files.local(name).resolve()
    with weights.opened(file) as tensors:
        names, about = dict.fromkeys(tensors.keys()), dict(tensors.metadata() or {})
    _refuse_scaled(file, names)
    model = sources.settings or settings_of(file, names)
    try:
        root = sources.locate(model, weights=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{file} holds weights alone; settings and tokenizers of {model!r} are needed: {error} "
            "Or write --config.base_settings=FOLDER, a model folder of the same architecture."
        ) from error
    if sources.shapes_only:
        return root
    stage = open_folder(root)
    table = places(stage)
    missing = _check_names(file, stage, table, names)
    if missing:
        logging.info("%s has no %s: read from %s.", file, ", ".join(missing), model)
        root = sources.locate(model, parts=missing)
    told = [str(file), file.stat().st_size, file.stat().st_mtime_ns, str(root), _VERSION]
    with _made(sources, "single_files", told) as (place, part):
        if part is not None:
            logging.info("%s is unpacked once into %s, with settings of %s.", file, place, model)
            _copy_settings(stage, root, part, names, about)
            for component in missing:
                weights.files_of(root / component, sources.variant)  # raises where there are none
                shutil.rmtree(part / component, ignore_errors=True)
                (part / component).symlink_to((root / component).resolve())
            wanted = [each for each in table if each.part not in missing]
            write_parts(file, stage, wanted, part)
    return place


def _refuse_scaled(file: Path, names: Mapping[str, Any]) -> None:
    """Raises FileError for weights of 8 bits that have to be multiplied by scales beside them."""
    scales = [name for name in names if name.rpartition(".")[2] in _SCALES]
    if scales:
        raise untrusted.FileError(
            f"{file}: found {len(scales)} scales of weights of 8 bits, such as {scales[0]}; "
            "expected weights as they are. Take the model in 16 bits, or in plain fp8; "
            "--config.adapt.frozen_dtype=int8 makes its weights small."
        )


def _check_names(
    file: Path, stage: Stage, table: Sequence[Place], names: Mapping[str, Any]
) -> list[str]:
    """Returns the components that a file does not have.

    Raises:
      FileError: it has a part of one, or tensors of the denoiser that nothing reads.
    """
    used: set[str] = set()
    of_denoiser: set[str] = set()
    absent: dict[str, list[str]] = {part: [] for part in stage.networks}
    for place in table:
        found = [name_in(piece.key, names) for piece in place.pieces] or [None]
        there = {name for name in found if name is not None}
        used |= there
        of_denoiser |= there if place.part == stage.denoiser.component else set()
        if None in found:
            absent[place.part].append(place.key)
    sizes = {part: sum(place.part == part for place in table) for part in absent}
    problems = [
        f"{len(keys)} tensors of {part} are missing, such as {keys[0]}"
        for part, keys in absent.items()
        if keys and (len(keys) < sizes[part] or part == stage.denoiser.component)
    ]
    # Without a prefix its tensors begin as those of it that are read.
    bare = (name for name in of_denoiser if not name.startswith(DENOISER))
    begins = {name.partition(".")[0] for name in bare}
    left = sorted(
        name
        for name in names
        if name not in used and (name.startswith(DENOISER) or name.partition(".")[0] in begins)
    )
    if left:
        problems.append(f"{len(left)} tensors are not known, such as {left[0]}")
    if problems:
        raise untrusted.FileError(
            f"{file} is not a whole model of the settings in {stage.folder}: {'; '.join(problems)}."
            " Write --config.base_settings=FOLDER, a folder or hub id of the same architecture."
        )
    return [part for part, keys in absent.items() if keys]


def _copy_settings(
    stage: Stage, root: Path, folder: Path, names: Mapping[str, Any], about: Mapping[str, str]
) -> None:
    """Copies settings and tokenizers, without those of parts that are not read (safety checker)."""
    tokenizers = {each.tokenizer_folder for each in stage.conditioner.encoders.values()}
    parts = {*stage.networks, *tokenizers, "scheduler"}
    index = untrusted.json_object(root / INDEX)
    for key, value in index.items():
        if isinstance(value, list) and not key.startswith("_") and key not in parts:
            index[key] = [None, None]
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    for part in sorted(parts):
        (folder / part).mkdir()
        for source in sorted((root / part).iterdir()):
            settings = source.suffix in _SETTINGS_FILES and not source.name.endswith(".index.json")
            if settings and source.is_file():
                shutil.copyfile(untrusted.regular(source), folder / part / source.name)
    _tell_prediction(folder / "scheduler" / "scheduler_config.json", names, about)


def _tell_prediction(file: Path, names: Mapping[str, Any], about: Mapping[str, str]) -> None:
    """Writes into the scheduler's settings what a single file says of its network's output.

    Empty tensors `v_pred` and `ztsnr` are SDXL's marks; modelspec 1.0 has it in the metadata.
    """
    said = {"epsilon": "epsilon", "v": "v_prediction"}.get(
        "v" if "v_pred" in names else about.get("modelspec.prediction_type", "")
    )
    if not said and untrusted.json_object(file).get("prediction_type") == "v_prediction":
        logging.warning(
            "The file does not say what its network predicts; v is taken, as its settings have it. "
            "Stable Diffusion 2's models of 512 pixels (base) predict noise: for one of them write "
            "--config.base_settings=stabilityai/stable-diffusion-2-1-base."
        )
    changed: dict[str, Any] = {"prediction_type": said} if said else {}
    if "ztsnr" in names:
        changed |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if changed:
        content = untrusted.json_object(file) | changed
        file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def with_vae(root: Path, sources: Sources, open_folder: OpenFolder) -> Path:
    """Returns the folder in which the model at `root` has another autoencoder, by links.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the model has no autoencoder, or one with latents of another kind.
    """
    if not (root / "vae").is_dir():
        raise ValueError(
            f"vae_model = {sources.vae!r}: the base model in {root} makes its pictures without an "
            'autoencoder. Write --config.vae_model="".'
        )
    given = _vae_of_file if is_file(sources.vae) else _vae_folder
    folder = given(root, sources, open_folder)
    _check_latents(root / "vae" / "config.json", folder / "config.json")
    children = sorted(child.name for child in root.iterdir())
    with _made(sources, "combined", [str(root.resolve()), str(folder), children]) as (place, part):
        if part is not None:
            part.mkdir(parents=True)
            for name in children:
                source = folder if name == "vae" else root / name
                (part / name).symlink_to(source.resolve())
    return place


def _check_latents(ours: Path, theirs: Path) -> None:
    """Raises FileError where two autoencoders' settings are of different latents."""
    about = [
        {
            "latent_channels": each.get("latent_channels", 4),
            "scaling_factor": round(float(each.get("scaling_factor", 0.18215)), 5),
            "shift_factor": round(float(each.get("shift_factor") or 0.0), 5),
            "levels in block_out_channels": len(each.get("block_out_channels", [])),
        }
        for each in map(untrusted.json_object, (ours, theirs))
    ]
    for key, expected in about[0].items():
        if about[1][key] != expected:
            raise untrusted.FileError(
                f"{theirs}: {key}: {about[1][key]}, but {expected} in the base model's autoencoder:"
                " its latents mean something else. Write another --config.vae_model."
            )


def _vae_folder(root: Path, sources: Sources, open_folder: OpenFolder) -> Path:
    """The folder of an autoencoder, its own or in that of a whole model."""
    del root, open_folder
    try:
        found = sources.locate(sources.vae, patterns=_VAE_FILES)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"vae_model = {sources.vae!r}: {error}") from error
    inner = found / "vae"
    folder = inner if (inner / "config.json").is_file() else found
    untrusted.json_object(folder / "config.json", missing=": expected an autoencoder's folder")
    return folder


def _vae_of_file(root: Path, sources: Sources, open_folder: OpenFolder) -> Path:
    """The folder made of an autoencoder's single file, or of that in a model's one."""
    file, stage = files.local(sources.vae).resolve(), open_folder(root)
    own = [place for place in places(stage) if place.part == "vae"]
    with weights.opened(file) as tensors:
        names = dict.fromkeys(tensors.keys())
    lost = [
        place.key
        for place in own
        if not place.pieces or any(name_in(each.key, names) is None for each in place.pieces)
    ]
    if lost:
        raise untrusted.FileError(
            f"vae_model = {sources.vae!r}: {len(lost)} tensors of this model's autoencoder are not "
            f"in the file, such as {lost[0]}. Write a folder of diffusers' AutoencoderKL."
        )
    told = [str(file), file.stat().st_size, file.stat().st_mtime_ns, str(root), "vae", _VERSION]
    with _made(sources, "single_files", told) as (place, part):
        if part is not None:
            logging.info("%s is unpacked once into %s.", file, place)
            (part / "vae").mkdir(parents=True)
            shutil.copyfile(root / "vae" / "config.json", part / "vae" / "config.json")
            write_parts(file, stage, own, part)
    return place / "vae"


@contextlib.contextmanager
def _made(sources: Sources, kind: str, told: Sequence[Any]) -> Iterator[tuple[Path, Path | None]]:
    """Gives a folder of the cache, and one to fill that takes its place; None where it is there.

    Of several processes at once one fills it and the others wait.

    Args:
      told: what the folder is made of.
    """
    import filelock

    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    place = cache_folder(sources.cache_dir) / kind / digest
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(place.with_name(f"{digest}.lock")):
        if place.is_dir():
            yield place, None
            return
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=f"{digest}.") as made:
            part = Path(made) / "model"
            yield place, part
            os.replace(part, place)
