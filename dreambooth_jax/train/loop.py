"""The train loop: steps dispatched ahead, metrics, checkpoints, grids, signals."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from absl import logging

from dreambooth_jax.checkpoint import Checkpoints
from dreambooth_jax.metrics import Writer
from dreambooth_jax.progress import Update, compiling, progress
from dreambooth_jax.signals import GracefulStop
from dreambooth_jax.train.profile import Profile
from dreambooth_jax.train.step import Batch, Compiled, TrainState


class NonFiniteError(RuntimeError):
    """The run was stopped after too many non-finite steps in a row."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """The length of a stage's training and the steps between the loop's other tasks."""

    num_steps: int
    log_every: int
    checkpoint_every: int
    sample_every: int
    max_bad_steps: int
    keep_every: int = 0
    check_every: int = 0


class Interrupted(RuntimeError):
    """A signal asked the run to stop, all is saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Alarm:
    """Warns once when a loss is far above those of the first steps: the weights are exploding."""

    FIRST, TIMES = 10, 20

    def __init__(self, label: str) -> None:
        self._label, self._first, self._told = label, list[float](), False

    def __call__(self, step: int, loss: float) -> None:
        """Takes the loss of a step."""
        if not math.isfinite(loss) or self._told:
            return
        usual = float(np.median(self._first)) if self._first else loss
        if loss > self.TIMES * usual:
            self._told = True
            logging.warning(
                "%s: the loss of step %d is %.3g, that of the first steps was %.3g: the weights "
                "are exploding. Start again in another --workdir with a lower optim.learning_rate.",
                *(self._label, step + 1, loss, usual),
            )
        elif len(self._first) < self.FIRST:
            self._first.append(loss)


def leave_if_asked(stop: GracefulStop | None, kept: str) -> None:
    """Ends a run between two of its parts; with several processes all call it together.

    Raises:
      Interrupted: a signal came; `kept` names what a resumed run starts from.
    """
    if stop is not None and (name := stop.agreed()):
        raise Interrupted(
            f"{name} received: {kept}. Run the same command to resume.", exit_code=stop.exit_code
        )


def result(state: TrainState) -> dict[str, Any]:
    """The part of the state that a run hands over: averaged weights, where there are some."""
    return {"trainable": state.trainable} if state.ema is None else {"ema": state.ema}


@dataclasses.dataclass(frozen=True)
class Log:
    """The name of a stage and the writer of its metrics.

    share_of_peak: fraction of all devices' peak arithmetic that one step per second would use; with
    it the metrics have `mfu`, the fraction that is used.
    """

    label: str
    writer: Writer
    share_of_peak: float | None = None


@dataclasses.dataclass(frozen=True)
class Hooks:
    """Tasks of the loop beside its steps; None does without.

    checkpoints: get the whole state, `kept` the trained leaves alone (`result`). on_sample: may
    raise Interrupted, after which the state is saved. on_check: its numbers go to the metrics,
    before the first step, every `pace.check_every` steps and after the last one. A request to stop
    (`signals.GracefulStop`) is answered after the current step.
    """

    checkpoints: Checkpoints | None = None
    kept: Checkpoints | None = None
    stop: GracefulStop | None = None
    on_sample: Callable[[int, TrainState], None] | None = None
    on_check: Callable[[TrainState], Mapping[str, float]] | None = None
    profile: Profile | None = None


def _saved(signal: str | None, label: str, done: int, *, exit_code: int) -> Interrupted:
    """The error that ends a training whose state is saved."""
    return Interrupted(
        f"{signal} received: {label} is saved at step {done}. Run the same command to resume.",
        exit_code=exit_code,
    )


