"""A save that fails says so once: nothing of its library's threads comes between."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_jax.checkpoint import reading

# Files end at 1 MB, as on a full disk. 40 leaves are written at once, by several threads.
FAILS = """
import pathlib, resource, sys, jax, jax.numpy as jnp
from absl import flags
from dreambooth_jax import main
from dreambooth_jax.checkpoint import Checkpoints
flags.FLAGS.mark_as_parsed()
main.quiet_others()
bits = jax.random.bits(jax.random.key(0), (300_000,))
state = lambda k: {f"leaf{n}": bits + n + k for n in range(40)}
try:
    with Checkpoints(pathlib.Path(sys.argv[1]), config={}) as c:
        c.save(1, state(0))
        c.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
        c.save(2, state(1))
        c.wait()
except main.FORESEEN as error:
    main.logging.error("%s", main.told(error))
    main.leave(1)
"""


@pytest.mark.parametrize("limit", [10, 1000, 1_000_000])  # also of the small files of a checkpoint
def test_a_failed_save_is_one_message(limit: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAILS, str(tmp_path / "c"), str(limit)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    *before, last = [line for line in done.stderr.splitlines() if "cpu_feature" not in line]
    assert re.search(r"error: saving step 2 in .*/c failed: .*File too large", last), done.stderr
    assert [line for line in before if "error" in line.lower()] == []


def test_loops_are_patient_until_the_last_save_is_over() -> None:
    before = asyncio.new_event_loop
    first, second = reading.patient_loops(), reading.patient_loops()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # in the order in which they came, not the last one first
    assert asyncio.new_event_loop is not before
    second.__exit__(None, None, None)
    assert asyncio.new_event_loop is before


def test_a_patient_loop_lets_what_it_began_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_PATIENCE", 0.5)
    ended = []

    async def slow(seconds: float) -> None:
        await asyncio.sleep(seconds)
        ended.append(seconds)

    async def fails() -> None:
        raise OSError("full")

    async def together() -> None:
        await asyncio.gather(slow(0.1), fails(), slow(1e9))

    with reading.patient_loops():
        loop = asyncio.new_event_loop()
        with pytest.raises(OSError, match="full"):
            loop.run_until_complete(together())
        loop.close()  # not without end
    assert ended == [0.1] and loop.is_closed()
