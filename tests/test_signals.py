import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreambooth_jax.signals import GracefulStop


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_the_first_signal_is_a_request(
    name: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with GracefulStop() as stop:
        assert stop.requested is None
        assert stop.agreed() is None
        assert stop.exit_code == 0
        os.kill(os.getpid(), signal.Signals[name])
        assert stop.requested == name
        assert stop.agreed() == name
        assert stop.exit_code == code
    assert stop.requested == name  # still there after the loop
    assert name in capfd.readouterr().err


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_ctrl_c_after_a_request_interrupts(first: str) -> None:
    with GracefulStop() as stop:
        os.kill(os.getpid(), signal.Signals[first])
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.requested == first


def test_a_second_sigterm_changes_nothing() -> None:
    with GracefulStop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested == "SIGINT"


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def fails() -> None:
        with GracefulStop():
            assert signal.getsignal(signal.SIGTERM) != before[1]
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fails()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_inert_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def body() -> None:
        with GracefulStop() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.requested, stop.agreed()))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(before, None, None)]


@contextlib.contextmanager
def ready(program: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of Python that runs `program` in `folder` and has printed "ready"."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def test_a_loop_ends_with_the_conventional_exit_code(repository: Path) -> None:
    program = (
        "import sys\n"
        "from dreambooth_jax.signals import GracefulStop\n"
        "with GracefulStop() as stop:\n"
        "    print('ready', flush=True)\n"
        "    while not stop.requested: pass\n"
        "print('saved', flush=True)\n"
        "sys.exit(stop.exit_code)\n"
    )
    with ready(program, repository) as process:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (143, "saved\n")
    assert "SIGTERM" in err


def test_nohup_outlives_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with GracefulStop() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_thread_answers_while_the_main_one_is_inside_a_program(repository: Path) -> None:
    """A mutex that is locked twice stands for a compilation: no handler of Python runs."""
    program = (
        "import ctypes\n"
        "from dreambooth_jax.signals import GracefulStop\n"
        "lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)\n"
        "lock(mutex)\n"
        "left = lambda: print('left', flush=True)\n"
        "with GracefulStop(answer=lambda: 'stops after this compilation', at_once=left):\n"
        "    print('ready', flush=True)\n"
        "    lock(mutex)\n"
    )
    with ready(program, repository) as process:
        assert process.stderr is not None
        time.sleep(0.2)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "\n"
        told = process.stderr.readline()
        assert time.monotonic() - begin < 1.0
        assert told.startswith("SIGINT: stops after this compilation.")
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "left\n")
