"""Processes of the studio: they outlive it, stop when asked, and come one after the other."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from studios import make_run

from dreambooth_jax import lock, processes
from dreambooth_jax.studio import commands, jobs, runs
from dreambooth_jax.studio.places import MissingError, RefusedError

# In the place of the main command: waits for a signal, or ends with the status it is given.
PROGRAM = """
import signal, sys, time
print("words:", *sys.argv[1:], flush=True)
if sys.argv[1] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("ready", flush=True)
    time.sleep(60)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(commands, "words", lambda: [sys.executable, "-c", PROGRAM])


@pytest.fixture
def own(tmp_path, small):
    found = jobs.Jobs(tmp_path / "state")
    yield found
    for job in found.running():
        os.kill(job.pid, signal.SIGKILL)
        until(lambda job=job: ended(found, job))


def until(true, seconds=30.0):
    stop = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < stop
        time.sleep(0.02)


def ended(own, job):
    own.tick()
    return all(each.state == "ended" for each in own.all() if each.key == job.key)


@pytest.mark.parametrize(("status", "outcome"), [(0, "done"), (1, "failed"), (143, "stopped")])
def test_a_command_and_its_outcome(own, status, outcome):
    job = own.add("bird", "train", [str(status)], queued=False)
    assert job.pid and own.running("bird")
    until(lambda: ended(own, job))
    found = own.of("bird", "train")[0]
    assert (found.outcome, found.code) == (outcome, status)
    assert own.log(job).read_text() == f"words: {status}\n"


def test_words_reach_the_process_as_they_are(own):
    job = own.add("bird", "sample", ["0", "$(touch x); `y` 'a b'", "--a=\n*"], queued=False)
    until(lambda: ended(own, job))
    assert own.log(job).read_text() == "words: 0 $(touch x); `y` 'a b' --a=\n*\n"


def test_stopping_sends_a_signal_to_the_very_process(own, tmp_path):
    job = own.add("bird", "train", ["wait"], queued=False)
    until(lambda: "ready" in own.log(job).read_text())
    assert f"process {job.pid}" in own.stop("bird", tmp_path)
    until(lambda: ended(own, job))
    assert own.of("bird")[0].outcome == "stopped"
    with pytest.raises(RefusedError, match="Nothing works"):
        own.stop("bird", tmp_path)


def test_another_host_is_not_signalled(own, tmp_path, monkeypatch):
    claim = lock.Claim("elsewhere", os.getpid(), "", time.time(), "k")
    monkeypatch.setattr(lock, "holder", lambda folder: claim)
    with pytest.raises(RefusedError, match="on elsewhere"):
        own.stop("bird", tmp_path)


def test_a_number_that_another_process_has_now_is_not_signalled(own, tmp_path):
    """The record of a dead job, whose number this test's own process has."""
    state = tmp_path / "other"
    state.mkdir()
    record = {"key": "k", "run": "bird", "mode": "train", "arguments": [], "state": "running"}
    record |= {"pid": os.getpid(), "started": "long ago"}
    (state / "jobs.json").write_text(json.dumps({"jobs": [record]}))
    found = jobs.Jobs(state)
    with pytest.raises(RefusedError, match="Nothing works"):
        found.stop("bird", tmp_path)
    assert found.of("bird")[0].outcome == "ended"


def test_the_queue_goes_on_after_whatever_stopped_a_look_at_it(
    tmp_path, small, monkeypatch, caplog
):
    """A run's folder that goes while it is looked at, a full disk."""
    monkeypatch.setattr(jobs, "EVERY", 0.01)
    faults = iter([MissingError("gone"), OSError("full"), OSError("full"), ValueError("odd")])

    def busy():
        for fault in faults:
            raise fault
        return False

    own = jobs.Jobs(tmp_path, busy=busy)
    own.add("bird", "train", ["0"], queued=True)
    own.watch()
    try:
        until(lambda: all(job.state == "ended" for job in own.all()))
    finally:
        own.close()
    assert [text in caplog.text for text in ("gone", "full", "odd")] == [True] * 3
    assert caplog.text.count("full") == 1


PIDS = (-1, 0, 1, -5, True, "7", 1.5, None, [], 2**31, 2**63, 10**40)


@pytest.mark.parametrize("pid", PIDS)
def test_a_claim_with_another_kind_of_number_signals_nothing(own, tmp_path, monkeypatch, pid):
    """-1 would be every process of the user, 0 the group of the studio."""
    folder = make_run(tmp_path / "bird")
    claim = dataclasses.asdict(lock.Claim.own()) | {"pid": pid, "started": ""}
    first = type(pid) is int and pid == 1
    if first:
        claim["started"] = processes.started(1)
    (folder / lock.NAME).write_text(json.dumps({"claim": claim, "alive": time.time()}))
    monkeypatch.setattr(os, "kill", lambda *call: pytest.fail(f"kill{call}"))
    with pytest.raises(RefusedError, match=r"Nothing works on bird now\.") as refused:
        own.stop("bird", folder)
    assert (lock.NAME in str(refused.value)) != first
    assert runs.state(folder).name not in runs.ACTIVE


