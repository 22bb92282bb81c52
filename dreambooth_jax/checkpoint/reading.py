"""Reads arrays with Orbax from files that may be damaged; all processes agree on the outcome."""

import asyncio
import contextlib
import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

_PATIENCE = 20.0  # seconds for what is left of a read or a save that failed
NO_DAMAGE = (MemoryError, PermissionError, jax.errors.JaxRuntimeError)  # they accuse no file


class CheckpointError(RuntimeError):
    """A checkpoint can't be written, or the ones in the folder can't be continued from."""


class Damaged(CheckpointError):
    """One step can't be restored; the text is the reason."""


@contextlib.contextmanager
def agreement() -> Iterator[None]:
    """Refuses a step on all processes if reading it failed on one; each reads its own shards.

    Raises:
      Damaged: with this process's reason, if it has one.
    """
    damage = None
    try:
        yield
    except NO_DAMAGE:
        raise
    except Exception as error:  # whatever a damaged file provokes: codecs, JSON, TensorStore
        _check_allowed(error)
        damage = str(error) or type(error).__name__
    if jax.process_count() > 1:
        anywhere = multihost_utils.process_allgather(np.asarray(damage is not None))
        damage = damage or ("another process could not read it" if anywhere.any() else None)
    if damage:
        raise Damaged(damage)


def _check_allowed(error: BaseException | None) -> None:
    """Raises PermissionError for what TensorStore says of a file that may not be read.

    It is a ValueError there; a file of another user is no damaged one.
    """
    while error is not None:
        if "PERMISSION_DENIED" in str(error):
            file = re.search(r'local file "([^"]+)"', str(error))
            place = file[1] if file else in_short(str(error))
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), place) from error
        error = error.__cause__ or error.__context__


def _blame(error: BaseException | None, names: Sequence[str]) -> str:
    """Orbax's long error in one line: the leaf or the file that could not be read, and why."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    whole = "\n".join(texts)
    leaf = max((name for name in names if f"{name}/" in whole), key=len, default=None)
    file = re.search(r'(?:decoding|reading) local file "([^"]+)"', whole)
    what = f"leaf {leaf!r}" if leaf else "its arrays"
    return f"{what} can't be read{f' (file {file[1]})' if file else ''}: {in_short(texts[-1])}"


def in_short(text: str) -> str:
    """The first line, without TensorStore's specification; a long one keeps its two ends."""
    line = text.split("\n")[0].split(" [")[0]
    return line if len(line) <= 300 else f"{line[:100]} … {line[-200:]}"


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop that ends what it began.

    When one read or write fails Orbax closes its loop under the others, and each of these then
    raises where no caller can catch it.
    """

    def close(self) -> None:
        """Waits for the tasks that are left, and for those that they began, then closes."""
        self.set_exception_handler(lambda *_: None)  # the first failure has been raised already
        until = time.monotonic() + _PATIENCE
        while (left := asyncio.all_tasks(self)) and time.monotonic() < until:
            self.run_until_complete(asyncio.wait(left, timeout=_PATIENCE))
            for task in left:
                if task.done() and not task.cancelled():
                    task.exception()  # it was seen
        super().close()


class _Loops:
    """Counts who wants patient loops: saves of several folders may be on their way at once."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0
        self._before: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop

    def more(self) -> None:
        """From the first of these on, new event loops are patient ones."""
        with self._lock:
            if not self._count:
                self._before, asyncio.new_event_loop = asyncio.new_event_loop, _PatientLoop
            self._count += 1

    def fewer(self) -> None:
        """After the last of these they are what they were before."""
        with self._lock:
            self._count -= 1
            if not self._count:
                asyncio.new_event_loop = self._before


_LOOPS = _Loops()


@contextlib.contextmanager
def patient_loops() -> Iterator[None]:
    """Within it, new event loops are patient ones; Orbax takes none as an argument."""
    _LOOPS.more()
    try:
        yield
    finally:
        _LOOPS.fewer()


def read_arrays(
    folder: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partial: bool
) -> dict[str, jax.Array]:
    """The arrays `wanted` of one Orbax item; `partial` when it holds others as well.

    By Orbax's handler: its manager would wait for the other processes, whose reads may have failed.

    Raises:
      Damaged: the text names the leaf or the file that can't be read.
    """
    args = ocp.args.PyTreeRestore(
        dict(wanted),
        restore_args=ocp.checkpoint_utils.construct_restore_args(dict(wanted)),
        partial_restore=partial,
    )
    handler = ocp.PyTreeCheckpointHandler()
    try:
        with patient_loops():
            return handler.restore(folder, args=args)
    except NO_DAMAGE:
        raise
    except Exception as error:  # Orbax raises Exception itself, among others
        _check_allowed(error)
        raise Damaged(_blame(error, list(wanted))) from None
    finally:
        handler.close()
