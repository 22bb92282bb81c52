"""State of a run in its folder: `status.json`, written by the run and read by any other program.

The file is whole at any moment and at most two seconds behind (ten in a bucket). It holds the
fields of `Status` and `"version": 1`. A process that was killed leaves the state it had:
`read` calls that "lost" by the process and the age of the file. Nothing here imports jax.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dreambooth_jax import files, processes, untrusted

NAME = "status.json"
VERSION = 1
AT_WORK = ("starting", "compiling", "drawing", "training", "exporting", "evaluating")
OVER = ("finished", "stopped", "failed")
LOST = "lost"  # never written: what `read` calls a run whose process is gone
# Seconds: between two writings, between two signs of life, without one until a run is lost.
EVERY, EVERY_REMOTE = 2.0, 10.0
ALIVE, ALIVE_REMOTE = 10.0, 60.0
SILENT = 180.0
# Answers to a request to stop, by the state in which it comes.
ANSWERS = {
    "starting": "stops when the model is loaded; nothing is lost",
    "compiling": "stops after this compilation; nothing is lost",
    "drawing": "stops after this batch of pictures; those drawn are kept",
    "training": "saves after this step, then stops",
    "exporting": "stops when this part of the export is written",
    "evaluating": "stops after this evaluation; the training is saved",
}
_LOOKED_AT = 32  # steps whose mean is the speed


@dataclasses.dataclass(frozen=True)
class Status:
    """State of a run at one moment.

    state: one of `AT_WORK`, `OVER` or `LOST`. part, part_number, parts: of the plan, counted from
    1; 0 before the first. step, steps: done and wanted in this part, of training or of images.
    seconds_per_step, seconds_left: of this part, without compilation and pictures on the way.
    started, updated: seconds since 1970.
    """

    state: str
    mode: str
    stage: str | None
    part: str
    part_number: int
    parts: int
    step: int | None
    steps: int | None
    seconds_per_step: float | None
    seconds_left: float | None
    started: float
    updated: float
    pid: int
    host: str
    message: str
    loss: float | None

    @property
    def is_over(self) -> bool:
        """True where no process works on the run any more."""
        return self.state not in AT_WORK


_TEXTS = ("state", "mode", "part", "host", "message")
_COUNTS = ("part_number", "parts", "pid")


def name_of(mode: str) -> str:
    """File of a mode: `status.json` of training; others, which work in a run's folder, have their
    own, so that a run's state stays: `status_sample.json`.
    """
    return NAME if mode == "train" else f"status_{mode}.json"


def read(folder: str | os.PathLike[str], *, mode: str = "train") -> Status | None:
    """Returns the state of the run in `folder`, "lost" where its process is gone; None without one.

    Raises:
      FileError: the file is damaged or of a later version.
    """
    file = files.at(folder) / name_of(mode)
    if not file.is_file():
        return None
    content = untrusted.json_object(file)
    with untrusted.values(file):
        found = _checked(content)
    if found.is_over or _lives(found):
        return found
    ended = f"the process {found.pid} on {found.host} ended without a word"
    return dataclasses.replace(found, state=LOST, message=f"{ended}; last: {found.message}")


def _checked(content: dict[str, Any]) -> Status:
    """Raises ValueError or TypeError where a field is not what `Status` says."""
    if content["version"] != VERSION:
        raise ValueError(f"version {content['version']!r}, expected {VERSION}")
    found = Status(**{field.name: content[field.name] for field in dataclasses.fields(Status)})
    wrong = [name for name in _TEXTS if not isinstance(getattr(found, name), str)]
    wrong += [name for name in _COUNTS if type(getattr(found, name)) is not int]
    for name in ("step", "steps"):
        wrong += [name] if type(getattr(found, name)) not in (int, type(None)) else []
    for name in ("started", "updated", "seconds_per_step", "seconds_left", "loss"):
        value = getattr(found, name)
        optional = value is None and name not in ("started", "updated")
        number = isinstance(value, int | float) and math.isfinite(value)
        wrong += [] if optional or number else [name]
    wrong += ["stage"] if found.stage is not None and not isinstance(found.stage, str) else []
    wrong += ["state"] if found.state not in (*AT_WORK, *OVER) else []
    if wrong:
        raise ValueError(f"{', '.join(wrong)} is not of its kind")
    return found


def _lives(found: Status) -> bool:
    """Returns True where the process of an unfinished run is there, or was a short time ago."""
    if time.time() - found.updated > SILENT:
        return False
    return found.host != socket.gethostname() or processes.lives(found.pid)


@dataclasses.dataclass
class _Count:
    """A count on its way: of steps or images, with the time that its units took."""

    label: str
    unit: str
    total: int
    done: int
    paused: float = 0.0  # seconds of compilation and of counts inside this one
    marks: deque[tuple[float, int]] = dataclasses.field(
        default_factory=lambda: deque(maxlen=_LOOKED_AT)
    )

    def mark(self) -> None:
        self.marks.append((time.monotonic() - self.paused, self.done))

    @property
    def seconds_per_unit(self) -> float | None:
        (begin, first), (end, last) = self.marks[0], self.marks[-1]
        return (end - begin) / (last - first) if last > first else None


@dataclasses.dataclass(frozen=True)
class Measured:
    """Time of a finished part: all its seconds, those of compilation, and its units."""

    seconds: float
    compiling: float
    units: int


class Recorder:
    """Writes the state of this process's run, until the block that it is entered for ends.

        with Recorder(folder, mode="train", parts=2) as recorder:
            with recorder.part("class images", state="drawing"):
                ...

    It is an observer of `progress`. A block that raises leaves "stopped", where the error has an
    `exit_code` (`train.Interrupted`) or is a KeyboardInterrupt, or else "failed", with its message.
    A thread writes, so that a run never waits for its disk; what it cannot write is left out.
    """

    def __init__(self, folder: Path, *, mode: str, parts: int = 0, writes: bool = True) -> None:
        """writes: False for all processes of a run but the first."""
        self.file, self._writes = folder / name_of(mode), writes
        self.measured: dict[str, Measured] = {}
        self._mode, self._parts, self._started = mode, parts, time.time()
        self._part, self._number, self._state, self._message = "", 0, "starting", ""
        self._stage: str | None = None
        self._loss: float | None = None
        self._counts: list[_Count] = []
        self._compiling: list[str] = []
        self._compiled = 0.0  # seconds in this part
        self._units = 0  # in this part
        self._guard = threading.RLock()
        self._changed, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="status", daemon=True)

    def __enter__(self) -> Self:
        if self._writes:
            self._changed.set()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.finish()
        else:
            self.fail(error)
        if self._writes:
            self._over.set()
            self._changed.set()
            self._thread.join()
            self._write()

    def finish(self) -> None:
        """The state from now on is "finished"."""
        with self._guard:
            self._counts, self._compiling, self._stage = [], [], None
            self._state = self._message = "finished"

    def fail(self, error: BaseException) -> None:
        """The state from now on is "stopped" or "failed", by the kind of `error`."""
        with self._guard:
            self._counts, self._compiling = [], []
            asked = hasattr(error, "exit_code") or isinstance(error, KeyboardInterrupt)
            self._state = "stopped" if asked else "failed"
            self._message = str(error).strip() or untrusted.in_short(error)

    @contextlib.contextmanager
    def part(self, name: str, *, state: str, stage: str | None = None) -> Iterator[None]:
        """The next part of the plan, until the end of its block."""
        begin = time.monotonic()
        with self._guard:
            self._part, self._state, self._stage = name, state, stage
            self._number, self._message, self._loss = self._number + 1, "", None
            self._compiled, self._units = 0.0, 0
            self._parts = max(self._parts, self._number)
        self._changed.set()
        yield
        seconds = time.monotonic() - begin
        self.measured[name] = Measured(seconds, self._compiled, self._units)

    def say(self, message: str) -> None:
        """Takes what a reader is to know now, in place of the counts."""
        with self._guard:
            self._message = message
        self._changed.set()

    def answer(self) -> str:
        """Returns the answer to a request to stop, and shows it to readers as well."""
        text = ANSWERS[self.snapshot().state]
        self.say(text)
        return text

    def left_at_once(self) -> None:
        """Leaves "stopped" for a process that ends without the end of its block."""
        with self._guard:
            self._state, self._counts, self._compiling = "stopped", [], []
            self._message = "stopped at once; what was not saved is lost"
        self._write()

    @contextlib.contextmanager
    def counts(self, label: str, unit: str, total: int, done: int) -> Iterator[None]:
        """Observes a count of `progress`; one inside another interrupts it."""
        begin = time.monotonic()
        count = _Count(label, unit, total, done)
        with self._guard:
            count.mark()
            self._counts.append(count)
        self._changed.set()
        try:
            yield
        finally:
            with self._guard:
                self._counts = [each for each in self._counts if each is not count]
                for each in self._counts:
                    each.paused += time.monotonic() - begin - count.paused  # those it has
            self._changed.set()

    def advance(self, count: int, loss: float | None) -> None:
        """Observes `count` units more of the innermost count."""
        with self._guard:
            inner = self._counts[-1]
            inner.done += count
            inner.mark()
            if len(self._counts) == 1:
                self._units += count
            if loss is not None and math.isfinite(loss):
                self._loss = loss
        self._changed.set()

    @contextlib.contextmanager
    def compiles(self, name: str) -> Iterator[None]:
        """Observes a compilation; its time is none of the steps'."""
        begin = time.monotonic()
        with self._guard:
            self._compiling.append(name)
        self._changed.set()
        try:
            yield
        finally:
            with self._guard:
                self._compiling = self._compiling[:-1]
                took = time.monotonic() - begin
                self._compiled += took
                for each in self._counts:
                    each.paused += took
            self._changed.set()

    def snapshot(self) -> Status:
        """The state at this moment."""
        with self._guard:
            outer = self._counts[0] if self._counts else None
            state, pace = self._state, outer.seconds_per_unit if outer else None
            if self._compiling:
                state = "compiling"
            elif len(self._counts) > 1 and state == "training":
                state = "drawing"
            left = None
            if outer is not None and pace is not None:
                left = round(pace * max(outer.total - outer.done, 0), 1)
            return Status(
                state=state,
                mode=self._mode,
                stage=self._stage,
                part=self._part,
                part_number=self._number,
                parts=self._parts,
                step=outer.done if outer else None,
                steps=outer.total if outer else None,
                seconds_per_step=None if pace is None else round(pace, 4),
                seconds_left=left,
                started=round(self._started, 3),
                updated=round(time.time(), 3),
                pid=os.getpid(),
                host=socket.gethostname(),
                message=self._message or self._told(),
                loss=self._loss,
            )

    def _told(self) -> str:
        """Returns one line of what is being done."""
        if self._compiling:
            return f"compiling {self._compiling[-1]}"
        if self._counts:
            inner = self._counts[-1]
            return f"{inner.label}: {inner.done} of {inner.total} {inner.unit}s"
        return self._part or self._state

    def _write_on(self) -> None:
        remote = files.is_remote(self.file)
        every, alive = (EVERY_REMOTE, ALIVE_REMOTE) if remote else (EVERY, ALIVE)
        while not self._over.is_set():
            self._changed.wait(alive)
            self._changed.clear()
            if not self._over.is_set():
                self._write()
            self._over.wait(every)

    def _write(self) -> None:
        content = {"version": VERSION, **dataclasses.asdict(self.snapshot())}
        try:
            files.write_text(self.file, json.dumps(content, ensure_ascii=False) + "\n")
        except Exception as error:  # the run itself will meet what is wrong, and tell it
            logging.getLogger("absl").debug("%s: %s", self.file, error)
