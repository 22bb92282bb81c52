"""Log of a run in its folder, `log.txt`: the lines of the terminal without bars."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dreambooth_jax import files, untrusted

NAME = "log.txt"
FORMAT = "%(asctime)s %(levelname)s %(message)s"
TIME = "%Y-%m-%d %H:%M:%S"
_SECONDS = 30.0  # between two sendings to a bucket


def is_ours(record: logging.LogRecord) -> bool:
    """Returns True for a line of this program, and for warnings of any library."""
    ours = "dreambooth_jax" in Path(record.pathname).parts
    return ours or record.levelno >= logging.WARNING


class Short(logging.Formatter):
    """Lines of a terminal: the time of day and the message, "warning" and "error" before it."""

    def __init__(self) -> None:
        super().__init__(datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = f"{self.formatTime(record, self.datefmt)} {kind}{record.getMessage()}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


class _Remote(logging.Handler):
    """The lines of a file in a bucket, which is replaced as a whole now and then."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self._text = untrusted.text(file) if file.is_file() else ""
        self._over = threading.Event()
        self._sent = len(self._text)
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
            with contextlib.suppress(Exception):  # a log is no reason to end a run
                files.write_text(self.file, text)
                self._sent = len(text)


@contextlib.contextmanager
def kept(folder: Path, *, writes: bool = True) -> Iterator[None]:
    """Adds the lines of its block to `log.txt` of `folder`; nothing with `writes` False.

    A file that cannot be written to is no reason to end a run: it warns.
    """
    if not writes:
        yield
        return
    file = folder / NAME
    try:
        handler: logging.Handler = (
            _Remote(file)
            if files.is_remote(file)
            else logging.FileHandler(file, encoding="utf-8", errors="replace")
        )
    except (OSError, untrusted.FileError) as error:
        logging.getLogger("absl").warning("%s: %s", file, untrusted.in_short(error))
        yield
        return
    formatter = logging.Formatter(FORMAT, TIME)
    formatter.converter = time.localtime
    handler.setFormatter(formatter)
    handler.addFilter(is_ours)
    logger = logging.getLogger("absl")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
