"""Fine-tunes one stage: its batches, its optimizer, its checkpoints, the loop."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from clu import parameter_overview

from dreambooth_jax import checkpoint, chips, flops, generate, optim, sharding, train, tree
from dreambooth_jax import config as configs
from dreambooth_jax.config import Plan, StageSettings
from dreambooth_jax.data.batches import StepTokens, SubjectBatches, split_rows
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.shapes import ShapedBatches
from dreambooth_jax.data.subject import Subject
from dreambooth_jax.experiment.parts import class_images, subjects
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.grids import grid_label
from dreambooth_jax.experiment.parts.model import Model, as_tuned
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.training import memory as budget
from dreambooth_jax.experiment.training import program, rows
from dreambooth_jax.pipeline import Stage, lora_reader
from dreambooth_jax.signals import GracefulStop


def fine_tune(
    own: StageSettings,
    plan: Plan,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    painter: Painter,
    workdir: Workdir,
    stop: GracefulStop,
) -> tree.Flat:
    """Trains one stage and returns its trained leaves; resumes from the newest intact checkpoint.

    own: the settings of the stage.

    Raises:
      CheckpointError: no intact checkpoint, or no space for one.
      Interrupted, NonFiniteError: see `train.fit`.
    """
    kind = own.kind
    stage = as_tuned(plan, model.stages[kind])
    adapter = program.adapter_of(plan, stage)
    text = painter.texts(model.weights)[kind]
    trainable, frozen, recipe = program.start(own, stage, model.weights[kind], text, adapter)
    batch_at, fixed = batches_with_tokens(
        own, stage, rows.batches(own, model, cast, classes, text=text), text, painter.identifiers
    )
    run = program.step(own, stage, model.mesh, trainable, frozen, recipe, adapter)
    _announce(own, plan, model, workdir, trainable, run)
    frozen = jax.device_put(frozen, run.frozen)

    def trained(state: train.TrainState) -> tree.Flat:
        return next(iter(train.result(state).values()))

    def sample(step: int, state: train.TrainState) -> None:
        now = model.with_trained(kind, adapter, trained(state))
        painter.grid(now.weights, grid_label(kind, step), stop=stop)

    on_check = None
    if own.train.held_out_every:
        held_out = train.HeldOutLoss(
            run,
            fixed,
            stage=stage,
            recipe=recipe,
            adapter=adapter,
            rows_at_once=own.train.rows_at_once,
        )
        on_check = lambda state: held_out(trained(state), frozen)  # noqa: E731 - None without
    checkpoints, kept = storage(own, plan, model, cast, classes, workdir)
    with checkpoints, kept:
        state = _first_state(own, run, trainable, checkpoints, workdir)
        if not adapter.keeps_base:
            free(trainable)
        log = train.Log(kind, workdir.writer, share_of_peak(run, state, frozen, batch_at(0)))
        profile = _profile(own, workdir)
        hooks = train.Hooks(checkpoints, kept, stop, sample, on_check, profile)
        with workdir.timed(f"training {kind}"):
            pace = _pace(own.train)
            state = train.fit(run, state, frozen, batch_at, pace=pace, log=log, hooks=hooks)
    return trained(state)


def batches_with_tokens(
    own: StageSettings,
    stage: Stage,
    made: tuple[SubjectBatches | ShapedBatches, list[dict[str, np.ndarray]]],
    text: generate.Text,
    identifiers: Sequence[str],
) -> tuple[Callable[[int], Mapping[str, Any]], list[dict[str, np.ndarray]]]:
    """The batches of `rows.batches`, with token ids where a text encoder is trained."""
    source, fixed = made
    if not configs.learns_text(own):
        return source.batch, fixed
    every = stage.tokens(text.prompts, keep=identifiers)
    tokens = StepTokens(every, source.prompts, own.train.batch_size)

    def seen(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        prompt = batch["prompt"]
        return batch | StepTokens(every, np.unique(prompt), len(prompt)).of(prompt)

    def batch_at(step: int) -> Mapping[str, Any]:
        batch = source.batch(step)
        return batch | tokens.of(batch["prompt"])

    return batch_at, [seen(batch) for batch in fixed]


def _announce(
    own: StageSettings,
    plan: Plan,
    model: Model,
    workdir: Workdir,
    trainable: tree.Flat,
    run: train.Compiled,
) -> None:
    """Logs the memory and what is trained; writes the table of trained parameters."""
    logging.info("%s", budget.line(plan, own.kind, model.stages, run))
    logging.info("%s", announcement(own, model, trainable, run.state))
    table = parameter_overview.get_parameter_overview(trainable, include_stats=False)
    workdir.write(f"parameters_{own.kind}.txt", table + "\n")


def storage(
    own: StageSettings,
    plan: Plan,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    workdir: Workdir,
) -> tuple[checkpoint.Checkpoints, checkpoint.Checkpoints]:
    """Opens the stage's checkpoints, and the weights that are kept of steps on the way."""
    files = subjects.prints(cast) | class_images.prints(classes)
    if own.adapt.assistant_file:
        assistant = lora_reader.read(model.stages[own.kind], own.adapt.assistant_file)
        files |= {"assistant": tree.fingerprint(assistant)}
    saving = functools.partial(
        checkpoint.Checkpoints,
        defaults={"config": configs.flatten(configs.base_config())},
        config=setup.settings_of_run(plan, model, files),
        may_differ=[f"config.{key.removesuffix('.*')}" for key in configs.RESULT_FREE_KEYS],
        may_grow=_may_grow,
    )
    return (
        saving(workdir.checkpoints(own.kind), max_to_keep=own.train.max_to_keep),
        saving(workdir.kept_weights(own.kind), max_to_keep=None),
    )


