"""The log of a run in its folder, also when the disk is full."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import logging as absl_logging

from dreambooth_jax import files, log_file

FULL = Path("/dev/full")  # each byte that is written there finds no space
needs_full = pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")
LOG = logging.getLogger("absl")


def say(text: str) -> None:
    """A line of the program."""
    LOG.handle(logging.LogRecord("absl", 20, "/x/dreambooth_jax/a.py", 1, text, (), None))


def fill() -> None:
    """From now on the disk of the open log is full."""
    (own,) = [each for each in LOG.handlers if isinstance(each, logging.FileHandler)]
    with FULL.open("wb") as full:
        os.dup2(full.fileno(), own.stream.fileno())


@pytest.fixture
def terminal(capfd: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    """Lines on the terminal, as the main program shows them."""
    lines: list[str] = []

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    shown, level = Shown(), LOG.level
    LOG.addHandler(shown)
    LOG.setLevel(logging.INFO)
    yield lines
    LOG.setLevel(level)
    LOG.removeHandler(shown)
    assert capfd.readouterr().err.count("Traceback") == 0


@needs_full
def test_on_a_full_disk_the_log_warns_once_and_the_run_goes_on(
    tmp_path: Path, terminal: list[str]
) -> None:
    with log_file.kept(tmp_path):
        say("before")
        fill()
        for number in range(50):
            say(f"line {number}")
    (warning,) = [line for line in terminal if not line.startswith(("line", "before"))]
    assert str(tmp_path / "log.txt") in warning and "No space left on device" in warning
    assert len(terminal) == 52
    assert (tmp_path / "log.txt").read_text().endswith(" INFO before\n")
    with log_file.kept(tmp_path):
        say("with room again")
    assert (tmp_path / "log.txt").read_text().endswith(" INFO with room again\n")


def run(folder: Path, lines: int) -> None:
    with log_file.kept(folder):
        fill()
        for number in range(lines):
            say(f"line {number}")
        raise KeyError("the run's own")


@needs_full
@pytest.mark.parametrize("lines", [0, 3])
def test_the_close_of_a_log_never_hides_what_ended_the_run(
    lines: int, tmp_path: Path, terminal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the last line is still in memory, and only the close finds no space."""
    if not lines:
        monkeypatch.setattr(logging.FileHandler, "flush", lambda self: None)
    with pytest.raises(KeyError, match="the run's own"):
        run(tmp_path, lines)
    assert len([line for line in terminal if "No space left" in line]) == 1


def test_the_error_of_a_run_is_in_its_log(tmp_path: Path) -> None:
    class Asked(RuntimeError):
        exit_code = 130

    for error in (ValueError("steps = -1: expected 1"), Asked("SIGINT received"), MemoryError()):
        with pytest.raises(type(error)), log_file.kept(tmp_path):
            raise error
    told = [line.split(" ", 2)[2] for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert told == [
        "ERROR steps = -1: expected 1", "WARNING SIGINT received", "ERROR MemoryError"
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_what_is_no_file_is_not_opened(kind: str, tmp_path: Path, terminal: list[str]) -> None:
    """A pipe would wait for a reader."""
    place = tmp_path / "log.txt"
    place.mkdir() if kind == "folder" else os.mkfifo(place)
    with log_file.kept(tmp_path):
        say("a line")
    assert [line for line in terminal if str(place) in line] and "a line" in terminal


def test_a_bucket_that_takes_nothing_is_told_once(
    tmp_path: Path, terminal: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path, text: str) -> None:
        raise RuntimeError("403")

    monkeypatch.setattr(files, "write_text", refuse)
    handler = log_file._Remote(tmp_path / "log.txt")
    for number in range(3):
        handler.handle(logging.LogRecord("absl", 30, "x", 1, f"line {number}", (), None))
        handler._send()
    handler.close()
    assert len([line for line in terminal if "is not sent: 403" in line]) == 1


def test_in_python_the_file_has_what_the_terminal_of_the_command_line_shows(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """There the level is WARNING: the screen stays as quiet as it was."""
    root, above = logging.getLogger(), logging.StreamHandler()
    level, LOG.propagate = (root.level, LOG.level), True
    root.addHandler(above)
    root.setLevel(logging.WARNING)
    LOG.setLevel(logging.NOTSET)
    before = [*LOG.handlers]
    try:
        with log_file.kept(tmp_path):
            assert LOG.isEnabledFor(logging.INFO)
            say("base: step 7")
            absl_logging.warning("a photo is small")
        absl_logging.info("after it")
        assert (LOG.level, LOG.propagate, LOG.handlers) == (logging.NOTSET, True, before)
    finally:
        root.removeHandler(above)
        root.setLevel(level[0])
        LOG.setLevel(level[1])
    assert capfd.readouterr().err == "a photo is small\n"
    text = (tmp_path / "log.txt").read_text()
    assert " INFO base: step 7\n" in text
    assert " WARNING a photo is small\n" in text and "after it" not in text


def test_waiting_for_a_save_is_no_warning(tmp_path: Path) -> None:
    """A run waits for its checkpoints on purpose; the library advises to save less often."""
    text, place = "Waiting for previous save to complete took %f seconds. If", "/x/orbax/m.py"
    waited, lost = (
        logging.LogRecord("absl", logging.WARNING, place, 1, said, args, None)
        for said, args in ((text, (2.6,)), ("a checkpoint is lost", ()))
    )
    with log_file.kept(tmp_path):
        for record in (waited, lost):
            LOG.handle(record)
    assert (tmp_path / "log.txt").read_text().endswith(" WARNING a checkpoint is lost\n")
    assert "Waiting" not in (tmp_path / "log.txt").read_text()
    assert [log_file.is_news(record) for record in (waited, lost)] == [False, True]