@pytest.mark.parametrize("pid", PIDS)
@pytest.mark.parametrize("started", ["", None, 5])
def test_a_job_with_another_kind_of_number_signals_nothing(
    tmp_path, monkeypatch, caplog, pid, started
):
    record = {"key": "k", "run": "bird", "mode": "train", "arguments": [], "state": "running"}
    record |= {"pid": pid, "started": started}
    (tmp_path / "jobs.json").write_text(json.dumps({"jobs": [record]}))
    monkeypatch.setattr(os, "kill", lambda *call: pytest.fail(f"kill{call}"))
    found = jobs.Jobs(tmp_path)
    found.tick()
    with pytest.raises(RefusedError, match="Nothing works on bird now"):
        found.stop("bird", tmp_path)
    assert not found.running() and ("damaged" in caplog.text or pid == 1)


@pytest.mark.parametrize("key", ["../../notes", "a/b", "", ".", 5])
def test_a_record_never_names_a_file_elsewhere(tmp_path, key):
    """The log of a command is removed with its record."""
    record = {"run": "bird", "mode": "train", "arguments": [], "state": "ended"}
    many = [{"key": key, **record}, *({"key": f"k{n}", **record} for n in range(300))]
    (tmp_path / "notes.log").write_text("mine")
    (tmp_path / "state" / "logs").mkdir(parents=True)
    (tmp_path / "state" / "jobs.json").write_text(json.dumps({"jobs": many}))
    found = jobs.Jobs(tmp_path / "state")
    found.remove("none")
    assert (tmp_path / "notes.log").read_text() == "mine" and len(found.all()) == 200


def test_a_claim_of_the_page_itself_or_of_another_start_is_not_signalled(
    own, tmp_path, monkeypatch
):
    folder = make_run(tmp_path / "bird")
    sent = []
    for changed in ({}, {"started": "another boot/1"}, {"started": ""}):
        claim = dataclasses.asdict(lock.Claim.own()) | changed
        (folder / lock.NAME).write_text(json.dumps({"claim": claim, "alive": time.time()}))
        with monkeypatch.context() as patched:
            patched.setattr(os, "kill", lambda pid, number: sent.append(number))
            with pytest.raises(RefusedError, match="Nothing works"):
                own.stop("bird", folder)
    assert not any(sent)  # 0 asks whether it lives


def test_the_queue_goes_on_after_a_failure(own):
    for status in ("1", "0"):
        own.add(f"run{status}", "train", [status], queued=True)
    assert not own.running()
    own.tick()
    assert [job.run for job in own.running()] == ["run1"]
    until(lambda: (own.tick(), all(job.state == "ended" for job in own.all()))[1])
    assert [job.outcome for job in own.all()] == ["failed", "done"]
    first, second = own.all()
    assert first.ended <= second.since


def test_the_queue_waits_for_runs_of_others(tmp_path, small):
    busy = [True]
    own = jobs.Jobs(tmp_path, busy=lambda: busy[0])
    job = own.add("bird", "train", ["0"], queued=True)
    own.tick()
    assert own.all()[0].state == "queued"
    busy[0] = False
    until(lambda: ended(own, job))


def test_a_run_has_one_command_at_a_time(own):
    own.add("bird", "train", ["wait"], queued=False)
    with pytest.raises(RefusedError, match="at work"):
        own.add("bird", "sample", ["0"], queued=False)
    waiting = own.add("bird", "train", ["0"], queued=True)
    with pytest.raises(RefusedError, match="queued already"):
        own.add("bird", "train", ["0"], queued=True)
    own.remove(waiting.key)
    assert [job.state for job in own.all()] == ["running"]
    own.remove(own.all()[0].key)
    assert [job.state for job in own.all()] == ["running"]


def test_a_run_outlives_a_studio_that_is_killed(own, tmp_path):
    """The studio dies by SIGKILL; its record tells the next one about the process."""
    state = tmp_path / "killed"
    program = f"""
import os, signal, pathlib
from dreambooth_jax.studio import commands, jobs
commands.words = lambda: [{sys.executable!r}, "-c", {PROGRAM!r}]
own = jobs.Jobs(pathlib.Path({str(state)!r}))
own.add("bird", "train", ["wait"], queued=False)
own.add("later", "train", ["0"], queued=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program])
    assert killed.returncode == -signal.SIGKILL
    own = jobs.Jobs(state)
    (job,) = own.running("bird")
    until(lambda: "ready" in own.log(job).read_text())
    assert os.getsid(job.pid) == job.pid  # no terminal of another can end it
    own.stop("bird", tmp_path)
    until(lambda: (own.tick(), own.of("later")[0].state == "ended")[1])
    assert own.of("bird")[0].outcome == "ended"  # its status was the dead studio's to see
    assert own.of("later")[0].outcome == "done"


@pytest.mark.parametrize("text", ["", "{}", '{"jobs": [{"key": 1}, 5, null]}', "[", '{"jobs": 3}'])
def test_a_damaged_record_is_an_empty_one(tmp_path, text):
    (tmp_path / "jobs.json").write_text(text)
    assert jobs.Jobs(tmp_path).all() == []


def test_a_claim_names_the_process_to_stop(own, tmp_path):
    folder = make_run(tmp_path / "bird")
    program = f"""
import pathlib, signal, sys, time
from dreambooth_jax import lock
claim = lock.Lock(pathlib.Path({str(folder)!r}))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        assert lock.holder(folder).host == socket.gethostname()
        own.stop("bird", folder)  # started in a shell: there is no job
        assert child.wait(30) == 143
    assert lock.holder(folder) is None