@dataclasses.dataclass(frozen=True)
class _Due:
    """The tasks that follow a step."""

    save: bool
    keep: bool
    sample: bool
    check: bool
    ask: bool
    last: bool

    @classmethod
    def after(cls, done: int, pace: Pace, hooks: Hooks) -> "_Due":
        """Returns what is due after `done` steps."""

        def turn(every: int) -> bool:
            return every > 0 and done % every == 0

        last = done == pace.num_steps
        save = hooks.checkpoints is not None and (last or turn(pace.checkpoint_every))
        # With several processes the question is a collective: it is asked now and then, and not
        # while a step runs (on CPU the two would block each other).
        several = jax.process_count() > 1
        return cls(
            save=save,
            keep=hooks.kept is not None and turn(pace.keep_every),
            sample=hooks.on_sample is not None and turn(pace.sample_every),
            check=hooks.on_check is not None
            and pace.check_every > 0
            and (last or turn(pace.check_every)),
            ask=hooks.stop is not None and (not several or save or turn(pace.log_every)),
            last=last,
        )

    @property
    def needs_all_metrics(self) -> bool:
        """True where no step may be on its way."""
        together = self.ask and jax.process_count() > 1
        return self.save or self.keep or self.sample or self.check or together or self.last


class _Meter:
    """Metrics of the steps: fetched, checked, averaged over `pace.log_every` steps, written."""

    def __init__(self, pace: Pace, log: Log, update: Update) -> None:
        self.pace, self.log, self.update = pace, log, update
        self.pending: list[tuple[int, dict[str, jax.Array]]] = []
        self.seen: list[dict[str, float]] = []
        self.since = time.monotonic()
        self.bad = False  # the last step that was fetched was not finite
        self._alarm = Alarm(log.label)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of a step that is on its way."""
        self.pending.append((step, metrics))

    def fetch(self, *, leave: int) -> None:
        """Waits for the metrics of all steps but the last `leave`."""
        while len(self.pending) > leave:
            self._take(*self.pending.pop(0))

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time of its block out of the speed of the steps."""
        started = time.monotonic()
        yield
        self.since += time.monotonic() - started

    def _take(self, step: int, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        if values["bad_steps"] > self.pace.max_bad_steps:
            raise NonFiniteError(
                f"{self.log.label}: {int(values['bad_steps'])} steps in a row, up to step {step}, "
                f"had a loss or gradient that is not finite (loss {values['loss']}, grad_norm "
                f"{values['grad_norm']}). No weight was changed by them, and none was saved since. "
                "With a lower optim.learning_rate, or dtype='float32', start again in another "
                "--workdir: this one holds a run with these settings."
            )
        self.bad = values["bad_steps"] > 0
        self._alarm(step, values["loss"])
        self.seen.append(values)
        self.update(1, values["loss"])
        if (step + 1) % self.pace.log_every == 0 or step + 1 == self.pace.num_steps:
            self._write(step + 1)

    def _write(self, done: int) -> None:
        good = [values for values in self.seen if not values["bad_steps"]] or self.seen
        names = [name for name in good[0] if name != "bad_steps"]
        mean = {name: float(np.mean([values[name] for values in good])) for name in names}
        mean["skipped_steps"] = float(sum(values["bad_steps"] > 0 for values in self.seen))
        rate = len(self.seen) / max(time.monotonic() - self.since, 1e-9)
        mean |= {"steps_per_second": rate, "seconds_per_step": 1 / rate}
        if self.log.share_of_peak is not None:
            mean["mfu"] = self.log.share_of_peak * rate
        self.write(done, mean)
        self.since = time.monotonic()
        self.seen.clear()

    def write(self, done: int, values: Mapping[str, float]) -> None:
        """Writes numbers of the stage."""
        self.log.writer.write_scalars(done, {f"{self.log.label}/{k}": x for k, x in values.items()})


def fit(
    run: Compiled,
    state: TrainState,
    frozen: Any,
    batch_at: Callable[[int], Batch],
    *,
    pace: Pace,
    log: Log,
    hooks: Hooks = Hooks(),
) -> TrainState:
    """Trains from `state.step` to `pace.num_steps`.

    Metrics of step n are fetched after step n + 1 was dispatched, so the device never waits for the
    host.

    Raises:
      Interrupted: a signal came, and a checkpoint is saved; the message names the next command.
      NonFiniteError: more than `pace.max_bad_steps` steps in a row were not finite.
    """
    first = int(state.step)
    with progress(pace.num_steps, log.label, "step", initial=first) as update:
        meter, shapes = _Meter(pace, log, update), set[Any]()
        if not first and hooks.on_check is not None and pace.check_every:
            _check(0, state, meter, hooks)
        if first and _Due.after(first, pace, hooks).sample:
            _sample(first, state, meter, hooks)  # a run may have ended before they were drawn
        for step in range(first, pace.num_steps):
            if hooks.profile is not None:
                hooks.profile.before(step, state)
            batch = run.put_batch(batch_at(step))
            with _compiling(batch, meter, shapes):
                state, metrics = run.step(state, frozen, batch)
            meter.add(step, metrics)
            due = _Due.after(step + 1, pace, hooks)
            meter.fetch(leave=0 if due.needs_all_metrics else 1)
            _after_step(step + 1, state, due, meter, hooks)
    if hooks.profile is not None:
        hooks.profile.end(state)
    log.writer.flush()
    return state


@contextlib.contextmanager
def _compiling(batch: Batch, meter: _Meter, known: set[Any]) -> Iterator[None]:
    """Tells that a step compiles, where its rows have shapes that are not `known` yet.

    Those after the first are no part of the speed of the steps.
    """
    shapes = tuple((name, np.shape(x)) for name, x in sorted(batch.items()))
    if shapes in known:
        yield
        return
    first = not known
    known.add(shapes)
    label = f"the step of {meter.log.label}" + ("" if first else ", of another shape")
    with nullcontext() if first else meter.paused(), compiling(label):
        yield


def _after_step(done: int, state: TrainState, due: _Due, meter: _Meter, hooks: Hooks) -> None:
    """Does what is due, in an order in which a resumed run repeats what was not done."""
    stopping = hooks.stop.agreed() if due.ask and hooks.stop is not None else None
    if stopping:
        meter.fetch(leave=0)
    # A checkpoint amid bad steps has the weights that gave them, and pushes out good ones.
    saving = due.save and (due.last or not meter.bad)
    if due.save and not saving:
        logging.warning("%s: no checkpoint at step %d, which was not finite", meter.log.label, done)
    if due.check:  # before the checkpoint: what follows one is written on resuming
        _check(done, state, meter, hooks)
    checkpoints = hooks.checkpoints
    if checkpoints is not None and (saving or stopping):
        meter.log.writer.flush()  # the lines of its steps are there when it is
        checkpoints.save(done, state)
    # A run that goes on from before a step may have kept it: on other devices, not bit for bit.
    if due.keep and hooks.kept is not None and done not in hooks.kept.steps():
        if checkpoints is not None:
            checkpoints.wait()  # one writer at a time, with several processes
        hooks.kept.save(done, result(state))
        hooks.kept.wait()
    if stopping and hooks.stop is not None:
        if checkpoints is not None:
            checkpoints.wait()
        raise _saved(stopping, meter.log.label, done, exit_code=hooks.stop.exit_code)
    if due.sample:
        _sample(done, state, meter, hooks)


def _sample(done: int, state: TrainState, meter: _Meter, hooks: Hooks) -> None:
    """Draws the pictures of a step; a request to stop amid them saves it first."""
    if hooks.on_sample is None:
        return
    try:
        with meter.paused():
            hooks.on_sample(done, state)
    except Interrupted as interrupted:
        if hooks.checkpoints is None:
            raise
        meter.log.writer.flush()
        hooks.checkpoints.wait()
        if done not in hooks.checkpoints.steps():
            hooks.checkpoints.save(done, state)
            hooks.checkpoints.wait()
        name = hooks.stop.requested if hooks.stop is not None else "A request to stop"
        code = interrupted.exit_code
        raise _saved(name, meter.log.label, done, exit_code=code) from interrupted


def _check(done: int, state: TrainState, meter: _Meter, hooks: Hooks) -> None:
    if hooks.on_check is not None:
        with meter.paused():
            meter.write(done, hooks.on_check(state))
