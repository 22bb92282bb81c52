"""`--mode=sample` and `--mode=export`: pictures and exports of a run's checkpoints; no photos."""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
from absl import logging

from dreambooth_jax import checkpoint, optim, sharding, tree
from dreambooth_jax import config as configs
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.config import ConfigDict, Plan, StageSettings
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import listing, loras, subjects
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.model import Model, weights_name
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import exporting as delivery
from dreambooth_jax.experiment.training.program import adapter_of, rules_of
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.signals import GracefulStop


def sample(config: ConfigDict, folder: Path) -> Path:
    """Draws `sample.prompts` with the run's fine-tuned weights; returns the pictures' folder.

    Without a run in `folder` it draws with the base model, which may be an export. With
    `sample.prompts_file` it draws that file's lines instead, with `sample.loras` those files'
    changes are added to the weights.

    Raises:
      ConfigError, CheckpointError, ValueError, OSError: what was found, expected, and what to do.
    """
    plan = configs.resolve(config)
    workdir = Workdir.of_run(folder, plan)
    stages = setup.open_stages(plan)
    lines, added = listing.read(plan, stages), loras.read(plan, stages)
    model, words = reopened(plan, workdir, stages)
    tuned, steps = restored(plan, model, workdir)
    tuned, label = added.to(tuned), weights_name(steps) + added.label
    painter = Painter(plan, model, words, workdir, listing.texts_of(lines, words))
    if added.changes_text(stages):
        painter.encode_anew(tuned.weights)
    if lines:
        return listing.drawn(painter, tuned.weights, label, listing.asked_of(plan, lines, words))
    return painter.drawn(tuned.weights, label)


def export(config: ConfigDict, folder: Path) -> Path:
    """Exports the run's fine-tuned weights, of its newest checkpoints or those that `restore` says.

    Raises:
      ConfigError, CheckpointError, ValueError, OSError: what was found, expected, and what to do.
    """
    plan = configs.resolve(config)
    workdir = Workdir.of_run(folder, plan)
    model, words = reopened(plan, workdir)
    tuned, steps = restored(plan, model, workdir)
    if not steps and all(own.restore_step is None for own in plan.to_train):
        raise CheckpointError(
            f"{folder} has no checkpoints to export. Give the --workdir of a run, or write "
            f"--config.restore.{plan.trained[0]}=0 to export the untouched model."
        )
    with GracefulStop() as stop:
        return delivery.deliver(plan, tuned, words, workdir, stop, steps=steps)


def reopened(
    plan: Plan, workdir: Workdir, stages: Mapping[str, Stage] | None = None
) -> tuple[Model, tuple[Words, ...]]:
    """The base model of a run, with room for new words where there are some, and its words.

    stages: where they are open already.

    Raises:
      ValueError, OSError: what was found, expected, and what to do.
    """
    model = setup.load(plan, setup.open_stages(plan) if stages is None else stages)
    words = subjects.words(plan, model, workdir, as_exported=True)
    return subjects.with_new_words(plan, model, words), words


def restored(plan: Plan, model: Model, workdir: Workdir) -> tuple[Model, dict[str, int]]:
    """The model with the weights of the run's checkpoints, and the step of each tuned stage.

    Raises:
      CheckpointError: none is intact, the one that `restore` names is not there, or its run had
        another base model or another way to adapt it.
    """
    steps: dict[str, int] = {}
    tuned = model
    for own in plan.to_train:
        kind = own.kind
        if own.restore_step == 0:
            continue
        found = _trained(plan, own, model, workdir)
        if found is None:
            continue
        trained, steps[kind] = found
        tuned = tuned.with_trained(kind, adapter_of(plan, model.stages[kind]), trained)
    logging.info("Weights: %s.", weights_name(steps))
    asked = any(own.restore_step is None for own in plan.to_train)
    if not steps and asked and not (workdir.root / "config.json").is_file():
        logging.warning(
            "There is no run in %s: these are the base model's weights as they are. Check "
            "--workdir, or write --config.restore.%s=0 if this is meant.",
            *(workdir.root, plan.trained[0]),
        )
    return tuned, steps


def _trained(
    plan: Plan, own: StageSettings, model: Model, workdir: Workdir
) -> tuple[tree.Flat, int] | None:
    """The trained leaves of a checkpoint (the averaged ones, if kept) and its step."""
    kind, step = own.kind, own.restore_step
    rules = rules_of(own, model.stages[kind])
    adapter = adapter_of(plan, model.stages[kind], begins=False)
    trainable, _ = adapter.init(dict(model.weights[kind]), rules)
    whole = sharding.replicated(model.mesh)
    like = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", whole))
        for path, x in trainable.items()
    }
    kept = optim.keeps_average(own.optim.name, own.train.ema_decay)
    part = "ema" if kept else "trainable"
    free = configs.free_to_restore(plan.flat)
    reading = functools.partial(
        checkpoint.Checkpoints,
        defaults={"config": configs.flatten(configs.base_config())},
        config=setup.settings_of_run(plan, model, {}),
        may_differ=[*setup.OF_FILES, *(f"config.{key}" for key in free)],
    )
    full, weights = reading(workdir.checkpoints(kind)), reading(workdir.kept_weights(kind))
    with full, weights:
        there, more = full.steps(), weights.steps()
        if step is not None and more and step not in there + more:
            raise CheckpointError(
                f"{workdir.root} has no checkpoint of step {step} of the {kind} stage; has "
                f"{', '.join(map(str, there))}, and weights of {', '.join(map(str, more))}."
            )
        alone = not there if step is None else step not in there
        found = (weights if alone and more else full).restore({part: like}, partial=True, step=step)
    return None if found is None else (found[0][part], found[1])
