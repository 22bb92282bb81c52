"""Processes of this computer by their numbers: when one started, whether it lives, how it ends.

Numbers come from files, which may be damaged or made by others: to the system 0 and negative ones
are groups of processes, and -1 is every process there is. None of those is ever looked up here.
"""

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

MOST = 2**31 - 1  # of the system's type
_FIRST = 1  # the first process of a computer, or of a container, where it may be a run


def is_number(pid: Any) -> bool:
    """Returns True for what can be the number of one process: a whole number from 1."""
    return type(pid) is int and _FIRST <= pid <= MOST


def started(pid: int) -> str:
    """The start of a process of this computer in its kernel's ticks, "" where it is unknown."""
    if not is_number(pid):
        return ""
    try:
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f"{boot}/{about.rpartition(')')[2].split()[19]}"  # field 22; the name may hold blanks


def lives(pid: int, *, began: str | None = None) -> bool:
    """Returns True where a process of this computer lives; one that ended unnoticed does not.

    The first process counts only if it is one of this program.

    began: its start as `started` tells it, None where it is unknown: then any process of that
      number counts.
    """
    if not is_number(pid) or (pid == _FIRST and not _is_ours(pid)):
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's: it lives
        pass
    with contextlib.suppress(OSError):  # a system without /proc
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        # Ended, while its parent has not waited for it.
        if about.rpartition(")")[2].split()[0] in ("Z", "X"):
            return False
    return began is None or started(pid) == began


def ask_to_end(pid: int, *, began: str) -> bool:
    """Sends SIGTERM to the very process that began then; returns False where it is not there.

    Never to the first process, nor to this one. Where starts are unknown (a system without /proc)
    it is one of this program by its command line, or it is not there.

    Raises:
      PermissionError: it is another user's.
    """
    if not is_number(pid) or pid in (_FIRST, os.getpid()) or not lives(pid, began=began):
        return False
    if not began and not _is_ours(pid):
        return False
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, signal.SIGTERM)
    return True


def _is_ours(pid: int) -> bool:
    """Returns True where the command line of a process names this program."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        try:
            asked = ["ps", "-o", "args=", "-p", str(pid)]
            words = subprocess.run(asked, capture_output=True, timeout=5).stdout
        except (OSError, subprocess.TimeoutExpired):
            return False
    return b"dreambooth_jax" in words or b"dreambooth-jax" in words
