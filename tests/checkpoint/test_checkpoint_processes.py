"""Checkpoints of processes that are killed, and of two processes that write one together."""

import glob
import re
import signal
import subprocess
import sys
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
from checkpoint_states import like, reader

KILLED = """
import sys
import jax
import jax.numpy as jnp
from dreambooth_jax.checkpoint import Checkpoints
like = {
    "w": jax.ShapeDtypeStruct((2048, 1024), "uint32"),
    "step": jax.ShapeDtypeStruct((), "int32"),
}
with Checkpoints(sys.argv[1], config={}) as checkpoints:
    restored = checkpoints.restore(like)
    step = restored[1] if restored else 0
    print("from", step, flush=True)
    while True:
        step += 1
        w = jax.random.bits(jax.random.key(step), (2048, 1024))
        checkpoints.save(step, {"w": w, "step": jnp.int32(step)})
"""


def test_kill_9_in_the_middle_of_a_save(tmp_path: Path, repository: Path) -> None:
    template = {"w": jnp.zeros((2048, 1024), "uint32"), "step": jnp.int32(0)}
    reached = halves = attempts = 0
    while halves < 2:
        attempts += 1
        assert attempts < 10, "the moment was never caught"
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path)],
            cwd=repository,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == f"from {reached}\n"
            while not (glob.glob(f"{tmp_path}/[0-9]") and glob.glob(f"{tmp_path}/*tmp*/state/*/*")):
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        halves += any(tmp_path.glob("*.orbax-checkpoint-tmp*"))  # it was not committed just then
        restored = reader(tmp_path, {}).restore(like(template))
        assert restored is not None
        state, step = restored
        assert step >= max(reached, 1)
        assert int(state["step"]) == step
        assert np.array_equal(state["w"], jax.random.bits(jax.random.key(step), (2048, 1024)))
        reached = step
    with reader(tmp_path, {}) as checkpoints:
        checkpoints.save(reached + 1, template)
    assert not list(tmp_path.glob("*tmp*"))


TWO = """
import sys
import numpy as np
import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", num_processes=2, process_id=int(sys.argv[2]))
from dreambooth_jax.checkpoint import Checkpoints
from dreambooth_jax.signals import GracefulStop
folder = sys.argv[3]
devices = np.array(jax.devices()).reshape(2, 4)
mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
specs = {"rows": P("data"), "both": P("data", "fsdp"), "all": P()}
def state(step, names=specs):
    def leaf(name):
        full = np.random.default_rng([step, len(name)]).integers(0, 2**32, (8, 1024), np.uint32)
        sharding = NamedSharding(mesh, specs[name])
        return jax.make_array_from_callback(full.shape, sharding, lambda place: full[place])
    return {name: leaf(name) for name in names}
def same(a, b):
    return all(
        np.array_equal(x.data, y.data)
        for name in a for x, y in zip(a[name].addressable_shards, b[name].addressable_shards)
    )
with Checkpoints(folder, config={"a": 1}) as checkpoints:
    assert checkpoints.restore(state(0)) is None
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    checkpoints.wait()
    restored, step = checkpoints.restore(state(0))
    assert step == 2 and same(restored, state(2)) and not same(restored, state(1))
    # Process 1's own data file is cut: process 0 can read its own shards, but both must refuse.
    if jax.process_index() == 0:
        import os, pathlib
        files = pathlib.Path(folder, "2", "state", "ocdbt.process_1", "d").iterdir()
        os.truncate(max(files, key=lambda file: file.stat().st_size), 2000)
    jax.experimental.multihost_utils.sync_global_devices("cut")
    split = ("rows", "both")
    restored, step = checkpoints.restore(state(0, split), partial=True)
    assert step == 1 and same(restored, state(1, split))
    checkpoints.save(2, state(3))
with Checkpoints(folder, config={"a": 1}) as checkpoints:
    restored, step = checkpoints.restore(state(0))
    assert step == 2 and same(restored, state(3))
with GracefulStop() as stop:
    assert stop.agreed() is None
    if jax.process_index() == 1:
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.agreed() == "SIGTERM" and stop.exit_code == 143
print("good")
"""


def test_two_processes(tmp_path: Path) -> None:
    results = commands.two(TWO, tmp_path, devices=4, timeout=240)
    for one in results:
        assert one.stdout.endswith("good\n"), one.stderr[-3000:]
        assert one.returncode == 0
    refusals = [re.search(r"REFUSED checkpoint .*/2: (.*)", one.stderr) for one in results]
    assert refusals[0]
    assert refusals[0][1] == "another process could not read it"
    assert refusals[1]
    assert re.match(r"leaf '(rows|both)' can't be read", refusals[1][1])
    # One process reads what two wrote.
    names = {"rows": 4, "both": 4, "all": 3}
    target = {name: jax.ShapeDtypeStruct((8, 1024), "uint32") for name in names}
    restored = reader(tmp_path, {"a": 1}).restore(target)
    assert restored is not None
    assert restored[1] == 2
    for name, length in names.items():
        full = np.random.default_rng([3, length]).integers(0, 2**32, (8, 1024), np.uint32)
        assert np.array_equal(restored[0][name], full)
