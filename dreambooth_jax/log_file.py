"""Log of a run in its folder, `log.txt`: the lines of the terminal without bars."""

import contextlib
import io
import logging
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dreambooth_jax import files, untrusted

NAME = "log.txt"
FORMAT = "%(asctime)s %(levelname)s %(message)s"
TIME = "%Y-%m-%d %H:%M:%S"
_SECONDS = 30.0  # between two sendings to a bucket


def escape_others() -> None:
    """Makes the terminal show characters that its encoding lacks as escapes, and refuse none."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_of_saves(record: logging.LogRecord) -> bool:
    return "orbax" in Path(record.pathname).parts


def _is_waiting(record: logging.LogRecord) -> bool:
    """Returns True for the warning that a save was waited for, which is done on purpose."""
    return _is_of_saves(record) and str(record.msg).startswith("Waiting for previous save")


def is_ours(record: logging.LogRecord) -> bool:
    """Returns True for lines of this program, and warnings of any library but needless ones."""
    ours = "dreambooth_jax" in Path(record.pathname).parts
    return ours or (record.levelno >= logging.WARNING and not _is_waiting(record))


def is_news(record: logging.LogRecord) -> bool:
    """Returns False for what the library of checkpoints tells that the terminal need not show.

    The tracebacks of a failed save, which it logs from its threads: the error is told where it is
    waited for, in one message (`checkpoint.CheckpointError`). And that a save was waited for.
    """
    return not (_is_waiting(record) or (record.exc_info and _is_of_saves(record)))


class Short(logging.Formatter):
    """Lines of a terminal: the time of day and the message, "warning" and "error" before it.

    Of an exception that a library logs, its last line.
    """

    def __init__(self) -> None:
        super().__init__(datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = f"{self.formatTime(record, self.datefmt)} {kind}{record.getMessage()}"
        if record.exc_info and record.exc_info[1] is not None:
            text += f" ({untrusted.in_short(record.exc_info[1])})"
        return text


class _Quiet(logging.Handler):
    """A handler that gives its file up, with one warning, when that cannot be written to.

    A log is no reason to end a run, nor to hide what ends it.
    """

    file: Path
    lost = False

    def handle(self, record: logging.LogRecord) -> bool:
        """Writes the line unless the file is given up."""
        return not self.lost and bool(super().handle(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """Is called where a line could not be written."""
        error = sys.exc_info()[1]
        self.give_up(error if isinstance(error, Exception) else OSError())

    def give_up(self, error: Exception) -> None:
        """Warns, the first time."""
        if not self.lost:
            self.lost = True
            named = untrusted.unwritten(self.file, error)
            reason = named.strerror or str(named)
            logging.getLogger("absl").warning("%s The log goes on without it.", reason)


class _Local(_Quiet, logging.FileHandler):
    """The lines of a file on this computer."""

    def __init__(self, file: Path) -> None:
        """Raises OSError, FileError where it cannot be opened, or is no regular file."""
        if file.exists():
            untrusted.regular(file)
        super().__init__(file, encoding="utf-8", errors="replace")
        self.file = file

    def close(self) -> None:
        """Closes the file; a line that is left may not fit on the disk."""
        try:
            super().close()
        except (OSError, ValueError) as error:
            self.give_up(error)


class _Remote(_Quiet):
    """The lines of a file in a bucket, which is replaced as a whole now and then."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self._text = untrusted.text(file) if file.is_file() else ""
        self._over = threading.Event()
        self._sent = len(self._text)
        self._warned = False
        self._thread = threading.Thread(target=self._send_on, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        self._text += self.format(record) + "\n"

    def close(self) -> None:
        if not self._over.is_set():
            self._over.set()
            self._thread.join()
            self._send()
        super().close()

    def _send_on(self) -> None:
        while not self._over.wait(_SECONDS):
            self._send()

    def _send(self) -> None:
        text = self._text
        if len(text) != self._sent:
            try:
                files.write_text(self.file, text)
                self._sent = len(text)
            except Exception as error:  # whatever the bucket's library raises; it is tried again
                if not self._warned:
                    self._warned = True
                    reason = untrusted.in_short(error)
                    logging.getLogger("absl").warning("%s is not sent: %s", self.file, reason)


@contextlib.contextmanager
def kept(folder: Path, *, writes: bool = True) -> Iterator[None]:
    """Adds the lines of its block and its error to `log.txt` of `folder`; none with `writes` False.

    A file that cannot be written to is no reason to end a run: it warns.
    """
    if not writes:
        yield
        return
    file = folder / NAME
    try:
        handler: _Quiet = _Remote(file) if files.is_remote(file) else _Local(file)
    except (OSError, untrusted.FileError) as error:
        logging.getLogger("absl").warning("%s: %s", file, untrusted.in_short(error))
        yield
        return
    formatter = logging.Formatter(FORMAT, TIME)
    formatter.converter = time.localtime
    handler.setFormatter(formatter)
    handler.addFilter(is_ours)
    logger = logging.getLogger("absl")
    try:
        with _heard(logger, handler):
            yield
    except Exception as error:  # the terminal has it from the main program, after this
        level = logging.WARNING if hasattr(error, "exit_code") else logging.ERROR
        text = str(error).strip() or untrusted.in_short(error)
        handler.handle(logger.makeRecord("absl", level, __file__, 0, text, (), None))
        raise
    finally:
        handler.close()


class _Onward(logging.Handler):
    """The handlers above a logger, for lines of a level that they had before."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger.getEffectiveLevel())
        self._above = logger.parent

    def emit(self, record: logging.LogRecord) -> None:
        if self._above is not None:
            self._above.callHandlers(record)


@contextlib.contextmanager
def _heard(logger: logging.Logger, handler: logging.Handler) -> Iterator[None]:
    """Gives a handler all lines of its block from INFO on, and others those that they had before.

    In a Python program, unlike under the command line, a logger drops what is below WARNING.
    """
    with contextlib.ExitStack() as after:
        if logger.getEffectiveLevel() > logging.INFO:
            onward = _Onward(logger)
            for other in logger.handlers:
                after.callback(other.setLevel, other.level)
                other.setLevel(max(other.level, onward.level))
            after.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.INFO)
            if logger.propagate:
                logger.addHandler(onward)
                after.callback(logger.removeHandler, onward)
                after.callback(setattr, logger, "propagate", True)
                logger.propagate = False
        logger.addHandler(handler)
        after.callback(logger.removeHandler, handler)
        yield
