"""A run on several hosts ends on all of them when it ends on one, and says why."""

import logging as std_logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import jax
from absl import logging
from jax._src import distributed  # its client is public nowhere; Orbax takes it from here as well

from dreambooth_jax.hosts import witness

_ROOT = "dreambooth_jax"
# What a computation says whose other half is gone, on CPU (Gloo), GPU (NCCL) and TPU.
_LOST = re.compile(r"gloo|nccl|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|coordination", re.IGNORECASE)


class Clock:
    """Seconds in which this process ran: those in which it was stopped are not counted.

    A process that was stopped (Ctrl-Z, a suspended machine) has heard of nobody meanwhile, which
    says nothing of the others.

    Args:
      longest: seconds between two readings of `now`, above which the process was stopped.
    """

    def __init__(self, *, longest: float) -> None:
        self._longest, self._lock = longest, threading.Lock()
        self._read, self._stopped = time.monotonic(), 0.0

    def now(self) -> float:
        """Returns the seconds of `time.monotonic`, without those of stops."""
        with self._lock:
            read = time.monotonic()
            if read - self._read > self._longest:
                self._stopped += read - self._read
            self._read = read
            return read - self._stopped


class Watch:
    """Ends this process when another one is gone, for which collectives would wait without end.

    Each process gives a sign of life ten times in `timeout` seconds, and reads those of the others
    in a thread. A `witness` speaks when this process cannot: when the coordinator is gone, jax ends
    the others at once, from C++. Make it after `jax.distributed.initialize`, whose own heartbeat
    is for hosts whose network is gone: let it be longer.

    Args:
      workdir: of the run, for what the last message says of what is saved.
      timeout: seconds without a sign of life after which a process counts as gone.
    """

    def __init__(self, workdir: str, *, timeout: float) -> None:
        client: Any = distributed.global_state.client
        self._client = client
        self._workdir, self._timeout, self._interval = workdir, timeout, timeout / 10
        self._me = jax.process_index()
        own = f"process {self._me} on {socket.gethostname()}"
        client.key_value_set(f"{_ROOT}/host/{self._me}", own)
        self._names = [
            client.blocking_key_value_get(f"{_ROOT}/host/{i}", int(1000 * timeout))
            for i in range(jax.process_count())
        ]
        last = f"{own[0].upper()}{own[1:]} ended at once: it was killed, or lost the coordinator, "
        last += f"{self._names[0]}." if self._me else "which is this process itself."
        self._witness = subprocess.Popen(
            [sys.executable, "-I", "-S", witness.__file__, last, workdir],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is not for it
        )
        self._over = threading.Event()  # this process is on its way out by itself
        self._clock = Clock(longest=3 * self._interval)
        self._answered = self._clock.now()
        self._thread = threading.Thread(target=self._watch, name="hosts", daemon=True)
        self._thread.start()
        # A call to a coordinator that is stopped waits as long as it is: another thread counts.
        threading.Thread(target=self._time, name="hosts' clock", daemon=True).start()

    def end(self) -> None:
        """Waits for the other processes, so that none of them reports this one as lost."""
        try:
            self._client.wait_at_barrier(f"{_ROOT}/end", 1000 * 3600)
        except Exception as error:  # what is to be said of others the thread says
            logging.debug("%s", error)
        self._over.set()
        self._thread.join(self._timeout)
        self._dismiss()

    def failed(self, error: BaseException, *, expected: bool) -> NoReturn:
        """Says `error` here, tells the others of it, ends this process with exit code 1.

        An error that comes of another host's end is not said before it is known who is gone.
        expected: its message says all; of others the traceback is printed.
        """
        if _LOST.search(f"{type(error).__name__} {error}"):
            logging.warning("A computation over all hosts failed; finding out whether one is gone.")
            time.sleep(self._timeout + 3 * self._interval)  # the thread ends this process meanwhile
        self._over.set()
        logging.error("%s", error if expected else "".join(traceback.format_exception(error)))
        text = f"{error}" or type(error).__name__
        try:
            self._client.key_value_set(f"{_ROOT}/ended/{self._me}", text)
            time.sleep(3 * self._interval)  # with process 0 the store goes away: let them read it
        except Exception as unheard:  # the others will miss its signs of life
            logging.debug("%s", unheard)
        self._leave()

    def _time(self) -> None:
        while not self._over.wait(self._interval):
            if self._clock.now() - self._answered > self._timeout and not self._over.is_set():
                self._lost(f"No sign of life from {self._names[0]} for {self._timeout:g} seconds. ")

    def _watch(self) -> None:
        count = jax.process_count()
        now = self._clock.now
        heard: dict[int, str | None] = dict.fromkeys(range(count))
        when = dict.fromkeys(range(count), now())
        number = 0
        while not self._over.wait(self._interval):
            number += 1
            try:
                key = f"{_ROOT}/alive/{self._me}"
                self._client.key_value_set(key, f"{number}", allow_overwrite=True)
                ended = self._read("ended")
                alive = self._read("alive")
            except Exception:  # process 0 has the store: no answer is no sign of it
                ended, alive = {}, dict(heard)
            else:
                alive.setdefault(0, None)
                when[0] = now()
            self._answered = now()
            for i in alive:
                if alive[i] != heard[i]:
                    heard[i], when[i] = alive[i], now()
            for i, text in ended.items():
                # It may be the error that is about to be said here as well.
                if not self._over.wait(2 * self._interval):
                    self._lost(f"{self._names[i]} ended with an error: {text}\n")
            gone = [i for i in range(count) if now() - when[i] > self._timeout]
            if gone and not self._over.is_set():
                who = " and ".join(self._names[i] for i in gone)
                self._lost(f"No sign of life from {who} for {self._timeout:g} seconds. ")

    def _read(self, folder: str) -> dict[int, str | None]:
        found = self._client.key_value_dir_get(f"{_ROOT}/{folder}/")
        return {int(path.rpartition("/")[2]): text for path, text in found}

    def _lost(self, text: str) -> NoReturn:
        own = f"{self._names[self._me][0].upper()}{self._names[self._me][1:]} ends as well."
        logging.error("%s%s %s %s", text, own, witness.saved(self._workdir), witness.GO_ON)
        self._leave()

    def _leave(self) -> NoReturn:
        """Without the end of `jax.distributed`, which would wait for those that are gone."""
        self._dismiss()
        std_logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    def _dismiss(self) -> None:
        if self._witness.poll() is None:
            self._witness.communicate(b"bye\n")
