import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import rng as streams


def drawn(key: jax.Array, shape: tuple[int, ...] = (8,)) -> np.ndarray:
    return np.asarray(jax.random.normal(key, shape))


def test_a_draw_depends_on_seed_step_and_name_alone():
    base = drawn(streams.key(3, 7, "noise"))
    np.testing.assert_array_equal(base, drawn(streams.key(3, 7, "noise")))
    for other in (
        streams.key(4, 7, "noise"),
        streams.key(3, 8, "noise"),
        streams.key(3, 7, "time"),
        streams.key(7, 3, "noise"),
    ):
        assert not np.isin(base, drawn(other)).any()


def test_a_traced_step_draws_what_a_known_step_draws():
    traced = jax.jit(lambda step: jax.random.normal(streams.key(3, step, "noise"), (8,)))
    np.testing.assert_array_equal(traced(jnp.int32(7)), drawn(streams.key(3, 7, "noise")))


def test_steps_and_names_of_a_run_never_share_a_key():
    names = ("noise", "time", "dropout", "crop", "aug", "init")
    keys = [streams.key(0, step, name) for step in range(50) for name in names]
    data = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in keys}
    assert len(data) == 50 * len(names)


def test_streams_are_uncorrelated():
    count = 4096
    rows = [drawn(streams.key(0, step, name), (count,)) for step in (0, 1) for name in ("a", "b")]
    off_diagonal = np.corrcoef(rows)[np.triu_indices(4, 1)]
    assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(count)


def test_named_streams_of_one_key_differ_from_it_and_from_each_other():
    key = jax.random.key(0)
    found = [drawn(key), drawn(streams.named(key, "a")), drawn(streams.named(key, "b"))]
    assert len(np.unique(found)) == 24


@pytest.mark.parametrize("seed", [0, 1, -1, -(2**40), 2**31, 2**63, 2**64 - 2])
def test_host_streams_repeat_and_differ_by_every_part(seed):
    base = streams.generator(seed, "crops", 5).normal(size=8)
    np.testing.assert_array_equal(base, streams.generator(seed, "crops", 5).normal(size=8))
    for parts in [("crops", 6), ("crops", "5"), ("crops5",), ("crop", "s5"), (5, "crops")]:
        assert not np.isin(base, streams.generator(seed, *parts).normal(size=8)).any(), parts
    assert not np.isin(base, streams.generator(seed + 1, "crops", 5).normal(size=8)).any()


def test_streams_do_not_depend_on_the_hash_seed_of_the_process():
    code = (
        "import json, jax; from dreambooth_jax import rng;"
        "print(json.dumps([rng.generator(1, 'batch', 2).normal(size=3).tolist(),"
        "jax.random.normal(rng.key(1, 2, 'noise'), (3,)).tolist()]))"
    )
    env = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=env, check=True)
    host, device = json.loads(done.stdout)
    np.testing.assert_array_equal(host, streams.generator(1, "batch", 2).normal(size=3))
    np.testing.assert_array_equal(np.float32(device), drawn(streams.key(1, 2, "noise"), (3,)))
