"""Living and ended processes of this computer."""

import math
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from dreambooth_jax import processes


def test_a_process_that_ended_unnoticed_is_no_living_one() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its parent has not waited
        os.kill(process.pid, 0)  # it has its number still
        assert not processes.lives(process.pid)
    own = os.getpid()
    assert processes.lives(own) and processes.lives(own, began=processes.started(own))
    assert not processes.lives(own, began="another boot/1")


# What a damaged or hostile record may hold in the place of a number of a process. To the system -1
# is every process, 0 the group of this one.
NO_NUMBERS = (-1, 0, -5, True, False, 2**31, 2**63, -(2**63), 10**30, 1.0, 1e300, "12", "-1", "",
              None, [1], {"pid": 2}, math.nan)  # fmt: skip


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, int]]:
    """Signals that would have been sent."""
    found: list[tuple[Any, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append((pid, number)))
    return found


@pytest.mark.parametrize("pid", NO_NUMBERS)
def test_what_is_no_number_of_a_process_is_neither_looked_up_nor_signalled(
    pid: Any, sent: list[tuple[Any, int]]
) -> None:
    assert not processes.is_number(pid)
    for began in ("", processes.started(os.getpid())):
        assert not processes.lives(pid, began=began) and not processes.lives(pid)
        assert not processes.ask_to_end(pid, began=began)
    assert processes.started(pid) == "" and sent == []


def test_the_first_process_of_a_computer_is_never_signalled(sent: list[tuple[Any, int]]) -> None:
    """It counts as living only where it is a run, in a container."""
    assert not processes.ask_to_end(1, began=processes.started(1))
    assert not processes.lives(1) and sent == []


def test_only_the_very_process_is_asked_to_end(sent: list[tuple[Any, int]]) -> None:
    own = os.getpid()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        began = processes.started(child.pid)
        for pid, start in ((child.pid, "another boot/1"), (child.pid, ""), (own, "")):
            assert not processes.ask_to_end(pid, began=start)
        assert not processes.ask_to_end(own, began=processes.started(own))
        assert [each for each in sent if each[1]] == []
        assert processes.ask_to_end(child.pid, began=began)
        assert [each for each in sent if each[1]] == [(child.pid, signal.SIGTERM)]
        child.communicate(b"\n")


def test_where_starts_are_unknown_the_command_line_tells_a_run(
    sent: list[tuple[Any, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "started", lambda pid: "")
    code = "import sys; sys.stdin.read()"
    for words, expected in ((["dreambooth_jax.main"], True), (["other"], False)):
        whole = [sys.executable, "-c", code, *words]
        with subprocess.Popen(whole, stdin=subprocess.PIPE) as child:
            assert processes.ask_to_end(child.pid, began="") is expected
            child.communicate(b"")
    assert len([each for each in sent if each[1]]) == 1
