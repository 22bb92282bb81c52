"""SIGINT, SIGTERM and SIGHUP as a flag that a loop reads, so that it can save before it ends."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

_UNHEARD = 1.0  # seconds after which a main thread that took no second SIGINT is inside a program


def _plain() -> str:
    return "saves after this step, then stops"


class GracefulStop:
    """Within it, the first SIGINT, SIGTERM or SIGHUP sets `requested`; a later SIGINT interrupts.

        with GracefulStop() as stop:
            while step < num_steps and not stop.agreed():
                ...
        if stop.requested: save, then sys.exit(stop.exit_code)

    A thread answers on stderr at once, also while the main thread is inside a compilation, where
    Python runs no handler. A second SIGINT there ends the process.

    Outside the main thread, where Python takes no signals, it does nothing. Enter it after
    `jax.distributed.initialize`, which installs a handler of its own for SIGTERM.
    """

    def __init__(
        self,
        *,
        answer: Callable[[], str] = _plain,
        at_once: Callable[[], None] = lambda: None,
    ) -> None:
        """answer: says what is done until the end; at_once: is called before a process is ended
        that does not come to its second SIGINT.
        """
        self._number = 0
        self._handled = 0  # signals that the main thread took
        self._answer, self._at_once = answer, at_once
        self._answered = threading.Lock()
        self._before: dict[signal.Signals, Any] = {}
        self._ends: tuple[socket.socket, socket.socket] | None = None
        self._fd_before = -1

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._listen()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup: the run is to outlive its terminal
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._ends is not None:
            signal.set_wakeup_fd(self._fd_before)
            for end in self._ends:  # the writing end first: the thread reads to its end
                end.close()
            self._ends = None

    @property
    def requested(self) -> str | None:
        """The name of the first signal, "SIGINT" or "SIGTERM"; None while there was none."""
        return signal.Signals(self._number).name if self._number else None

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal, as shells and schedulers expect; 0 without one."""
        return 128 + self._number if self._number else 0

    def agreed(self) -> str | None:
        """`requested` on any process: the same answer on all, so that all save the same step.

        With several processes it is a collective that waits for the devices: call it at the same
        steps on all of them, and not at each step.
        """
        if jax.process_count() > 1:
            numbers = multihost_utils.process_allgather(np.asarray(self._number, np.int32))
            self._number = int(numbers.max())
        return self.requested

    def _listen(self) -> None:
        """Starts the thread that answers; Python writes each signal's number to its socket."""
        written, read = self._ends = socket.socketpair()
        written.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        listener = threading.Thread(target=self._hear, args=(read.dup(),), name="signals")
        listener.daemon = True
        listener.start()

    def _hear(self, read: socket.socket) -> None:
        """Answers the first signal, and ends a process that cannot take a second SIGINT."""
        heard = 0
        with read:
            while numbers := read.recv(64):
                for number in numbers:
                    if number not in self._before:
                        continue
                    heard += 1
                    self._take(number)
                    if heard > 1 and number == signal.SIGINT:
                        time.sleep(_UNHEARD)
                        if self._handled < heard and self._ends is not None:
                            self._at_once()
                            os._exit(self.exit_code)

    def _take(self, number: int) -> None:
        """Sets the flag and answers, the first time."""
        if not self._answered.acquire(blocking=False):
            return
        self._number = self._number or number
        # os.write: a handler may run in the middle of a print, which can't be entered twice.
        text = f"\n{self.requested}: {self._answer()}. Ctrl-C stops at once, unsaved.\n"
        with contextlib.suppress(OSError):  # a terminal that was closed
            os.write(2, text.encode())

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._handled += 1
        if self._handled > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._number = self._number or number
        self._take(number)
