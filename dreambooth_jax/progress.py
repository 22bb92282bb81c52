"""Progress of a long task: a bar on a terminal, a plain line now and then elsewhere.

Compilation is named and is no part of the bar's speed. An observer, `status.Recorder` in a run, is
told of both.
"""

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from absl import logging
from tqdm import tqdm

from dreambooth_jax import turns

SECONDS = 15.0  # between two plain lines
_WORTH_A_LINE = 1.0  # seconds of a compilation

Update = Callable[[int, float | None], None]


class Observer(Protocol):
    """Is told of counts and compilations, on the thread that does them."""

    def counts(self, label: str, unit: str, total: int, done: int) -> AbstractContextManager[None]:
        """Entered while units are counted."""

    def advance(self, count: int, loss: float | None) -> None:
        """Takes the units just done."""

    def compiles(self, name: str) -> AbstractContextManager[None]:
        """Entered while a program compiles."""


_observer: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "observer", default=None
)
_shown: contextvars.ContextVar["_Shown | None"] = contextvars.ContextVar("shown", default=None)


@contextlib.contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Tells `observer` of the progress inside the block."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


@contextlib.contextmanager
def progress(total: int, label: str | None, unit: str, *, initial: int = 0) -> Iterator[Update]:
    """Yields a function that is called with the number of units just done, and their loss.

    Shown under `label`, by the first process alone; None shows nothing. Off a terminal the log gets
    one line every 15 seconds, `base: 120 of 300 steps, loss 0.0312, 0.4 s each, 1 min left`, and
    none for shorter tasks.
    """
    if label is None:
        yield lambda count, loss: None
        return
    shown = None
    if turns.is_first():
        kind = _Bar if sys.stderr.isatty() else _Lines
        shown = kind(total, label, unit, initial)
    observer = _observer.get()

    def advance(count: int, loss: float | None) -> None:
        if shown is not None:
            shown.advance(count, loss)
        if observer is not None:
            observer.advance(count, loss)

    outer, token = _shown.get(), _shown.set(shown)
    begin = time.monotonic()
    try:
        with observer.counts(label, unit, total, initial) if observer else contextlib.nullcontext():
            yield advance
    finally:
        _shown.reset(token)
        if shown is not None:
            shown.close()
        if outer is not None:
            outer.pause(time.monotonic() - begin)


@contextlib.contextmanager
def compiling(name: str) -> Iterator[None]:
    """Names a compilation, which its block does, and leaves its time out of the count around it."""
    observer, shown = _observer.get(), _shown.get()
    begin = time.monotonic()
    with observer.compiles(name) if observer else contextlib.nullcontext():
        yield
    took = time.monotonic() - begin
    if shown is not None:
        shown.pause(took)
    if took > _WORTH_A_LINE and turns.is_first():
        logging.info("Compiled %s in %.0f s.", name, took)


class _Shown(Protocol):
    def advance(self, count: int, loss: float | None) -> None: ...

    def pause(self, seconds: float) -> None: ...

    def close(self) -> None: ...


class _Bar:
    """A bar of the terminal; it begins with the first unit or after a compilation."""

    def __init__(self, total: int, label: str, unit: str, done: int) -> None:
        self._settings = {"total": total, "desc": label, "unit": unit, "initial": done}
        self._begin = time.time()
        self._bar: tqdm[None] | None = None

    def advance(self, count: int, loss: float | None) -> None:
        if self._bar is None:
            self._bar = tqdm(**self._settings, mininterval=0.5, leave=True)
            self._bar.start_t = self._bar.last_print_t = self._begin
        self._bar.update(count)
        if loss is not None:
            self._bar.set_postfix_str(f"loss={loss:.4f}", refresh=False)

    def pause(self, seconds: float) -> None:
        self._begin += seconds
        if self._bar is not None:
            self._bar.start_t += seconds
            self._bar.last_print_t += seconds

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Lines:
    """The same as lines of the log."""

    def __init__(self, total: int, label: str, unit: str, done: int) -> None:
        self._total, self._label, self._unit, self._done = total, label, unit, done
        self._first = done
        self._begin = self._told = time.monotonic()

    def advance(self, count: int, loss: float | None) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told < SECONDS:
            return
        self._told = now
        pace = (now - self._begin) / max(self._done - self._first, 1)
        logging.info(
            "%s: %d of %d %ss%s, %.2g s each, %s left",
            *(self._label, self._done, self._total, self._unit),
            "" if loss is None else f", loss {loss:.4f}",
            pace,
            in_words(pace * (self._total - self._done)),
        )

    def pause(self, seconds: float) -> None:
        self._begin += seconds

    def close(self) -> None:
        """Does nothing: the next line of the log tells what follows."""


def in_words(seconds: float) -> str:
    """Returns a time as people say it: "40 s", "4 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
