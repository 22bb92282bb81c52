"""Export of a stage as an ordinary diffusers folder, checked by reading it back."""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import contents, families, files, pipeline, tree, untrusted, weights
from dreambooth_jax.contents import INDEX
from dreambooth_jax.diffusion import schedule as schedules
from dreambooth_jax.diffusion.path import BetaTable, NoisePath
from dreambooth_jax.export import card
from dreambooth_jax.pipeline import Stage

# Schedulers of diffusers that know rescale_betas_zero_snr; the first one stands in for others.
_READ_ZERO_SNR = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "UniPCMultistepScheduler",
)


def _rest(stage: Stage) -> Iterator[Path]:
    """The files of the base model's folder that an export hands on; said positively.

    Beside `model_index.json` the licence; of each component that it names the settings and the
    vocabulary, and the weights of components that are not written here (a safety checker). No
    pickle, script, weights in another format or picture, wherever they lie. A component's folder
    may be a link to another one.
    """
    parts = [stage.folder / name for name in contents.components(stage.folder)]
    for folder in [stage.folder, *(part for part in parts if part.is_dir())]:
        for source in sorted(folder.iterdir()):
            name = source.name
            if folder == stage.folder:
                wanted = name == INDEX or contents.LICENCE.fullmatch(name) is not None
            else:
                own = folder.name in stage.networks and not stage.unread(folder.name)
                plain = contents.PLAIN_WEIGHTS.fullmatch(name) is not None
                wanted = name in contents.KNOWN or (plain and not own)
            if wanted and source.is_file():
                yield source


