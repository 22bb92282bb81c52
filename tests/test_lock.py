"""A folder in use: by whom, told to the next program; claims of dead ones are void."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_jax import lock, untrusted
from dreambooth_jax.lock import Lock, LockedError

HOLD = """
import sys, pathlib
from dreambooth_jax import lock, untrusted
try:
    lock.Lock(pathlib.Path(sys.argv[1]))
except lock.LockedError as error:
    sys.exit(str(error))
print("held", flush=True)
sys.stdin.readline()
if sys.argv[2] == "killed":
    import os
    os._exit(1)
"""


def holder(folder: Path, end: str = "ends") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), end],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_second_program_is_told_who_works_there_and_since_when(tmp_path: Path) -> None:
    first = holder(tmp_path)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    with pytest.raises(LockedError) as error:
        Lock(tmp_path)
    year = time.strftime("%Y-")
    assert f"process {first.pid} on {socket.gethostname()} works in {tmp_path}" in str(error.value)
    assert f"since {year}" in str(error.value) and "another --workdir" in str(error.value)
    first.communicate("\n", timeout=60)
    assert list(tmp_path.iterdir()) == []  # given free at the end of the program
    Lock(tmp_path).release()


def test_a_killed_program_leaves_a_claim_that_is_void(tmp_path: Path) -> None:
    first = holder(tmp_path, "killed")
    first.communicate("\n", timeout=60)
    assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
    again = Lock(tmp_path)
    assert json.loads((tmp_path / lock.NAME).read_text())["claim"]["pid"] == os.getpid()
    again.release()
    assert list(tmp_path.iterdir()) == []


def test_of_several_programs_at_the_same_moment_one_works(tmp_path: Path) -> None:
    several = [holder(tmp_path) for _ in range(4)]
    ends = [process.communicate("\n", timeout=120) for process in several]
    held = [out for out, _ in ends if out == "held\n"]
    refused = [err for out, err in ends if out != "held\n"]
    assert held and all("works in" in text for text in refused)


def claim_of(folder: Path, *, alive: float, **changed: object) -> None:
    own = dataclasses.asdict(lock.Claim.own()) | {"key": "another"} | changed
    (folder / lock.NAME).write_text(json.dumps({"claim": own, "alive": alive}))


def test_another_process_with_the_number_of_a_dead_one_does_not_defend_it(tmp_path: Path) -> None:
    """This process lives and has that number, but started at another time."""
    claim_of(tmp_path, alive=time.time(), started="another boot/1")
    Lock(tmp_path).release()


@pytest.mark.parametrize(("age", "free"), [(0, False), (200, False), (301, True), (-400, True)])
def test_on_another_host_a_claim_counts_while_it_is_renewed(
    age: float, free: bool, tmp_path: Path
) -> None:
    claim_of(tmp_path, alive=time.time() - age, host="elsewhere")
    if free:
        Lock(tmp_path).release()
        return
    with pytest.raises(LockedError, match=r"on elsewhere works in .* void 5 minutes after"):
        Lock(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"claim": {"a": 1}, "alive": 2}'])
def test_a_damaged_claim_is_void_and_told(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / lock.NAME).write_text(content)
    with pytest.raises(untrusted.FileError, match=lock.NAME):
        lock.holder(tmp_path)
    assert not lock.is_held(tmp_path)
    Lock(tmp_path).release()
    assert list(tmp_path.iterdir()) == []
    (line,) = [each.getMessage() for each in caplog.records if lock.NAME in each.getMessage()]
    assert "void" in line


WRONG = (
    *({"pid": pid} for pid in (-1, 0, -7, True, "12", 1.5, None, [], 2**31, 10**40)),
    *({"host": host} for host in ("", 3, None, "a\nb", "a" * 1000)),
    *({"started": started} for started in (None, 5, "x" * 1000)),
    *({"since": since} for since in (None, "now", 1e300, -1, True)),
    {"key": 5},
    {"more": 1},
)


@pytest.mark.parametrize("changed", WRONG)
@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
def test_a_claim_of_another_shape_is_void_on_every_host(
    changed: dict[str, object], host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No system call ever gets what it holds."""
    monkeypatch.setattr(os, "kill", lambda pid, number: pytest.fail(f"kill({pid}, {number})"))
    claim_of(tmp_path, alive=time.time(), **({"host": host} | changed))
    with pytest.raises(untrusted.FileError, match=lock.NAME):
        lock.holder(tmp_path)
    assert not lock.is_held(tmp_path)
    Lock(tmp_path).release()


@pytest.mark.parametrize("alive", ["null", '"now"', "1e300", "true", "-1", "NaN"])
def test_a_time_that_is_none_makes_a_claim_damaged(alive: str, tmp_path: Path) -> None:
    claim_of(tmp_path, alive=12345.0, host="elsewhere")
    file = tmp_path / lock.NAME
    file.write_text(file.read_text().replace("12345.0", alive))
    with pytest.raises(untrusted.FileError, match="alive"):
        lock.holder(tmp_path)


def test_a_claim_is_renewed_and_one_process_is_not_in_its_own_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "EVERY", 0.05)
    first = Lock(tmp_path)
    before = json.loads((tmp_path / lock.NAME).read_text())["alive"]
    until = time.monotonic() + 30
    while json.loads((tmp_path / lock.NAME).read_text())["alive"] == before:
        assert time.monotonic() < until
        time.sleep(0.02)
    second = Lock(tmp_path)
    first.release()
    second.release()
    first.release()
    assert list(tmp_path.iterdir()) == []
