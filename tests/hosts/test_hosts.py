"""Several processes: what differs is told on all, and the end of one is the end of all."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest

from dreambooth_jax import main
from dreambooth_jax.hosts import agree, watch, witness
from dreambooth_jax.hosts.agreement import differences

PROGRAM = """
import os, signal, subprocess, sys, time
port, me, what, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
import jax
jax.distributed.initialize(f"127.0.0.1:{port}", 2, me, heartbeat_timeout_seconds=60)
from dreambooth_jax import hosts
watch = hosts.Watch(workdir, timeout=3)
hosts.agree("the settings", {"seed": 1, "prompts": ["a", "b"]}, remedy="")
try:
    hosts.agree("the judges", ["lpips", "clip"][: 2 - me], remedy="Install it.")
except hosts.Disagreement as error:
    print(error, flush=True)
hosts.agree("what is printed", 1, remedy="")  # before one of them dies
if what == "stopped" and me == 0:
    subprocess.Popen(["sh", "-c", f"sleep 15; kill -9 {os.getpid()}"])
    os.kill(os.getpid(), signal.SIGSTOP)
if what == "killed" and me == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "coordinator" and me == 0:
    os.kill(os.getpid(), signal.SIGKILL)
if what == "failed" and me == 1:
    watch.failed(ValueError("no such photo"), expected=True)
if what == "good":
    time.sleep(4 * me)  # longer than the timeout: it is alive
    watch.end()
    sys.exit(0)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("what", "speaks", "codes", "said"),
    [
        ("killed", 0, (1, -signal.SIGKILL), "No sign of life from process 1 on {} for 3 seconds."),
        ("failed", 0, (1, 1), "process 1 on {} ended with an error: no such photo"),
        ("coordinator", 1, (-signal.SIGKILL, None), "lost the coordinator, process 0 on {}."),
        ("good", 1, (0, 0), "lacks clip"),
    ],
)
def test_the_end_of_one_is_the_end_of_all(
    what: str, speaks: int, codes: tuple, said: str, tmp_path: Path
) -> None:
    for name in ("2", "4", "6.orbax-checkpoint-tmp-0"):
        (tmp_path / "checkpoints" / "base" / name).mkdir(parents=True)
    ended = commands.two(PROGRAM, what, tmp_path, timeout=50)
    outputs = [one.stdout + one.stderr for one in ended]
    for one, expected in zip(ended, codes, strict=True):
        assert one.returncode != 0 if expected is None else one.returncode == expected, outputs
    assert said.format(socket.gethostname()) in outputs[speaks]
    for output in outputs:  # also who has it says which of them lacks it
        assert f"process 1 on {socket.gethostname()} lacks clip" in output
        assert output.count("Install it.") == 1  # and the settings before it agreed
    saved = f"Saved in {tmp_path}: base step 4. {witness.GO_ON}"
    assert (saved in outputs[speaks]) == (what != "good")


def test_a_stopped_coordinator_is_named_within_the_timeout(tmp_path: Path) -> None:
    """Calls to it wait as long as it is stopped, so another thread must count."""
    first, second = commands.two(PROGRAM, "stopped", tmp_path, timeout=50)
    said = f"No sign of life from process 0 on {socket.gethostname()} for 3 seconds."
    assert said in second.stdout + second.stderr
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 1)


def test_time_in_which_a_process_was_stopped_is_not_counted(monkeypatch) -> None:
    times = iter([100.0, 101.0, 102.5, 900.0, 901.0, 903.0])
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(times))
    clock = watch.Clock(longest=3.0)
    assert [clock.now() for _ in range(5)] == [101.0, 102.5, 102.5, 103.5, 105.5]


def test_jax_s_own_count_leaves_processes_that_were_stopped_together_their_time(
    monkeypatch,
) -> None:
    """Of machines that were suspended for some minutes; a single one is told by the watch."""
    asked: dict[str, int] = {}
    monkeypatch.setattr(main.jax.distributed, "initialize", lambda **how: asked.update(how))
    monkeypatch.setattr(main.hosts, "Watch", lambda *given, **how: None)
    monkeypatch.setattr(main, "COORDINATOR", SimpleNamespace(value="auto"))
    monkeypatch.setattr(main, "HOST_TIMEOUT", SimpleNamespace(value=main.HOST_TIMEOUT.default))
    main.joined(Path("run"))
    assert asked["heartbeat_timeout_seconds"] >= 5 * 60


def test_one_process_agrees_with_itself() -> None:
    agree("anything", {"a": object}, remedy="")  # not even JSON: nothing is sent


def test_what_differs_is_told_by_key_and_by_what_is_lacking() -> None:
    a, b = {"x": 1, "y": {"z": [1, 2]}}, {"x": 1, "y": {"z": [2]}, "w": 3}
    assert differences({"p": a, "q": a}) == []
    assert differences({"p": a, "q": b}) == ["y: z: q lacks 1", "w: p has None, q has 3"]
    # The same in another order: nothing is lacking, and yet it differs.
    assert differences({"p": [1, 2], "q": [2, 1]}) == ["p has [1, 2], q has [2, 1]"]


def test_the_witness_is_silent_after_a_goodbye(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(witness.__file__), "It is gone.", str(tmp_path)]
    for word, said in (("bye\n", ""), ("", f"It is gone. Saved in {tmp_path}: no checkpoint yet.")):
        done = subprocess.run(command, input=word, capture_output=True, text=True, timeout=30)
        assert done.stderr.startswith(said) and bool(done.stderr) == bool(said)
    assert os.listdir(tmp_path) == []


def test_what_is_saved_counts_class_images_once(tmp_path: Path) -> None:
    """Neither low-res pictures of a cascade nor steps that are not committed are told."""
    (tmp_path / "prior" / "duck" / "low_res").mkdir(parents=True)
    for place in ("00000.png", "00001.png", "low_res/00000.png", "low_res/00001.png"):
        (tmp_path / "prior" / "duck" / place).touch()
    assert witness.saved(str(tmp_path)) == (
        f"Saved in {tmp_path}: no checkpoint yet and 2 class images."
    )
    for step in ("2", "10", "12.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / "base" / step).mkdir(parents=True)
    assert witness.saved(str(tmp_path)).endswith("base step 10 and 2 class images.")
