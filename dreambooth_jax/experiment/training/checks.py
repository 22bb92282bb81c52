"""Checks of all stages that follow from settings, files and mesh, before anything compiles."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from dreambooth_jax import adapt
from dreambooth_jax.config import Plan, StageSettings
from dreambooth_jax.data.audit import Audit
from dreambooth_jax.diffusion.path import MODEL_DENSITY, Flow
from dreambooth_jax.experiment.parts.model import as_tuned
from dreambooth_jax.experiment.training import program
from dreambooth_jax.export import lora_file
from dreambooth_jax.pipeline import Stage, lora_reader


def check(plan: Plan, stages: Mapping[str, Stage], mesh: Mesh, photos: Sequence[Audit]) -> None:
    """Checks that every stage can be trained as the settings ask, not only the first one.

    Raises:
      ValueError: all problems, each with what to write instead.
    """
    found = [*_problems(plan, stages, mesh, photos)]
    if found:
        raise ValueError("\n".join(dict.fromkeys(found)))


def _problems(
    plan: Plan, stages: Mapping[str, Stage], mesh: Mesh, photos: Sequence[Audit]
) -> Iterator[str]:
    for each in photos:
        count = len(each.kept)
        if problem := held_out_problem(plan.subject.held_out, count, each.folder):
            yield problem
    for own in plan.to_train:
        for step in (_rows, _leaves, _distilled, _flow):
            try:
                step(plan, own, stages[own.kind], mesh)
            except (ValueError, FileNotFoundError) as error:
                yield str(error)


def held_out_problem(held_out: int, count: int, folder: Path) -> str:
    """Returns the message where no photo is left to train on, "" where one is."""
    if held_out < count:
        return ""
    return (
        f"subject.held_out = {held_out}, but {folder} has {count} photos: at least one is "
        f"to be trained on. Write --config.subject.held_out={max(count - 3, 0)}."
    )


def _rows(plan: Plan, own: StageSettings, stage: Stage, mesh: Mesh) -> None:
    program.check_rows(own, mesh)


def _leaves(plan: Plan, own: StageSettings, stage: Stage, mesh: Mesh) -> None:
    tuned = as_tuned(plan, stage)
    trainable = program.abstract_trainable(plan, own, tuned)
    program.check_rates(own, tuned, trainable)
    if adapt.makes_factors(plan.adapt):
        lora_file.check(tuned, trainable)


def _distilled(plan: Plan, own: StageSettings, stage: Stage, mesh: Mesh) -> None:
    """Checks that a distilled model has its assistant, and that this is the model's own."""
    file = own.adapt.assistant_file
    if file and not adapt.keeps_base(own.adapt):
        raise ValueError(
            f"adapt.assistant = {file!r}: in full fine-tuning it would become a part of the "
            "weights that are trained. Write --config.adapt.name=lora."
        )
    if file and own.adapt.dora:
        raise ValueError(
            f"adapt.assistant = {file!r}: DoRA's lengths would be those of its sum with the base. "
            "Write --config.adapt.dora=False."
        )
    if file:
        lora_reader.read(stage, file)
    elif stage.distilled and not own.adapt.assistant:
        raise ValueError(
            f"{own.model}: {stage.distilled} Or write --config.adapt.assistant=FILE, a LoRA that "
            "undoes the distillation while it is trained and is left out when it draws; "
            "--config.adapt.assistant=none trains it as it is."
        )


def _flow(plan: Plan, own: StageSettings, stage: Stage, mesh: Mesh) -> None:
    """Checks that settings of the noise are for the stage's kind of noise path."""
    if not isinstance(stage.path, Flow):
        if program.density_of(own) != MODEL_DENSITY:
            key = "loss.shift" if own.loss.shift is not None else "loss.density"
            usual = "Leave it out." if key == "loss.shift" else f"Write --config.{key}=model."
            raise ValueError(
                f"{key} = {plan.flat[key]!r} is for flows; {own.model} has a table of betas, whose "
                f"time steps are drawn with the same probability. {usual}"
            )
    elif own.loss.offset_noise:
        raise ValueError(
            f"loss.offset_noise = {own.loss.offset_noise:g} is for tables of betas, which do not "
            f"end in pure noise; {own.model} is a flow, which does, and draws from noise without "
            "it. Write --config.loss.offset_noise=0."
        )
