"""Report of a run that is on its way: written anew at every grid, with the run's state."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator

from absl import logging

from dreambooth_jax import report, status, untrusted
from dreambooth_jax.experiment.results.report import Told, written


def told(found: status.Status) -> report.State:
    """Returns what the page says of a run's state."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.updated))
    if not found.is_over:
        where = found.part or "starting"
        if found.step is not None and found.stage:
            where += f", step {found.step} of {found.steps}"
        return report.State("running", f"Running: {where}; this page is of {at}.", found.updated)
    name = found.state.capitalize()
    line = f"{name} at {at}." if found.state == "finished" else f"{name} at {at}: {found.message}"
    return report.State(found.state, line, found.updated)


class Page:
    """The page of a run on its way; a thread writes it, so that no step waits."""

    def __init__(self, write: Callable[[], object]) -> None:
        self._write = write
        self._asked, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="report", daemon=True)
        self._thread.start()

    def update(self) -> None:
        """Asks for the page anew; where one is being written, another one follows."""
        self._asked.set()

    def end(self) -> None:
        """Returns when no page is being written any more; a second call does nothing."""
        self._over.set()
        self._asked.set()
        self._thread.join()

    def _write_on(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._over.is_set():
                return
            try:
                self._write()
            except Exception as error:  # a page on the way is no reason to end a run
                logging.warning("The report on the way: %s", untrusted.in_short(error))


@contextlib.contextmanager
def followed(shown: Told, recorder: status.Recorder) -> Iterator[Page]:
    """Gives the page of a run until its block ends; only the first process writes it.

    An error leaves "stopped" or "failed" in the page, and its message.
    """

    def write() -> None:
        if shown.workdir.writes:
            written(dataclasses.replace(shown), told(recorder.snapshot()))

    page = Page(write)
    page.update()
    try:
        yield page
    except BaseException as error:
        page.end()
        recorder.fail(error)
        file = shown.workdir.report
        with contextlib.suppress(OSError):  # the disk may be what has failed
            if shown.workdir.writes and file.is_file() and not report.is_final(file):
                report.restate(file, told(recorder.snapshot()))
        raise
    finally:
        page.end()
