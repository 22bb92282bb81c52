"""Room on the disk for all that a run will write, estimated before anything is compiled."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from dreambooth_jax import adapt, checkpoint, export, files, optim, train, tree, weights
from dreambooth_jax import config as configs
from dreambooth_jax.checkpoint.space import free_bytes, readable
from dreambooth_jax.config import Plan, StageSettings
from dreambooth_jax.data.prompts import expanded
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.training import program
from dreambooth_jax.pipeline import Stage

_HEADER = 2**11  # bytes around the numbers of a picture


def check(plan: Plan, stages: Mapping[str, Stage], workdir: Workdir) -> None:
    """Logs one line about the room that is needed; counts off what is there from an earlier start.

    Raises:
      CheckpointError: the disk has less; the message tells what is needed, what is free, what for.
    """
    parts = estimate(plan, stages)
    own = files.at(plan.prior.folder) if plan.prior.folder else None
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


def estimate(plan: Plan, stages: Mapping[str, Stage]) -> dict[str, int]:
    """Upper bounds, in bytes, of what a run writes from its first start to its end, by part."""
    parts = dict.fromkeys(("checkpoints", "kept weights", "class images", "grids", "export"), 0)
    for kind, stage in stages.items():
        c = plan.stages[kind]
        trained: tree.Flat = {}
        if kind in plan.trained:
            trained, state = _abstract(plan, c, stage)
            # One more than are kept, while the next is written.
            parts["checkpoints"] += (c.train.max_to_keep + 1) * checkpoint.estimate_bytes(state)
            if c.train.keep_weights_every:
                count = c.train.num_steps // c.train.keep_weights_every
                parts["kept weights"] += count * checkpoint.estimate_bytes(trained)
        picture = math.prod(stage.size) * 3 + _HEADER
        if configs.draws_class_images(plan):
            shares = configs.class_shares(plan).values()
            number = sum(configs.num_class_images(plan, share=share)[0] for share in shares)
            parts["class images"] += number * picture
        if stage is list(stages.values())[-1]:
            parts["grids"] = _grids(plan) * picture
        parts["export"] += _export(plan, stage, trained)
    return parts


def _abstract(plan: Plan, c: StageSettings, stage: Stage) -> tuple[tree.Flat, Any]:
    """Shapes of a stage's trained leaves and of its whole state."""
    trained = program.abstract_trainable(plan, c, stage)
    phases = program.phases_of(c, stage)
    tx = optim.make(c.optim, num_steps=c.train.num_steps, phases=phases)
    averaged = optim.keeps_average(c.optim.name, c.train.ema_decay)
    return trained, jax.eval_shape(
        functools.partial(train.initial_state, tx=tx, ema=averaged), trained
    )


def _grids(plan: Plan) -> int:
    """Pictures of all prompt grids."""
    prompts = len(expanded(plan.sample.prompts)) * len(configs.subjects(plan))
    return configs.num_grids(plan) * prompts * plan.sample.num_images


def _export(plan: Plan, stage: Stage, trained: tree.Flat) -> int:
    """Bytes of one stage's export: its folder, a single file if asked for, LoRA in two files."""
    dtype = plan.export.dtype
    size = export.estimate_bytes(stage, dtype=dtype)
    if plan.export.single_file:
        size += tree.count(stage.abstract) * weights.itemsize(dtype)
    if adapt.makes_factors(plan.adapt) or adapt.makes_words(plan.adapt):
        factors, _ = tree.split(trained, lambda path: "/lora_" in path or "/new_rows" in path)
        size += 2 * tree.count(factors) * weights.itemsize(dtype) + 2**20
    return size


def _bytes_in(folder: Path) -> int:
    if files.is_remote(folder):
        return 0  # free space is unknown
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
