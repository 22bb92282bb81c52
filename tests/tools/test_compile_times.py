"""bench/compile.py: every family has a small step, and a process of its own tells what one took."""

import json
import runpy
import subprocess
import sys

import jax
import pytest


@pytest.fixture(scope="module")
def bench(repository):
    return runpy.run_path(str(repository / "bench" / "compile.py"))


def test_every_family_has_a_step_of_few_narrow_blocks(bench, tmp_path):
    for name in bench["FAMILIES"]:
        (label, _, (_, frozen, _)), devices = bench["program"](tmp_path, name, "cpu", "small")
        assert label.startswith("base: train step")
        assert devices == jax.devices()[:1]
        assert sum(x.size for x in jax.tree.leaves(frozen["weights"])) < 30e6, name


# A GiB of the process that starts the measured one: its own memory is told without it.
MEASURED = """
import json, runpy, sys
import numpy as np
np.ones(2**27)
print(json.dumps(runpy.run_path(sys.argv[1])["measured"]("SD 1.5", "cpu", "small")))
"""


def test_compiling_takes_time_and_memory_of_a_process_of_its_own(repository):
    command = [sys.executable, "-c", MEASURED, str(repository / "bench" / "compile.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["used"] > 0.5
    assert found["clock"] > 0.5
    assert 100 < found["before"] < 1024
    assert found["before"] < found["peak"]
