"""What a run hands over: an ordinary diffusers folder per stage, checked by reading it back."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import __version__, pipeline, tree, weights
from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.diffusion.schedule import Schedule
from dreambooth_jax.pipeline import Stage

INDEX = "model_index.json"
_WORDS = "dreambooth.json"  # what the subjects are called, beside model_index.json
# Schedulers of diffusers that know rescale_betas_zero_snr; the first one stands in for others.
_READ_ZERO_SNR = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)
_WEIGHTS = (".safetensors", ".bin", ".ckpt", ".msgpack")


def _rest(stage: Stage) -> Iterator[Path]:
    """Every file of the base model's folder that is not a weight file of a component we write.

    Weights beside `model_index.json`, such as one file of the whole model, are the base's as well.
    """
    for source in sorted(stage.folder.rglob("*")):
        relative = source.relative_to(stage.folder)
        top = relative.parts[0]
        index = ".safetensors.index." in source.name or ".bin.index." in source.name
        ours = source.suffix in _WEIGHTS or index
        if source.is_dir() or "__pycache__" in relative.parts or top.startswith("."):
            continue
        if not (ours and (top in stage.networks or len(relative.parts) == 1)):
            yield source


def _copy_rest(stage: Stage, folder: Path) -> None:
    for source in _rest(stage):
        target = folder / source.relative_to(stage.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def estimate_bytes(stage: Stage, *, dtype: str) -> int:
    """An upper bound of what `diffusers_folder` writes, without new words and LoRA files."""
    numbers = tree.count(stage.abstract) * weights.itemsize(dtype)
    headers = 256 * len(stage.abstract) + 2**16
    return numbers + headers + sum(source.stat().st_size for source in _rest(stage))


def _change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values, indent=2) + "\n")


def _write_schedule(folder: Path, schedule: Schedule) -> list[str]:
    """Makes the scheduler's file say what `schedule` is; returns what was changed, for the card."""
    file = folder / "scheduler" / "scheduler_config.json"
    raw = json.loads(file.read_text())
    before = schedules.from_config(raw)
    told = []
    if before.variance_type != schedule.variance_type:
        _change(file, variance_type=schedule.variance_type)
        if before.variance_type == "learned_range":
            told.append(
                "The base model learned the variance of its sampling steps too. Fine-tuning leaves "
                "that output alone, so it no longer fits: the scheduler's `variance_type` is "
                f"`{schedule.variance_type}` here."
            )
    if before.timestep_spacing != schedule.timestep_spacing:
        _change(file, timestep_spacing=schedule.timestep_spacing)
    if not np.array_equal(before.alphas_cumprod, schedule.alphas_cumprod):
        _change(file, rescale_betas_zero_snr=True, clip_sample=schedule.clip_sample)
        told.append("It was trained on a schedule that ends in pure noise (Lin et al. 2023).")
        if raw.get("_class_name") not in _READ_ZERO_SNR:
            _change(file, _class_name=_READ_ZERO_SNR[0])
            _change(folder / "model_index.json", scheduler=["diffusers", _READ_ZERO_SNR[0]])
    return told


def _card(stage: Stage, *, about: Mapping[str, Any], told: Sequence[str]) -> str:
    lines = "\n".join(f"- {name}: {value}" for name, value in about.items())
    lines += "".join(f"\n\n{sentence}" for sentence in told)
    library = next(name for name, family in pipeline.FAMILIES.items() if family is stage.family)
    return (
        f"---\nlibrary_name: diffusers\ntags: [text-to-image, dreambooth, {stage.kind}]\n---\n\n"
        f"# DreamBooth: {about.get('instance prompt', stage.kind)}\n\n"
        f"Fine-tuned by dreambooth_jax {__version__} (Ruiz et al. 2022, arXiv:2208.12242). "
        f"Open it with `diffusers.{library}.from_pretrained`.\n\n{lines}\n"
    )


