"""What can be done with a run besides training: draw from it, export it. No photos are needed."""

import fnmatch
import functools
from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import checkpoint, optim, sharding, tree
from dreambooth_jax import config as configs
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment import delivery, setup, subjects
from dreambooth_jax.experiment.model import Model
from dreambooth_jax.experiment.painter import Painter
from dreambooth_jax.experiment.program import adapter_of
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.signals import GracefulStop


def sample(config: ConfigDict, folder: Path) -> Path:
    """Draws `sample.prompts` with the run's fine-tuned weights; returns the pictures' folder.

    Without a run in `folder` it draws with the base model, which may be an export.

    Raises:
      ConfigError, CheckpointError, ValueError, OSError: what was found, expected, and what to do.
    """
    workdir = Workdir.of_run(folder, config)
    model, words = reopened(config, workdir)
    painter = Painter(config, model, words, workdir)
    tuned, steps = restored(config, model, workdir)
    return painter.drawn(tuned.weights, named(steps))


def export(config: ConfigDict, folder: Path) -> Path:
    """Exports the run's fine-tuned weights, of its newest checkpoints or those that `restore` says.

    Raises:
      ConfigError, CheckpointError, ValueError, OSError: what was found, expected, and what to do.
    """
    workdir = Workdir.of_run(folder, config)
    model, words = reopened(config, workdir)
    tuned, steps = restored(config, model, workdir)
    if not steps and all(config.restore[kind] is None for kind in config.stages):
        raise CheckpointError(
            f"{folder} has no checkpoints to export. Give the --workdir of a run, or write "
            f"--config.restore.{config.stages[0]}=0 to export the untouched model."
        )
    with GracefulStop() as stop:
        return delivery.deliver(config, tuned, words, workdir, stop, steps=steps)


def reopened(config: ConfigDict, workdir: Workdir) -> tuple[Model, tuple[Words, ...]]:
    """The base model of a run, with room for new words where there are some, and its words.

    Raises:
      ValueError, OSError: what was found, expected, and what to do.
    """
    model = setup.load(config, setup.open_stages(config))
    words = subjects.words(config, model, workdir, as_exported=True)
    return subjects.with_new_words(config, model, words), words


def named(steps: dict[str, int]) -> str:
    """A name for weights of these steps by stage."""
    return "+".join(f"{kind}-{step:06d}" for kind, step in steps.items()) or "untouched"


def restored(config: ConfigDict, model: Model, workdir: Workdir) -> tuple[Model, dict[str, int]]:
    """The model with the weights of the run's checkpoints, and the step of each tuned stage.

    Raises:
      CheckpointError: none is intact, the one that `restore` names is not there, or its run had
        another base model or another way to adapt it.
    """
    steps: dict[str, int] = {}
    tuned = model
    for kind in config.stages:
        wanted = config.restore[kind]
        if wanted == 0:
            continue
        found = _trained(config, model, workdir, kind, wanted)
        if found is None:
            continue
        trained, steps[kind] = found
        tuned = tuned.with_trained(kind, adapter_of(config, model.stages[kind]), trained)
    logging.info("Weights: %s.", named(steps))
    return tuned, steps


def _trained(
    config: ConfigDict, model: Model, workdir: Workdir, kind: str, step: int | None
) -> tuple[tree.Flat, int] | None:
    """What a checkpoint of a stage keeps of its training: the averaged weights, if there are."""
    c = configs.for_stage(config, kind)
    rules = configs.trainable_rules(c)
    trainable, _ = adapter_of(config, model.stages[kind]).init(dict(model.weights[kind]), rules)
    whole = sharding.replicated(model.mesh)
    like = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", whole))
        for path, x in trainable.items()
    }
    kept = optim.keeps_average(c.optim.name, c.train.ema_decay)
    part = "ema" if kept else "trainable"
    free = [
        key
        for key in configs.flatten(config)
        if not any(fnmatch.fnmatchcase(key, pattern) for pattern in configs.RESTORE_KEYS)
    ]
    reading = functools.partial(
        checkpoint.Checkpoints,
        defaults={"config": configs.flatten(configs.base_config())},
        config=setup.settings_of_run(config, model, {}),
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
