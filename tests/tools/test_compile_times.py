"""bench/compile.py: every family has a small step, and a process of its own tells what one took."""

import runpy

import jax
import numpy as np
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


def test_compiling_takes_time_and_memory_of_a_process_of_its_own(bench):
    held = np.ones(2**27)  # a GiB here is not the other process's
    del held
    found = bench["measured"]("SD 1.5", "cpu", "small")
    assert found["used"] > 0.5
    assert found["clock"] > 0.5
    assert 100 < found["before"] < 1024
    assert found["before"] < found["peak"]
