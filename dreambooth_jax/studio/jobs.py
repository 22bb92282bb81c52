"""Processes that the page starts: each on its own, so that none ends with the page; the queue."""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax import files, lock, processes, untrusted
from dreambooth_jax.studio import commands, runs
from dreambooth_jax.studio.places import RefusedError

EVERY = 1.0  # seconds between two looks at the processes and the queue
_KEPT = 200  # records of jobs
_LATEST = 1e11  # seconds since 1970


@dataclasses.dataclass(frozen=True)
class Job:
    """One command: queued, running or ended.

    started: start of the process in its kernel's ticks, which tells it from a later one of the
      same number. code: exit status, negative for a signal; None where it was not seen.
    """

    key: str
    run: str
    mode: str
    arguments: tuple[str, ...]
    state: str = "queued"
    pid: int = 0
    started: str = ""
    since: float = 0.0
    ended: float = 0.0
    code: int | None = None

    @property
    def outcome(self) -> str:
        """A word for its state: queued, running, done, stopped, failed, ended."""
        if self.state != "ended":
            return self.state
        stopped = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
        if self.code in stopped:
            return "stopped"
        return {None: "ended", 0: "done"}.get(self.code, "failed")


class Jobs:
    """The studio's commands over `state/jobs.json`; a thread sees them end and starts the next.

    busy: returns True while a run that this studio did not start works on this computer.
    """

    def __init__(self, state: Path, *, busy: Callable[[], bool] = lambda: False) -> None:
        self._file, self._logs, self._busy = state / "jobs.json", state / "logs", busy
        self._lock = threading.RLock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._over = threading.Event()
        state.mkdir(parents=True, exist_ok=True)
        self._jobs = self._read()

    def watch(self) -> None:
        """Begins to look after the processes and the queue, until `close`."""
        threading.Thread(target=self._watch, name="jobs", daemon=True).start()

    def close(self) -> None:
        """Ends the watching; the processes go on."""
        self._over.set()

    def all(self) -> list[Job]:
        """Returns the jobs, the oldest first."""
        with self._lock:
            return list(self._jobs)

    def of(self, run: str, *modes: str) -> list[Job]:
        """Returns the jobs of a run, the newest first, of these modes or of all."""
        found = [job for job in self.all() if job.run == run and (not modes or job.mode in modes)]
        return found[::-1]

    def running(self, run: str = "") -> list[Job]:
        """Returns the jobs whose process works, of one run or of all."""
        return [j for j in self.all() if j.state == "running" and run in ("", j.run)]

    def log(self, job: Job) -> Path:
        """Returns the file of what a job printed."""
        return self._logs / f"{job.key}.log"

    def add(self, run: str, mode: str, arguments: Sequence[str], *, queued: bool) -> Job:
        """Starts a command, or queues it.

        Raises:
          RefusedError: a command of this run is at work, or waits for the same.
        """
        with self._lock:
            self._look()
            if any(j.run == run and j.mode == mode and j.state == "queued" for j in self._jobs):
                raise RefusedError(f"{run}: --mode={mode} is queued already.")
            job = Job(uuid.uuid4().hex[:12], run, mode, tuple(arguments), since=time.time())
            if not queued:
                if self.running(run):
                    raise RefusedError(f"A command of {run} is at work. Queue this one, or wait.")
                job = self._started(job)
            self._jobs.append(job)
            self._write()
            return job

    def remove(self, key: str) -> None:
        """Takes a command out of the queue; one that runs or ended stays."""
        with self._lock:
            self._jobs = [j for j in self._jobs if j.key != key or j.state != "queued"]
            self._write()

    def stop(self, run: str, folder: Path) -> str:
        """Sends SIGTERM to the process that works in a run's folder, which saves and ends.

        It is the one that claims the folder, or that of a command which was started here; each by
        its number and its start. Returns a sentence for the person.

        Raises:
          RefusedError: nothing works there, it is a process of another host or of another user, or
            the claim is damaged.
        """
        damage = ""
        try:
            claim = lock.holder(folder)
        except (OSError, untrusted.FileError) as error:
            claim, damage = None, f" {error}"
        if claim is not None and claim.host != socket.gethostname():
            raise RefusedError(
                f"{run} is worked on by process {claim.pid} on {claim.host}. Send SIGTERM to it "
                "there."
            )
        with self._lock:
            self._look()
            job = next(iter(self.running(run)), None)
        found = claim or job
        try:
            if found is not None and processes.ask_to_end(found.pid, began=found.started):
                return f"Asked process {found.pid} to save and stop."
        except PermissionError as error:
            raise RefusedError(
                f"process {found.pid if found else 0}, which works on {run}, is another user's: "
                "end it as that user."
            ) from error
        raise RefusedError(f"Nothing works on {run} now.{damage}")

    def _started(self, job: Job) -> Job:
        """Starts the process in a session of its own: it lives on when this one is killed."""
        self._logs.mkdir(parents=True, exist_ok=True)
        with self.log(job).open("ab") as log:
            child = subprocess.Popen(
                [*commands.words(), *job.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        self._children[job.key] = child
        return dataclasses.replace(
            job,
            state="running",
            pid=child.pid,
            started=processes.started(child.pid),
            since=time.time(),
        )

    def _look(self) -> None:
        """Notes which processes have ended."""
        changed = False
        for k, job in enumerate(self._jobs):
            if job.state != "running":
                continue
            child = self._children.get(job.key)
            code = child.poll() if child is not None else None
            if code is None and (child is not None or processes.lives(job.pid, began=job.started)):
                continue
            self._children.pop(job.key, None)
            self._jobs[k] = dataclasses.replace(job, state="ended", code=code, ended=time.time())
            changed = True
        if changed:
            self._write()

    def tick(self) -> None:
        """Looks once at the processes; starts the first of the queue where nothing works."""
        with self._lock:
            self._look()
            waiting = [k for k, job in enumerate(self._jobs) if job.state == "queued"]
            if not waiting or self.running() or self._busy():
                return
            first = waiting[0]
            try:
                self._jobs[first] = self._started(self._jobs[first])
            except OSError as error:  # no memory, no disk: the next one may fare better
                job = dataclasses.replace(self._jobs[first], state="ended", code=-1)
                self._jobs[first] = dataclasses.replace(job, ended=time.time())
                with contextlib.suppress(OSError):  # no place for the reason either
                    self.log(job).write_text(f"{error}\n", encoding="utf-8")
            self._write()

    def _watch(self) -> None:
        told = ""
        while not self._over.wait(EVERY):
            try:
                self.tick()
            except Exception as error:  # a full disk, a folder that goes: it goes on after it
                text = untrusted.in_short(error)
                if text != told:
                    told = text
                    logging.getLogger(__name__).warning("The queue waits: %s", text)

    def _read(self) -> list[Job]:
        listed = runs.record(self._file).get("jobs", [])
        found = []
        for each in listed if isinstance(listed, list) else []:
            with contextlib.suppress(TypeError, KeyError):  # told below
                job = Job(**{**each, "arguments": tuple(each["arguments"])})
                found += [job] if _is_whole(job) else []
        if isinstance(listed, list) and len(found) < len(listed):
            count = len(listed) - len(found)
            logging.getLogger(__name__).warning(
                "%s: %d of %d commands are damaged or of another version; they are left out.",
                *(self._file, count, len(listed)),
            )
        return found

    def _write(self) -> None:
        ended = [job for job in self._jobs if job.state == "ended"]
        for job in ended[:-_KEPT]:
            self._jobs.remove(job)
            self.log(job).unlink(missing_ok=True)
        content: dict[str, Any] = {"jobs": [dataclasses.asdict(job) for job in self._jobs]}
        files.write_text(self._file, json.dumps(content, indent=1) + "\n")


def _is_whole(job: Job) -> bool:
    """Returns True where each field is of its kind; a key is the name of a file as well."""
    texts = (job.key, job.run, job.mode, job.state, job.started, *job.arguments)
    times = (job.since, job.ended)
    return (
        all(isinstance(each, str) for each in texts)
        and job.key.isalnum()
        and (processes.is_number(job.pid) or (job.pid == 0 and job.state != "running"))
        and all(isinstance(each, int | float) and 0 <= each < _LATEST for each in times)
        and (job.code is None or type(job.code) is int)
    )