def _copy_rest(stage: Stage, folder: Path) -> None:
    for source in _rest(stage):
        target = folder / source.relative_to(stage.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(untrusted.regular(source), target)


def estimate_bytes(stage: Stage, *, dtype: str) -> int:
    """An upper bound of what `diffusers_folder` writes, without new words and LoRA files."""
    numbers = tree.count(stage.abstract) * weights.itemsize(dtype)
    headers = 256 * len(stage.abstract) + 2**16
    return numbers + headers + sum(source.stat().st_size for source in _rest(stage))


def _change(file: Path, **values: Any) -> None:
    content = untrusted.json_object(file) | values
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with files.named(file):
        file.write_text(text, encoding="utf-8")


def _write_path(folder: Path, path: NoisePath) -> list[str]:
    """Makes the scheduler's file say what `path` is; returns what was changed, for the card."""
    file = folder / "scheduler" / "scheduler_config.json"
    raw = untrusted.json_object(file)
    before = schedules.from_config(raw)
    told = []
    if before.variance_type != path.variance_type:
        _change(file, variance_type=path.variance_type)
        if before.variance_type == "learned_range":
            told.append(
                "The base model learned the variance of its sampling steps too. Fine-tuning leaves "
                "that output alone, so it no longer fits: the scheduler's `variance_type` is "
                f"`{path.variance_type}` here."
            )
    if not isinstance(before, BetaTable) or not isinstance(path, BetaTable):
        return told
    if before.timestep_spacing != path.timestep_spacing:
        _change(file, timestep_spacing=path.timestep_spacing)
    if not np.array_equal(before.alphas_cumprod, path.alphas_cumprod):
        _change(file, rescale_betas_zero_snr=True, clip_sample=path.clip_sample)
        told.append("It was trained on a schedule that ends in pure noise (Lin et al. 2023).")
        if raw.get("_class_name") not in _READ_ZERO_SNR:
            _change(file, _class_name=_READ_ZERO_SNR[0])
            _change(folder / "model_index.json", scheduler=["diffusers", _READ_ZERO_SNR[0]])
    return told


def write_card(
    stage: Stage,
    folder: Path,
    *,
    about: Mapping[str, Any],
    told: Sequence[str] = (),
    lora: bool = False,
) -> None:
    """Writes README.md of a stage's folder, or of its LoRA files (`card.text`)."""
    if stage.asked is not None:
        height, width = stage.size
        told = (*told, f"Its pictures have `height={height}, width={width}`.")
    text = card.text(
        about,
        pipeline=stage.family.name,
        kind=stage.kind,
        folder=stage.folder,
        told=told,
        lora=lora,
    )
    files.write_text(folder / contents.CARD, text)


def check_place(folder: Path) -> None:
    """`folder` is to be absent, empty or an exported model: an export replaces all of it.

    Raises:
      ValueError: it is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; an export is a folder. Move it away.")
    ours = any((folder / name).is_file() for name in (INDEX, contents.WORDS))
    if folder.exists() and not ours and any(folder.iterdir()):
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
    path: NoisePath | None = None,
) -> Path:
    """Writes `folder` in the layout of the base model it came from, with these weights in `dtype`.

    Args:
      params: flat weights with all leaves of the stage.
      about: lines of the model card, name → value (base model, prompts, steps, …).
      words: what each subject is called (`identifier`, `class_noun`), for `contents.words_in`.
      path: by which these weights are sampled; None is that of a plain fine-tuning, in which a
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
            if not stage.unread(encoder):
                _change(part / encoder / "config.json", dtype="float32")
            if tokenizer.new_ids:
                _write_new_words(stage, encoder, part)
        if size_keys := stage.family.size_keys(stage):
            _change(part / stage.denoiser.component / "config.json", **size_keys)
        path = stage.fine_tuned().path if path is None else path
        told = _write_path(part, path)
        for component, stem in stage.components.items():
            if stage.unread(component):
                continue
            flat = tree.prefixed(params, component)
            weights.write(part / component, flat, dtype=dtype, stem=stem)
        if words:
            _write_called(part / contents.WORDS, words)
        write_card(stage, part, about=about, told=told)
        _verify(part, stage, params, dtype=dtype, path=path)
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
    place = folder / stage.conditioner.encoders[encoder].tokenizer_folder
    shutil.rmtree(place)
    with untrusted.writing(place):
        tokenizer.hf.save_pretrained(place)
    table = next(p for p in stage.new_rows if p.startswith(f"{encoder}/"))
    rows = stage.abstract[table].shape[0]
    # A file with the old id of the end, 2, means the largest id of a prompt, and that would be a
    # new token's from now on: the vector of the whole prompt would end at it.
    end = {"eos_token_id": tokenizer.hf.eos_token_id} if _pools(folder / encoder) else {}
    _change(folder / encoder / "config.json", vocab_size=rows, **end)


def _write_called(file: Path, words: Sequence[Mapping[str, str]]) -> None:
    """Writes what the subjects are called, for `contents.words_in`."""
    first, *others = map(dict, words)
    called: dict[str, Any] = first | ({"others": others} if others else {})
    with files.named(file):
        file.write_text(json.dumps(called, ensure_ascii=False) + "\n", encoding="utf-8")


def _pools(folder: Path) -> bool:
    """Returns True for a CLIP text encoder, which looks for the end of a prompt."""
    return "num_hidden_layers" in untrusted.json_object(folder / "config.json")


def _verify(
    folder: Path, stage: Stage, params: Mapping[str, Any], *, dtype: str, path: NoisePath
) -> None:
    """Reloads the exported folder and compares every weight."""
    again = families.open_stage(str(folder), kind=stage.kind)
    for field in dataclasses.fields(path):
        if not np.array_equal(getattr(again.path, field.name), getattr(path, field.name)):
            raise ValueError(f"{folder}: the scheduler's {field.name} is not that of the training.")
    found = pipeline.read_weights(again)
    for name, value in params.items():
        copied = stage.unread(name.partition("/")[0])
        expected = np.asarray(value) if copied else weights.rounded(np.asarray(value), dtype)
        if not np.array_equal(expected, found[name]):
            raise ValueError(
                f"{folder}: {name} read back differs from what was written: is the disk full or "
                "failing?"
            )
