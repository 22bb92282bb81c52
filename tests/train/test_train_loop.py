"""The loop around the step: what it logs, saves, survives. The network is a toy, or none at all."""

import dataclasses
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from toy_stage import Toy, batch, bits, optimizer, start

from dreambooth_jax import train
from dreambooth_jax.checkpoint import CheckpointError, Checkpoints
from dreambooth_jax.train import loop
from dreambooth_jax.tree import Flat


class Lines:
    """A writer that keeps what it is given."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.scalars: list[Flat] = []

    def write_scalars(self, step: int, scalars: Flat) -> None:
        self.steps.append(step)
        self.scalars.append(scalars)

    def flush(self) -> None:
        pass

    def column(self, name: str) -> list[float]:
        return [scalars[name] for scalars in self.scalars]


def pace(num_steps: int, **changed: int) -> train.Pace:
    never = num_steps + 1
    settings = {"log_every": 1, "checkpoint_every": never, "sample_every": 0, "max_bad_steps": 2}
    return train.Pace(num_steps=num_steps, **(settings | changed))


class StopAt:
    """A request to stop that comes while step `at` runs."""

    exit_code = 143

    def __init__(self, at: int) -> None:
        self.left = at

    def agreed(self) -> str | None:
        self.left -= 1
        return "SIGTERM" if self.left <= 0 else None


# ---- With a network: 8 devices, leaves split over two of them, averaged weights


STAGE = Toy()


@pytest.fixture(scope="module")
def compiled():
    recipe = train.Recipe(seed=0, ema_decay=0.9, accumulate=2)
    settings = optimizer("adamw", grad_clip=1.0, warmup_steps=2, schedule="cosine")
    return start(recipe, settings, stage=STAGE, mesh=(4, 2))


def fit(compiled, state, num_steps, **settings):
    run, _, frozen = compiled
    settings = {"pace": pace(num_steps), "writer": Lines()} | settings
    return train.fit(
        run, state, frozen, lambda step: batch(9, 7, seed=step), **sorted_out(settings)
    )


def sorted_out(settings):
    """Arguments of `train.fit` from names of fields of its `log` and `hooks`."""
    pace = settings.pop("pace")
    log = {name: settings.pop(name) for name in ("writer", "share_of_peak") if name in settings}
    return {"pace": pace, "log": train.Log("base", **log), "hooks": train.Hooks(**settings)}


def fresh(compiled):
    return jax.tree.map(lambda leaf: leaf.copy(), compiled[1])


@pytest.fixture(scope="module")
def straight(compiled):
    """Six steps without a break: the state, and its metrics by step."""
    lines = Lines()
    state = fit(compiled, fresh(compiled), 6, writer=lines)
    return bits(state), lines


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(compiled, straight, tmp_path):
    run, _, _ = compiled
    lines, traced = Lines(), len(STAGE.calls)
    with Checkpoints(tmp_path, config={}) as saved:
        half = fit(compiled, fresh(compiled), 3, checkpoints=saved, writer=lines)
    with Checkpoints(tmp_path, config={}) as saved:
        state, step = saved.restore(run.state)
        assert step == int(half.step) == 3
        assert bits(state) == bits(half) != straight[0]
        state = fit(compiled, state, 6, checkpoints=saved, writer=lines)
    assert saved.steps() == [3, 6]
    assert bits(state) == straight[0]
    assert lines.steps == straight[1].steps == [1, 2, 3, 4, 5, 6]
    for name in ("base/loss", "base/loss/subject", "base/loss/prior", "base/grad_norm"):
        assert lines.column(name) == straight[1].column(name)
    assert len(STAGE.calls) == traced  # the restored state ran in the program that was there


def test_a_request_to_stop_saves_and_going_on_gives_the_same(compiled, straight, tmp_path):
    run, _, _ = compiled
    settings = {"pace": pace(6, log_every=4)}
    with Checkpoints(tmp_path, config={}) as saved:
        with pytest.raises(train.Interrupted, match=r"SIGTERM.* base is saved at step 2\.") as info:
            fit(compiled, fresh(compiled), 6, checkpoints=saved, stop=StopAt(2), **settings)
        assert info.value.exit_code == 143
        assert saved.steps() == [2]  # committed before the error left the loop
        state, _ = saved.restore(run.state)
        state = fit(compiled, state, 6, checkpoints=saved, stop=StopAt(99), **settings)
    assert bits(state) == straight[0]


@pytest.mark.parametrize("at", [2, 3], ids=["saved already", "between two checkpoints"])
def test_a_request_amid_the_pictures_of_a_step_saves_it(compiled, straight, at, tmp_path):
    """On resuming they are drawn, of the same state, and the rest is the same."""
    settings = {"pace": pace(6, checkpoint_every=2, sample_every=1)}

    def asked(done, state):
        if done == at:
            raise train.Interrupted("SIGINT received: the pictures are kept", exit_code=130)

    with Checkpoints(tmp_path, config={}) as saved:
        with pytest.raises(train.Interrupted, match=rf"base is saved at step {at}\.") as info:
            fit(compiled, fresh(compiled), 6, checkpoints=saved, on_sample=asked, **settings)
        assert info.value.exit_code == 130
    drawn = []
    with Checkpoints(tmp_path, config={}) as saved:
        state, step = saved.restore(compiled[0].state)
        assert step == at
        settings["on_sample"] = lambda done, state: drawn.append(done)
        state = fit(compiled, state, 6, checkpoints=saved, **settings)
    assert drawn == [*range(at, 7)]
    assert bits(state) == straight[0]


def test_a_stage_that_is_done_takes_no_step(compiled):
    state = dataclasses.replace(fresh(compiled), step=np.int32(6))
    lines = Lines()
    assert fit(compiled, state, 6, writer=lines) is state
    assert lines.steps == []


# ---- Without: a step that notes when it was dispatched and when its metrics were fetched


class Fetched(float):
    """A number of a step, still on the device: looking at it is an event."""

    log: list[str]
    step: int

    def __float__(self) -> float:
        self.log.append(f"fetch {self.step}")
        return float.__add__(self, 0.0)


def counting(bad: tuple[int, ...] = ()):
    """A run whose loss at step n is n², nan at the `bad` ones; and what it did in which order."""
    log: list[str] = []
    row = {"bad": 0}

    def step(state, frozen, given):
        n = state.step
        log.append(f"step {n}")
        row["bad"] = row["bad"] + 1 if n in bad else 0
        loss = Fetched(np.nan if n in bad else n**2)
        loss.log, loss.step = log, n
        metrics = {"loss": loss, "grad_norm": 1.0, "bad_steps": row["bad"]}
        return SimpleNamespace(step=n + 1), metrics

    return SimpleNamespace(step=step, put_batch=lambda given: given), log


def count(run, num_steps, *, first=0, **settings):
    lines = Lines()
    state = SimpleNamespace(step=first)
    settings = {"pace": pace(num_steps), "writer": lines} | settings
    train.fit(run, state, {}, lambda step: {"step": step}, **sorted_out(settings))
    return lines


def test_metrics_are_fetched_one_step_late_and_none_is_lost():
    run, log = counting()
    lines = count(run, 4)
    expected = "step 0, step 1, fetch 0, step 2, fetch 1, step 3, fetch 2, fetch 3"
    assert ", ".join(log) == expected
    assert lines.steps == [1, 2, 3, 4]
    assert lines.column("base/loss") == [0, 1, 4, 9]


def test_a_line_is_the_mean_of_its_steps_and_the_last_may_be_shorter():
    lines = count(counting()[0], 8, first=1, pace=pace(8, log_every=3))
    assert lines.steps == [3, 6, 8]
    assert lines.column("base/loss") == [(1 + 4) / 2, (9 + 16 + 25) / 3, (36 + 49) / 2]


def test_skipped_steps_are_counted_and_left_out_of_the_mean():
    lines = count(counting(bad=(1, 3, 4))[0], 6, pace=pace(6, log_every=3))
    assert lines.column("base/loss") == [(0 + 4) / 2, 25]
    assert lines.column("base/skipped_steps") == [1, 2]


def test_too_many_bad_steps_in_a_row_stop_the_run():
    run, log = counting(bad=(4, 5, 6))
    with pytest.raises(train.NonFiniteError) as info:
        count(run, 20, pace=pace(20, max_bad_steps=2))
    message = str(info.value)
    for words in ("base: 3 steps in a row, up to step 6", "loss nan", "optim.learning_rate"):
        assert words in message
    assert log.count("step 8") == 0  # one step more may be on its way


def test_a_good_step_resets_the_count():
    run, log = counting(bad=(1, 2, 4, 5, 7, 8))
    count(run, 10, pace=pace(10, max_bad_steps=2))
    assert "step 9" in log


def test_samples_and_checkpoints_come_at_their_steps():
    seen = {"sample": [], "save": []}
    checkpoints = SimpleNamespace(
        save=lambda done, state: seen["save"].append((done, state.step)), wait=lambda: None
    )

    def on_sample(done, state):
        seen["sample"].append((done, state.step))

    settings = {"checkpoints": checkpoints, "on_sample": on_sample}
    both = pace(7, checkpoint_every=3, sample_every=2)
    count(counting()[0], 7, pace=both, **settings)
    assert seen == {"sample": [(2, 2), (4, 4), (6, 6)], "save": [(3, 3), (6, 6), (7, 7)]}
    # A run that goes on from a step with samples may have been killed before it had drawn them.
    seen["sample"].clear()
    count(counting()[0], 7, first=4, pace=both, **settings)
    assert seen["sample"] == [(4, 4), (6, 6)]


def test_nothing_is_saved_after_a_step_that_stops_the_run():
    saved = []
    checkpoints = SimpleNamespace(save=lambda done, state: saved.append(done), wait=lambda: None)
    with pytest.raises(train.NonFiniteError):
        count(
            counting(bad=(1, 2))[0],
            9,
            pace=pace(9, checkpoint_every=1, max_bad_steps=1),
            checkpoints=checkpoints,
        )
    assert saved == [1]  # step 2 was bad already: its checkpoint would push out a good one


def test_drawing_samples_is_no_part_of_the_speed(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(train.loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    run, _ = counting()
    step = run.step

    def slow(state, frozen, given):
        clock.now += 0.5
        return step(state, frozen, given)

    def on_sample(done, state):
        clock.now += 100

    run.step = slow
    for first, expected in (
        (0, [2, 2]),
        (4, [2]),
    ):  # the second draws samples before its first step
        rates = count(
            run, 8, first=first, pace=pace(8, log_every=4, sample_every=2), on_sample=on_sample
        )
        assert rates.column("base/steps_per_second") == expected


def test_compiling_a_step_of_another_shape_is_no_part_of_the_speed(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(train.loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    run, _ = counting()
    step, seen = run.step, {(1, 4, 4, 3)}

    def slow(state, frozen, given):
        clock.now += 0.5 if given["mean"].shape in seen else 100
        seen.add(given["mean"].shape)
        return step(state, frozen, given)

    run.step = slow
    sizes = [(4, 4), (4, 4), (2, 8), (4, 4), (2, 8), (8, 2), (2, 8), (4, 4)]
    lines = Lines()
    settings = sorted_out({"pace": pace(8, log_every=4), "writer": lines})
    state = SimpleNamespace(step=0)
    train.fit(run, state, {}, lambda step: {"mean": np.zeros((1, *sizes[step], 3))}, **settings)
    # Of 8 steps 6 took half a second, and 2 compiled.
    seconds = [4 / rate for rate in lines.column("base/steps_per_second")]
    assert sum(seconds) == pytest.approx(6 * 0.5)


def test_weights_are_kept_beside_the_checkpoints_and_never_removed(compiled, straight, tmp_path):
    how = {"pace": pace(6, checkpoint_every=1, keep_every=2)}
    for _ in range(2):  # again, as after a kill: what is missing is filled in
        with (
            Checkpoints(tmp_path / "full", config={}, max_to_keep=1) as full,
            Checkpoints(tmp_path / "kept", config={}, max_to_keep=None) as kept,
        ):
            fit(compiled, fresh(compiled), 6, checkpoints=full, kept=kept, **how)
            full.wait()
            assert full.steps() == [6]
            assert kept.steps() == [2, 4, 6]
            like = train.result(jax.eval_shape(lambda x: x, compiled[1]))
            found, step = kept.restore(like, step=6)
        assert (step, found.keys()) == (6, {"ema"})
        assert {(f".ema{name}", leaf) for name, leaf in bits(found["ema"])} < {*straight[0]}
        shutil.rmtree(tmp_path / "full")
        shutil.rmtree(tmp_path / "kept" / "2")
    with Checkpoints(tmp_path / "kept", config={}, max_to_keep=None) as kept:
        other = jax.tree.map(lambda x: x + 1, train.result(compiled[1]))
        with pytest.raises(CheckpointError, match=r"step 4 is already in .* with other values"):
            kept.save(4, other)
        # A run that goes on from before a step that it kept, on devices that round otherwise.
        state = fresh(compiled)
        moved = jax.tree.map(lambda x: x * 1.0001, state.trainable)
        fit(compiled, dataclasses.replace(state, trainable=moved), 6, kept=kept, **how)
        assert kept.steps() == [2, 4, 6]


def test_a_known_device_gets_its_share_of_the_peak_beside_the_speed():
    run, _ = counting()
    lines = count(run, 4, share_of_peak=0.25)
    for line in lines.scalars:
        assert line["base/mfu"] == pytest.approx(0.25 * line["base/steps_per_second"])
        assert line["base/seconds_per_step"] == pytest.approx(1 / line["base/steps_per_second"])
    run, _ = counting()
    assert all("base/mfu" not in line for line in count(run, 4).scalars)


@pytest.mark.parametrize(("at", "traced"), [(2, [2, 3, 4]), (6, [6, 7]), (99, []), (None, [])])
def test_a_trace_holds_the_steps_asked_for_and_ends_with_the_run(at, traced, monkeypatch, tmp_path):
    run, log = counting()
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: log.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: log.append("stop"))
    count(run, 8, profile=train.Profile(at, 3, tmp_path))
    events = [event for event in log if not event.startswith("fetch")]
    if traced:
        first = events.index(f"start {tmp_path}")
        assert events[first + 1 : events.index("stop")] == [f"step {n}" for n in traced]
    assert len([event for event in events if event.startswith("step")]) == 8
    assert events.count("stop") == bool(traced)


def test_a_loss_far_above_that_of_the_first_steps_is_told_once(caplog):
    alarm = loop.Alarm("base")
    for step, value in enumerate([0.4, 0.3, 0.5, float("nan"), 7.9, 9.1, 900.0]):
        alarm(step, value)
    (line,) = [text for text in caplog.messages if "exploding" in text]
    assert "loss of step 6 is 9.1" in line and "another --workdir" in line
