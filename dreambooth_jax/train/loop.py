"""The train loop: steps dispatched ahead, metrics, checkpoints, grids, signals."""

import dataclasses
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dreambooth_jax.train.profile import Profile
from dreambooth_jax.train.step import Batch, Compiled, TrainState


class NonFiniteError(RuntimeError):
    """The run was stopped after too many non-finite steps in a row."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long a stage trains, and how often the loop does something else, in optimizer steps."""

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


def leave_if_asked(stop: Any, kept: str) -> None:
    """Between the parts of a run; with several processes all call it together.

    Raises:
      Interrupted: a signal came; `kept` tells what there is to go on from.
    """
    if stop is not None and (name := stop.agreed()):
        raise Interrupted(
            f"{name} received: {kept}. Run the same command to go on.", exit_code=stop.exit_code
        )


def result(state: TrainState) -> dict[str, Any]:
    """The part of the state that a run hands over: averaged weights, where there are some."""
    return {"trainable": state.trainable} if state.ema is None else {"ema": state.ema}


def fit(
    run: Compiled,
    state: TrainState,
    frozen: Any,
    batch_at: Callable[[int], Batch],
    *,
    pace: Pace,
    label: str,
    writer: Any,
    checkpoints: Any = None,
    kept: Any = None,
    stop: Any = None,
    on_sample: Callable[[int, TrainState], None] | None = None,
    on_check: Callable[[TrainState], Mapping[str, float]] | None = None,
    profile: Profile | None = None,
    share_of_peak: float | None = None,
) -> TrainState:
    """Trains from `state.step` to `pace.num_steps`.

    share_of_peak: what part of all devices' arithmetic one step per second would use; with it the
    metrics have `mfu`, the part that is used.

    Metrics of step n are fetched after step n + 1 was dispatched, so the device never waits for the
    host. `checkpoints` get all of the state, `kept` the trained leaves alone (`result`). What
    `on_check` says before the first step, every `pace.check_every` steps and after the last goes
    to the metrics. A request to stop (`signals.GracefulStop`) is honoured after the step at hand: a
    checkpoint is saved first.

    Raises:
      Interrupted: a signal came; the message says how to go on.
      NonFiniteError: more than `pace.max_bad_steps` steps in a row were not finite.
    """
    first = int(state.step)
    pending: list[tuple[int, dict[str, jax.Array]]] = []
    seen: list[dict[str, float]] = []
    since = time.monotonic()
    bar = tqdm(
        total=pace.num_steps,
        initial=first,
        desc=label,
        unit="step",
        disable=jax.process_index() != 0,
        mininterval=0.5 if sys.stderr.isatty() else 15,
    )

    def take(step: int, metrics: dict[str, jax.Array]) -> None:
        nonlocal since
        values = {name: float(value) for name, value in metrics.items()}
        if values["bad_steps"] > pace.max_bad_steps:
            raise NonFiniteError(
                f"{label}: {int(values['bad_steps'])} steps in a row, up to step {step}, had a "
                f"loss or gradient that is not finite (loss {values['loss']}, grad_norm "
                f"{values['grad_norm']}). No weight was changed by them. Lower "
                "optim.learning_rate, or set dtype='float32'; checkpoints hold the last good state."
            )
        seen.append(values)
        bar.update(1)
        bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
        if (step + 1) % pace.log_every == 0 or step + 1 == pace.num_steps:
            good = [v for v in seen if not v["bad_steps"]] or seen
            names = [name for name in good[0] if name != "bad_steps"]
            mean = {f"{label}/{name}": float(np.mean([v[name] for v in good])) for name in names}
            mean[f"{label}/skipped_steps"] = float(sum(v["bad_steps"] > 0 for v in seen))
            pace_now = len(seen) / max(time.monotonic() - since, 1e-9)
            mean[f"{label}/steps_per_second"] = pace_now
            mean[f"{label}/seconds_per_step"] = 1 / pace_now
            if share_of_peak is not None:
                mean[f"{label}/mfu"] = share_of_peak * pace_now
            writer.write_scalars(step + 1, mean)
            since = time.monotonic()
            seen.clear()

    def sample(step: int) -> None:
        nonlocal since
        assert on_sample is not None
        started = time.monotonic()
        on_sample(step, state)
        since += time.monotonic() - started  # no part of the speed of the steps

    def check(step: int) -> None:
        nonlocal since
        assert on_check is not None
        started = time.monotonic()
        found = on_check(state)
        writer.write_scalars(step, {f"{label}/{name}": value for name, value in found.items()})
        since += time.monotonic() - started

    sampled = on_sample is not None and pace.sample_every > 0
    checked = on_check is not None and pace.check_every > 0
    with bar:
        if checked and not first:
            check(0)
        if sampled and first and first % pace.sample_every == 0:
            sample(first)  # again: the run may have been killed before they were drawn
        for step in range(first, pace.num_steps):
            if profile is not None:
                profile.before(step, state)
            state, metrics = run.step(state, frozen, run.put_batch(batch_at(step)))
            pending.append((step, metrics))
            done = step + 1
            last = done == pace.num_steps
            saving = checkpoints is not None and (last or done % pace.checkpoint_every == 0)
            sampling = sampled and done % pace.sample_every == 0
            keeping = kept is not None and pace.keep_every > 0 and done % pace.keep_every == 0
            # With several processes the question is a collective: it is asked now and then, and
            # not while a step is under way (on CPU the two would wait for each other for ever).
            together = jax.process_count() > 1 and (saving or done % pace.log_every == 0)
            checking = checked and (last or done % pace.check_every == 0)
            whole = saving or keeping or sampling or checking or together or last
            while len(pending) > (0 if whole else 1):
                take(*pending.pop(0))
            asking = stop is not None and (together or jax.process_count() == 1)
            stopping = stop.agreed() if asking else None
            while stopping and pending:
                take(*pending.pop(0))
            if checking:  # before the checkpoint: what follows one is written on resuming
                check(done)
            if saving or (stopping and checkpoints is not None):
                writer.flush()  # the lines of its steps are there when it is
                checkpoints.save(done, state)
            if keeping:
                if checkpoints is not None:
                    checkpoints.wait()  # one writer at a time, with several processes
                kept.save(done, result(state))
                kept.wait()
            if stopping:
                if checkpoints is not None:
                    checkpoints.wait()
                raise Interrupted(
                    f"{stopping} received: {label} is saved at step {done}. "
                    "Run the same command to go on.",
                    exit_code=stop.exit_code,
                )
            if sampling:
                sample(done)
    if profile is not None:
        profile.end(state)
    writer.flush()
    return state