def _may_grow(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The keys of a checkpoint's settings that may differ in a run of more steps."""
    start = "config."
    flat = [
        {k.removeprefix(start): x for k, x in each.items() if k.startswith(start)}
        for each in (saved, now)
    ]
    return [f"{start}{key}" for key in configs.more_steps(*flat)[0]]


def _first_state(
    own: StageSettings,
    run: train.Compiled,
    trainable: tree.Flat,
    checkpoints: checkpoint.Checkpoints,
    workdir: Workdir,
) -> train.TrainState:
    """The state of the newest intact checkpoint, or that before the first step.

    Raises:
      CheckpointError: no intact checkpoint, or no space for those to come.
    """
    restored = checkpoints.restore(run.state)
    if restored is None:
        state = run.init(trainable)
    else:
        state = restored[0]
        logging.info("%s: resumes at step %d of %d", own.kind, restored[1], own.train.num_steps)
    if int(state.step) < own.train.num_steps:
        to_come = own.train.max_to_keep + 1 - len(checkpoints.steps())
        checkpoint.check_space(workdir.root, to_come * checkpoint.estimate_bytes(run.state))
    return state


def _pace(own: configs.plan.Train) -> train.Pace:
    return train.Pace(
        num_steps=own.num_steps,
        log_every=own.log_every,
        checkpoint_every=own.checkpoint_every,
        sample_every=own.sample_every,
        keep_every=own.keep_weights_every,
        check_every=own.held_out_every,
        max_bad_steps=own.max_bad_steps,
    )


def _profile(own: StageSettings, workdir: Workdir) -> train.Profile:
    folder = workdir.root / "profile" / own.kind
    return train.Profile(own.log.profile_at, own.log.profile_steps, folder)


def free(weights: tree.Flat) -> None:
    """Frees the original weights; the train state holds copies, and two fill a small device."""
    for leaf in weights.values():
        if isinstance(leaf, jax.Array):
            leaf.delete()


def share_of_peak(
    run: train.Compiled, state: Any, frozen: Any, batch: Mapping[str, Any]
) -> float | None:
    """Fraction of the devices' peak FLOP/s that one step per second would use; None: unknown."""
    chip = chips.of(run.mesh.devices.flat[0])
    if chip is None:
        return None
    traced = run.step.trace(state, frozen, run.put_batch(batch))
    return flops.count(traced.jaxpr) / (chip.flops * run.mesh.size)


def announcement(c: StageSettings, model: Model, trainable: tree.Flat, state: Any) -> str:
    """One line: what is trained, on which devices, for how many steps."""
    fraction = c.train.prior_fraction if c.prior_loss_weight else 0
    rows = split_rows(c.train.batch_size, prior_fraction=fraction)
    phases = in_phases(program.phases_of(c, model.stages[c.kind]))
    device = model.mesh.devices.flat[0]
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    return (
        f"{c.kind}: trains {len(trainable)} leaves, {tree.count(trainable):,} parameters "
        f"({tree.nbytes(trainable) / 2**20:.1f} MiB; {total / 2**20:.1f} MiB with the optimizer's "
        f"state) on {model.mesh.size} {device.device_kind} device(s) "
        f"({sharding.describe(model.mesh)}), for "
        f"{c.train.num_steps} steps of {rows[0]} subject + {rows[1]} class rows{phases}."
    )


def in_phases(phases: tuple[optim.Phase, ...]) -> str:
    """Returns the steps in which leaves are trained, for the log; "" where all always are."""
    told = [f"{p.paths!r} in steps {p.first} to {p.stop - 1}" for p in phases]
    return f", the first match of {', '.join(told)}" if told else ""
