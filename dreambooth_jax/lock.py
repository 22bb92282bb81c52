"""A folder that one program works in: the next one is told who, and a dead one's claim is void.

The claim is a small JSON file with the host, the process and a time that a thread renews. On the
same host a claim counts as long as that very process lives, which its start time tells from another
one with the same number. On another host it counts while it is renewed.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from absl import logging

from dreambooth_jax import files, processes, untrusted

NAME = "in_use.json"
# Seconds between two signs of life, and without one until a claim of another host is void.
EVERY, VOID = 60.0, 300.0
_KEY = uuid.uuid4().hex  # of this process
_LARGEST, _LONGEST, _LATEST = 2**16, 300, 1e11  # bytes of a claim, characters of a word, seconds
_REMEDY = "Delete it if no program works in this folder."


class LockedError(ValueError):
    """Another program works in the folder; the text says which one and since when."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """The process that works in a folder; `started` tells it from a later one of its number."""

    host: str
    pid: int
    started: str
    since: float
    key: str

    @classmethod
    def own(cls) -> "Claim":
        """This process's."""
        pid = os.getpid()
        return cls(socket.gethostname(), pid, processes.started(pid), time.time(), _KEY)


def holder(folder: Path) -> Claim | None:
    """The claim on `folder` of a living process, None where there is none or it is void.

    Raises:
      FileError: there is a claim of another shape, which tells of nobody.
    """
    found = _read(folder / NAME)
    return found[0] if found is not None and _counts(*found) else None


def is_held(folder: Path) -> bool:
    """Returns True where a living process works in `folder`.

    A claim that is damaged, or not for this user, tells of none.
    """
    try:
        return holder(folder) is not None
    except (OSError, untrusted.FileError):
        return False


def _counts(claim: Claim, alive: float) -> bool:
    """Returns True for the claim of a living process of this host, or one renewed on another."""
    if claim.host == socket.gethostname():
        return processes.lives(claim.pid, began=claim.started)
    return -VOID < time.time() - alive < VOID


def _read(file: Path) -> tuple[Claim, float] | None:
    """The claim in a file and its last sign of life; None where there is no file.

    Raises:
      FileError: it is cut short by a full disk, or made by others.
    """
    try:
        content = untrusted.json_object(file, limit=_LARGEST, remedy=_REMEDY)
    except FileNotFoundError:
        return None
    with untrusted.values(file):
        claim, alive = Claim(**content["claim"]), content["alive"]
        wrong = [] if processes.is_number(claim.pid) else [f"pid = {claim.pid!r:.60}"]
        for name in ("host", "started", "key"):
            value = getattr(claim, name)
            wrong += [] if _is_word(value) else [f"{name} = {value!r:.60}"]
        for name, value in (("since", claim.since), ("alive", alive)):
            wrong += [] if _is_time(value) else [f"{name} = {value!r:.60}"]
        if wrong or not claim.host:
            told = ", ".join(wrong) or "host is empty"
            raise ValueError(f"expected the claim of a program, found {told}. {_REMEDY}")
    return claim, float(alive)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST and (value.isprintable() or not value)


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _LATEST


def _sound(file: Path, *, tell: bool = False) -> tuple[Claim, float] | None:
    """The same; a damaged claim is none, and told where it is asked for."""
    try:
        return _read(file)
    except untrusted.FileError as error:
        if tell:
            logging.warning("%s It tells of nobody who works here, so it is void.", error)
        return None


class Lock:
    """The claim of this process on `folder`, until `release` or the end of the program.

    A process may claim a folder twice: it is not in its own way.

    Raises:
      LockedError: another living process has it.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self._own = Claim.own()
        self._over = threading.Event()
        self._claim()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)
        self._thread.start()
        atexit.register(self.release)

    def release(self) -> None:
        """Gives the folder free; a second call does nothing."""
        if self._over.is_set():
            return
        self._over.set()
        atexit.unregister(self.release)
        found = _sound(self.file)
        if found is not None and found[0].key == self._own.key:
            with contextlib.suppress(OSError):  # a full or absent disk: a dead claim is void anyway
                self.file.unlink()

    def _claim(self) -> None:
        found = _sound(self.file, tell=True)
        if found is not None:
            self._check(*found)
        if files.is_remote(self.file):
            self._write()
            time.sleep(1.0)  # of two at the same moment the later one stays
        elif found is not None and self._is_own(found[0]):
            self._write()
        else:
            self._put_in_place(found[0] if found else None)
        last = _sound(self.file)
        if last is None or last[0].key != self._own.key:
            raise LockedError(_told(self.file, last[0] if last else None, ""))

    def _put_in_place(self, void: Claim | None) -> None:
        """Makes the file where there is none; of two programs at the same moment one is first."""
        part = self.file.with_name(f".{self.file.name}.{self._own.key}")
        if self.file.exists():  # a void claim, or what is left of one
            with contextlib.suppress(FileNotFoundError):  # the other one was first
                self.file.rename(part)
                moved = _sound(part)
                if moved is not None and (void is None or moved[0].key != void.key):
                    part.rename(self.file)  # the other one's, new
        try:
            part.write_text(self._content(), encoding="utf-8")
            with contextlib.suppress(FileExistsError):  # `_claim` reads whose it is
                os.link(part, self.file)
        except OSError:
            if self.file.exists():
                return
            part.replace(self.file)  # a file system without links
        finally:
            part.unlink(missing_ok=True)

    def _is_own(self, claim: Claim) -> bool:
        mine = (self._own.host, self._own.pid, self._own.started)
        return (claim.host, claim.pid, claim.started) == mine

    def _check(self, claim: Claim, alive: float) -> None:
        """Raises LockedError when another living process has made this claim."""
        if self._is_own(claim):
            return
        if _counts(claim, alive):
            remedy = "Wait for it, end it, or write another --workdir."
            if claim.host != self._own.host:
                remedy += f" If it is gone, its claim is void {VOID / 60:.0f} minutes after."
            raise LockedError(_told(self.file, claim, remedy))
        logging.warning("%s of process %d on %s is void: it ended.", self.file, *_who(claim))

    def _write(self) -> None:
        if files.is_remote(self.file):
            files.write_text(self.file, self._content())
            return
        # A name of its own: two programs may be here at the same moment.
        part = self.file.with_name(f".{self.file.name}.{self._own.key}")
        try:
            part.write_text(self._content(), encoding="utf-8")
            part.replace(self.file)
        finally:
            part.unlink(missing_ok=True)

    def _content(self) -> str:
        content: dict[str, Any] = {"claim": dataclasses.asdict(self._own), "alive": time.time()}
        return json.dumps(content) + "\n"

    def _renew(self) -> None:
        while not self._over.wait(EVERY):
            try:
                self._write()
            except Exception as error:  # the run itself will meet what is wrong, and tell it
                logging.debug("%s: %s", self.file, error)


def _who(claim: Claim) -> tuple[int, str]:
    return claim.pid, claim.host


def _told(file: Path, claim: Claim | None, remedy: str) -> str:
    if claim is None:
        return f"another program works in {file.parent}. Write another --workdir."
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(claim.since))
    return (
        f"process {claim.pid} on {claim.host} works in {file.parent} since {since}. "
        f"{remedy or 'It came at the same moment: write another --workdir.'}"
    )
