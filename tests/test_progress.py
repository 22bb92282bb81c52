"""Progress off a terminal, with a clock that the test sets, and the time that a bar shows."""

import io
import re
import sys
import time

import pytest
from absl import logging

from dreambooth_jax import progress as module
from dreambooth_jax.progress import compiling, in_words, progress


class Clock:
    """Stands for the module `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    time = monotonic


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    told: list[str] = []
    monkeypatch.setattr(logging, "info", lambda text, *values: told.append(text % values))
    return told


def test_plain_lines_leave_out_compilation_and_what_interrupts(
    clock: Clock, lines: list[str]
) -> None:
    with progress(300, "base", "step") as update:
        with compiling("the step of base"):
            clock.now += 40.0
        for _ in range(8):
            clock.now += 2.0
            update(1, 0.5)
        with progress(4, "grid", "image") as drawn:
            clock.now += 100.0
            drawn(4, None)
        clock.now += 2.0
        update(1, None)
    compiled, first, grid, second = lines
    assert compiled == "Compiled the step of base in 40 s."
    assert first == "base: 1 of 300 steps, loss 0.5000, 2 s each, 10 min left"
    assert grid == "grid: 4 of 4 images, 25 s each, 0 s left"
    assert second == "base: 9 of 300 steps, 2 s each, 10 min left"


def test_short_tasks_and_short_compilations_are_not_told(clock: Clock, lines: list[str]) -> None:
    with progress(4, "grid", "image") as update:
        with compiling("the sampler"):
            clock.now += 0.4
        clock.now += 3.0
        update(4, None)
    with progress(4, None, "image") as update:
        clock.now += 60.0
        update(4, None)
    assert lines == []


def test_a_resumed_count_estimates_by_what_it_did_itself(clock: Clock, lines: list[str]) -> None:
    with progress(100, "base", "step", initial=90) as update:
        clock.now += 20.0
        update(1, None)
    assert lines == ["base: 91 of 100 steps, 20 s each, 3 min left"]


def test_a_bar_begins_after_the_compilation(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    clock.now = time.time() - 20.0  # tqdm's own clock is the real one
    with progress(3, "base", "step") as update:
        with compiling("the step"):
            clock.now += 20.0
        for _ in range(3):
            update(1, 0.25)
    assert re.findall(r"3/3 \[(\d+:\d+)<", terminal.getvalue())[-1] == "00:00"
    assert "loss=0.2500" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (89, "89 s"), (150, "2 min"), (5000, "83 min"), (9000, "2.5 h")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
