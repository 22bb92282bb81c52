"""Processes of this computer by their numbers: when one started, and whether it lives."""

import contextlib
import os
from pathlib import Path


def started(pid: int) -> str:
    """The start of a process of this computer in its kernel's ticks, "" where it is unknown."""
    try:
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f"{boot}/{about.rpartition(')')[2].split()[19]}"  # field 22; the name may hold blanks


def lives(pid: int, *, began: str | None = None) -> bool:
    """Returns True where a process of this computer lives; one that ended unnoticed does not.

    began: its start as `started` tells it, None where it is unknown: then any process of that
      number counts.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's: it lives
        pass
    with contextlib.suppress(OSError):  # a system without /proc
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        if about.rpartition(")")[2].split()[0] in (
            "Z",
            "X",
        ):  # ended, its parent has not waited for it
            return False
    return began is None or started(pid) == began