def check_place(folder: Path) -> None:
    """`folder` is to be absent, empty or an exported model: an export replaces all of it.

    Raises:
      ValueError: it is something else.
    """
    if folder.exists() and not (folder / INDEX).is_file() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds something else than an exported model, and an export replaces all of "
            "it. Give another folder."
        )


def diffusers_folder(
    stage: Stage,
    params: Mapping[str, Any],
    folder: str | Path,
    *,
    dtype: str,
    about: Mapping[str, Any],
    words: Sequence[Mapping[str, str]] = (),
    schedule: Schedule | None = None,
) -> Path:
    """Writes `folder` in the layout of the base model it came from, with these weights in `dtype`.

    Args:
      params: flat weights with all leaves of the stage.
      about: lines of the model card, name → value (base model, prompts, steps, …).
      words: what each subject is called (`identifier`, `class_noun`), for `words_in`.
      schedule: by which these weights are sampled; None is that of a plain fine-tuning, in which a
        learned variance is fixed.

    Raises:
      ValueError: a weight does not fit the dtype, or the folder read back is not what was written,
        or `folder` holds something else than a model. What was there before stays as it is.
    """
    folder = Path(folder)
    check_place(folder)
    tree.check_keys(stage.abstract, params, what="weights to export")
    part = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _copy_rest(stage, part)
        # Opened without a dtype, text encoders get that of its file and a UNet float32; in one
        # pipeline the two must agree.
        for encoder, tokenizer in stage.tokenizers.items():
            _change(part / encoder / "config.json", dtype="float32")
            if tokenizer.new_ids:
                _write_new_words(stage, encoder, part)
        schedule = stage.fine_tuned().schedule if schedule is None else schedule
        told = _write_schedule(part, schedule)
        for component, stem in stage.components.items():
            flat = tree.prefixed(params, component)
            weights.write(part / component, flat, dtype=dtype, stem=stem)
        if words:
            first, *others = map(dict, words)
            called = first | ({"others": others} if others else {})
            (part / _WORDS).write_text(json.dumps(called, ensure_ascii=False) + "\n")
        (part / "README.md").write_text(_card(stage, about=about, told=told))
        _verify(part, stage, params, dtype=dtype, schedule=schedule)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    part.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def _write_new_words(stage: Stage, encoder: str, folder: Path) -> None:
    """A tokenizer that knows the new tokens, and the size of its encoder's table."""
    tokenizer = stage.tokenizers[encoder]
    place = folder / stage.family.text_encoders[encoder][0]
    shutil.rmtree(place)
    tokenizer.hf.save_pretrained(place)
    table = next(p for p in stage.new_rows if p.startswith(f"{encoder}/"))
    rows = stage.abstract[table].shape[0]
    _change(folder / encoder / "config.json", vocab_size=rows)


def words_in(folder: Path) -> list[dict[str, str]]:
    """What an exported folder calls its subjects (`identifier`, `class_noun`), if it says so."""
    file = folder / _WORDS
    if not file.is_file():
        return []
    first = json.loads(file.read_text())
    return [first, *first.pop("others", [])]


def _verify(
    folder: Path, stage: Stage, params: Mapping[str, Any], *, dtype: str, schedule: Schedule
) -> None:
    """Reads the folder as a stranger would and compares every number with what was to be there."""
    again = pipeline.open_stage(str(folder), kind=stage.kind)
    for field in dataclasses.fields(Schedule):
        if not np.array_equal(getattr(again.schedule, field.name), getattr(schedule, field.name)):
            raise ValueError(f"{folder}: the scheduler's {field.name} is not that of the training.")
    found = pipeline.read_weights(again)
    for path, value in params.items():
        expected = weights.rounded(np.asarray(value), dtype)
        if not np.array_equal(expected, found[path]):
            raise ValueError(
                f"{folder}: {path} read back differs from what was written: is the disk full or "
                "failing?"
            )
