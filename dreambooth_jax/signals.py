"""SIGINT and SIGTERM as a flag that a loop reads, so that it can save before it ends."""

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils


class GracefulStop:
    """Within it, the first SIGINT or SIGTERM sets `requested`; a later SIGINT interrupts at once.

        with GracefulStop() as stop:
            while step < num_steps and not stop.agreed():
                ...
        if stop.requested: save, then sys.exit(stop.exit_code)

    Outside the main thread, where Python takes no signals, it does nothing. Enter it after
    `jax.distributed.initialize`, which installs a handler of its own for SIGTERM.
    """

    def __init__(self) -> None:
        self._number = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._number:
            self._number = number
            # os.write: a handler may run in the middle of a print, which can't be entered twice.
            text = f"\n{self.requested}: saving, then stopping. Ctrl-C stops at once, unsaved.\n"
            os.write(2, text.encode())
