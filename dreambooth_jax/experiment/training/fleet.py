"""Trains one stage of many subjects in one program, each into checkpoints of its own."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from dreambooth_jax import checkpoint, sharding, train, tree
from dreambooth_jax.config import Plan, StageSettings
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.subject import Subject
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.model import Model, as_tuned
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.training import fine_tune, program, rows
from dreambooth_jax.progress import progress
from dreambooth_jax.signals import GracefulStop
from dreambooth_jax.train import fleet


@dataclasses.dataclass(frozen=True)
class Member:
    """All that the training of one subject starts from; as in a run of its own."""

    name: str
    plan: Plan
    workdir: Workdir
    model: Model
    cast: Sequence[Subject]
    classes: Sequence[ClassImages]
    painter: Painter


@dataclasses.dataclass
class _Learner:
    """One subject's stage: state, batches, what is frozen for it alone, and what is kept of it."""

    member: Member
    own: StageSettings
    weights: Mapping[str, Any]
    beside: Mapping[str, Any]
    batch_at: Callable[[int], Mapping[str, Any]]
    checkpoints: checkpoint.Checkpoints
    kept: checkpoint.Checkpoints  # trained leaves of steps on the way
    state: train.TrainState
    step: int
    program: tuple[
        Any, Any, Any, Any
    ]  # what `fleet.compiled` takes: stage, recipe, adapter, optimizer


class _Program(NamedTuple):
    """The step of a number of subjects, for all rounds of as many or fewer."""

    step: Any  # jitted, see `fleet.compiled`
    mesh: Mesh
    places: int

    def stacked(self, trees: Sequence[Any]) -> Any:
        """Trees of a round's subjects as one; places that are left have the first one's again."""
        return fleet.stacked([*trees, *[trees[0]] * (self.places - len(trees))], self.mesh)


def train_stage(
    kind: str, members: Sequence[Member], stop: GracefulStop, *, at_once: int
) -> dict[str, str]:
    """Trains stage `kind` of every member to its last step; returns why some could not be.

    Those that stopped at another step of an earlier start are trained in rounds of their own.

    Raises:
      Interrupted: a signal came, and all of the round are saved.
    """
    learners = [_learner(kind, member) for member in members]
    left = [each for each in learners if each.step < each.own.train.num_steps]
    failed: dict[str, str] = {}
    programs: dict[int, _Program] = {}
    for step in sorted({each.step for each in left}):
        group = [each for each in left if each.step == step]
        devices = group[0].member.model.mesh.devices.flat[:].tolist()
        places = fleet.places(len(group), at_once=at_once, devices=len(devices))
        if places not in programs:
            mesh = fleet.mesh_of(devices, subjects=places)
            made = fleet.compiled(*group[0].program, mesh=mesh)
            programs[places] = _Program(made, mesh, places)
        for chosen in fleet.rounds(len(group), at_once=places):
            failed |= _train([group[k] for k in chosen], programs[places], stop)
    for each in learners:
        each.checkpoints.close()
        each.kept.close()
    return failed


def _learner(kind: str, member: Member) -> _Learner:
    plan, model = member.plan, member.model
    own = plan.stages[kind]
    stage = as_tuned(plan, model.stages[kind])
    adapter = program.adapter_of(plan, stage)
    text = member.painter.texts(model.weights)[kind]
    trainable, frozen, recipe = program.start(own, stage, model.weights[kind], text, adapter)
    made = rows.batches(own, model, member.cast, member.classes, text=text)
    batch_at, _ = fine_tune.batches_with_tokens(own, stage, made, text, member.painter.identifiers)
    tx = program.optimizer(own, stage, recipe)
    checkpoints, kept = fine_tune.storage(
        own, plan, model, member.cast, member.classes, member.workdir
    )
    host = {path: np.asarray(leaf) for path, leaf in trainable.items()}
    state = fleet.first_state(host, recipe, tx)
    restored = checkpoints.restore(state)
    step = 0 if restored is None else restored[1]
    return _Learner(
        member,
        own,
        weights=frozen["weights"],
        beside={name: part for name, part in frozen.items() if name != "weights"},
        batch_at=batch_at,
        checkpoints=checkpoints,
        kept=kept,
        state=state if restored is None else restored[0],
        step=step,
        program=(stage, recipe, adapter, tx),
    )


def _train(group: Sequence[_Learner], shared: _Program, stop: GracefulStop) -> dict[str, str]:
    """One round: the subjects of `group`, which all are at the same step."""
    first, mesh = group[0], shared.mesh
    pace, kind = first.own.train, first.own.kind
    logging.info(
        "%s: %d subjects in one program on %d device(s), %d leaves and %s parameters of each: %s.",
        kind,
        len(group),
        mesh.size,
        len(first.state.trainable),
        f"{tree.count(first.state.trainable):,}",
        ", ".join(each.member.name for each in group),
    )
    states = shared.stacked([each.state for each in group])
    weights = jax.device_put(first.weights, sharding.replicated(mesh))
    beside = shared.stacked([each.beside for each in group])
    pending: list[Any] = []
    with progress(pace.num_steps, f"{kind} × {len(group)}", "step", initial=first.step) as update:
        for done in range(first.step + 1, pace.num_steps + 1):
            batch = shared.stacked([each.batch_at(done - 1) for each in group])
            states, metrics = shared.step(states, weights, beside, batch)
            pending.append(metrics)
            last = done == pace.num_steps
            asked = stop.agreed()
            if last or asked or done % pace.log_every == 0:
                loss = _write(group, pending, done)
                update(len(pending), loss)
                pending = []
            if last or asked or done % pace.checkpoint_every == 0:
                _save(group, states, done)
            if pace.keep_weights_every and done % pace.keep_weights_every == 0:
                _keep(group, states, done)
            if asked:
                raise train.Interrupted(
                    f"{asked} received: {len(group)} subjects are saved at step {done}. Run the "
                    "same command to resume.",
                    exit_code=stop.exit_code,
                )
    bad = np.asarray(states.bad_steps)[: len(group)]
    return {
        each.member.name: f"{kind}: the last {int(count)} steps had a loss that is not finite. Use "
        "a lower optim.learning_rate."
        for each, count in zip(group, bad, strict=True)
        if count > pace.max_bad_steps
    }


def _write(group: Sequence[_Learner], pending: Sequence[Any], done: int) -> float:
    """Writes the mean of each subject's metrics since the last line; returns the mean loss."""
    kind = group[0].own.kind
    values = {name: np.stack([np.asarray(m[name]) for m in pending]) for name in pending[0]}
    for k, each in enumerate(group):
        good = values["bad_steps"][:, k] == 0
        good = good if good.any() else ~good
        means = {
            f"{kind}/{name}": float(x[good, k].mean())
            for name, x in values.items()
            if name != "bad_steps"
        }
        each.member.workdir.writer.write_scalars(done, means)
        each.member.workdir.writer.flush()
    return float(values["loss"][-1].mean())


def _save(group: Sequence[_Learner], states: Any, done: int) -> None:
    """Saves each subject's state into its own checkpoints; not amid steps that are not finite."""
    bad = np.asarray(states.bad_steps)
    for k, each in enumerate(group):
        if not bad[k]:
            each.checkpoints.save(done, fleet.of_subject(states, k))
    for each in group:
        each.checkpoints.wait()


def _keep(group: Sequence[_Learner], states: Any, done: int) -> None:
    """Keeps each subject's trained leaves, unless an earlier start has."""
    for k, each in enumerate(group):
        if done not in each.kept.steps():
            each.kept.save(done, train.result(fleet.of_subject(states, k)))
    for each in group:
        each.kept.wait()
