"""Room on the disk for all that a run will write, estimated before anything is compiled."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import adapt, checkpoint, export, files, optim, train, tree, weights
from dreambooth_jax import config as configs
from dreambooth_jax.checkpoint.space import free_bytes, readable
from dreambooth_jax.data.prompts import expanded
from dreambooth_jax.experiment.program import adapter_of
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.pipeline import Stage

_HEADER = 2**11  # bytes around the numbers of a picture
_WORD = "<estimated-word-"  # stands for a subject's own tokens, whatever they will be called


def check(config: ConfigDict, stages: Mapping[str, Stage], workdir: Workdir) -> None:
    """Logs one line about the room that is needed; counts off what is there from an earlier start.

    Raises:
      CheckpointError: the disk has less; the message tells what is needed, what is free, what for.
    """
    parts = estimate(config, stages)
    own = files.at(config.prior.folder) if config.prior.folder else None
    folders = {
        "checkpoints": workdir.root / "checkpoints",
        "kept weights": workdir.root / "kept_weights",
        "class images": own or workdir.root / "prior",
        "grids": workdir.samples,
    }
    for name, folder in folders.items():
        parts[name] = max(0, parts[name] - _bytes_in(folder))
    told = ", ".join(f"{name} {readable(size)}" for name, size in parts.items() if size)
    total, free = sum(parts.values()), free_bytes(workdir.root)
    room = "" if free is None else f" {readable(free)} are free."
    logging.info(
        "Disk: this run writes at most %s into %s (%s).%s",
        readable(total),
        workdir.root,
        told,
        room,
    )
    elsewhere = parts.pop("class images") if own else 0
    if own:
        checkpoint.check_space(own, elsewhere, what="Class images")
    checkpoint.check_space(workdir.root, total - elsewhere, what=f"All files of this run ({told})")


def estimate(config: ConfigDict, stages: Mapping[str, Stage]) -> dict[str, int]:
    """Upper bounds, in bytes, of what a run writes from its first start to its end, by part."""
    parts = dict.fromkeys(("checkpoints", "kept weights", "class images", "grids", "export"), 0)
    for kind, stage in stages.items():
        c = configs.for_stage(config, kind)
        trained: tree.Flat = {}
        if kind in config.stages:
            trained, state = _abstract(config, c, stage)
            # One more than are kept, while the next is written.
            parts["checkpoints"] += (c.train.max_to_keep + 1) * checkpoint.estimate_bytes(state)
            if c.train.keep_weights_every:
                count = c.train.num_steps // c.train.keep_weights_every
                parts["kept weights"] += count * checkpoint.estimate_bytes(trained)
        picture = stage.size**2 * 3 + _HEADER
        if configs.draws_class_images(config):
            shares = configs.class_shares(config).values()
            number = sum(configs.num_class_images(config, share=share)[0] for share in shares)
            parts["class images"] += number * picture
        if stage is list(stages.values())[-1]:
            parts["grids"] = _grids(config) * picture
        parts["export"] += _export(config, stage, trained)
    return parts


def _abstract(config: ConfigDict, c: ConfigDict, stage: Stage) -> tuple[tree.Flat, Any]:
    """Shapes of a stage's trained leaves and of its whole state."""
    if adapt.makes_words(config.adapt):
        for k in range(len(configs.subjects(config))):
            stage = stage.with_word(f"{_WORD}{k}>", count=config.adapt.num_vectors)
    rules = configs.trainable_rules(c)
    trained = adapt.abstract(adapter_of(config, stage), stage.abstract, rules)
    tx = optim.make(c.optim, num_steps=c.train.num_steps, phases=configs.phases(c))
    averaged = optim.keeps_average(c.optim.name, c.train.ema_decay)
    return trained, jax.eval_shape(
        functools.partial(train.initial_state, tx=tx, ema=averaged), trained
    )


def _grids(config: ConfigDict) -> int:
    """Pictures of all prompt grids."""
    prompts = len(expanded(config.sample.prompts)) * len(configs.subjects(config))
    return configs.num_grids(config) * prompts * config.sample.num_images


def _export(config: ConfigDict, stage: Stage, trained: tree.Flat) -> int:
    """Of one stage: the folder, one file more where it is asked for, LoRA in two files."""
    dtype = config.export.dtype
    size = export.estimate_bytes(stage, dtype=dtype)
    if config.export.single_file:
        size += tree.count(stage.abstract) * weights.itemsize(dtype)
    if adapt.makes_factors(config.adapt) or adapt.makes_words(config.adapt):
        factors, _ = tree.split(trained, lambda path: "/lora_" in path or "/new_rows" in path)
        size += 2 * tree.count(factors) * weights.itemsize(dtype) + 2**20
    return size


def _bytes_in(folder: Path) -> int:
    if files.is_remote(folder):
        return 0  # where nobody can say what is free
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
