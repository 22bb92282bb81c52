"""Short runs of the main command on a cascade that compiles in seconds, as child processes or here.

Not a test: what test_main, test_experiment, test_resume and test_processes have in common.
"""

import contextlib
import fcntl
import functools
import json
import math
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cascades
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import load_file

from dreambooth_jax import report, sharding
from dreambooth_jax.experiment.modes.table import MODES

REPOSITORY = Path(__file__).parents[2]
XLA_FLAGS = (
    f"{os.environ['XLA_FLAGS']} --xla_cpu_use_fusion_emitters=false"  # see tests/conftest.py
)
# All 8 devices; batches and weights are split, the small leaves of these models as well.
MESH = {"mesh__data": 4, "mesh__fsdp": 2, "sharding__min_bytes": 0}
_SMALL = {"unet": cascades.ONE_LEVEL, "text_encoder": {"num_layers": 1}}
STEPS = {"base": 6, "upscaler": 4}
_SHORT = {
    "prior.num_images": 6,
    "prior.batch_size": 2,  # three blocks: there is a middle to be stopped in
    "sample.batch_size": 2,
    "sample.prompts": ("a {subject}", "a {class_noun}"),
    "train.num_steps": STEPS["base"],
    "train.batch_size": 8,
    "train.checkpoint_every": 2,
    "train.sample_every": 3,
    "train.held_out_every": 0,
    "upscaler.num_steps": STEPS["upscaler"],
    "upscaler.batch_size": 8,
    "export.dtype": "float32",  # so that equal exports are equal weights
}
# Sends itself a signal just before it does a certain thing to a file. Python tells of each as an
# audit event with arguments: "open <path> <mode>", "os.rename <from> <to>", "os.mkdir <path> …".
_SIGNALLED = """
import os, re, runpy, sys

number, pattern, left = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def hook(event, arguments):
    global left
    if event in ("open", "os.rename", "os.mkdir"):
        if re.search(pattern, " ".join(map(str, (event, *arguments[:2])))):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)

sys.addaudithook(hook)
sys.argv[1:] = sys.argv[4:]
runpy.run_module("dreambooth_jax.main", run_name="__main__", alter_sys=True)
"""


def settings(stages: Mapping[str, Path | str], /, **changed: Any) -> dict[str, Any]:
    """The settings of a short run by dotted key; in `changed` a dot is written `__`."""
    models = {f"{kind}_model": str(folder) for kind, folder in stages.items()}
    return _SHORT | models | {key.replace("__", "."): value for key, value in changed.items()}


def config(stages: Mapping[str, Path | str], /, **changed: Any) -> ConfigDict:
    """The same as a configuration, for runs in this process."""
    path = REPOSITORY / "configs" / "imagen_like.py"
    c = runpy.run_path(str(path))["get_config"]("smoke")
    c.update_from_flattened_dict(settings(stages, **changed))
    return c


def run_here(c: ConfigDict, folder: Path) -> Path:
    """`experiment.run` in this process."""
    return here(MODES["train"].function, c, folder)


def here(mode: Callable[[ConfigDict, Path], Path], c: ConfigDict, folder: Path) -> Path:
    """A mode of the main command in this process, on the devices that the mesh asks for.

    A mesh left open is one device, not all 8 of the tests: there the programs, those of Orbax among
    them, take three times as long to compile. `MESH` asks for 8.
    """
    count = math.prod(c.mesh[axis] for axis in sharding.AXES if c.mesh[axis] != -1)
    some = functools.partial(sharding.make_mesh, devices=jax.devices()[:count])
    with mock.patch.object(sharding, "make_mesh", some):
        return mode(c, folder)


def flags(stages: Mapping[str, Path | str], workdir: Path, /, **changed: Any) -> list[str]:
    """The same as a command line."""
    cache = {"compile__cache_dir": os.environ["JAX_COMPILATION_CACHE_DIR"]}
    words = [f"--config.{k}={v}" for k, v in settings(stages, **cache | changed).items()]
    return ["--config=configs/imagen_like.py:smoke", f"--workdir={workdir}", *words]


def start(
    arguments: list[str],
    *,
    devices: int = 1,
    signalled: tuple[int, str, int] | None = None,
    first: str = "",
) -> subprocess.Popen[str]:
    """The command in a process of its own.

    signalled: number of the signal, pattern of the audit event, at which occurrence; first: Python
    that runs before it.
    """
    program = ["-m", "dreambooth_jax.main"]
    if signalled or first:
        program = ["-c", f"{first}\n{_SIGNALLED}", *map(str, signalled or (0, "a^", 0))]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=REPOSITORY,
        env=os.environ | simulated(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(arguments: list[str], *, expect: int = 0, **how: Any) -> str:
    """The command's output, once it ended; it must end with the exit status `expect`."""
    process = start(arguments, **how)
    output = finish(process)
    assert process.returncode == expect, output[-5000:]
    return output


def together(
    arguments: list[str], killed_at: str = "", *, host_timeout: int = 45, first: str = ""
) -> tuple[list[int], list[str], list[float]]:
    """Codes, outputs and times of ending of the command in two processes with 4 devices each.

    killed_at: pattern of the first audit event at which process 1 kills itself; first: as `start`.
    """
    port = free_port()
    arguments = [*arguments, f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    arguments.append(f"--host_timeout={host_timeout}")
    end = (int(signal.SIGKILL), killed_at, 1) if killed_at else None
    processes = [
        start([*arguments, f"--process_id={k}"], devices=4, signalled=signalled, first=first)
        for k, signalled in enumerate((None, end))
    ]
    outputs, ended = ["", ""], [0.0, 0.0]
    try:
        for number in (1, 0):
            outputs[number] = finish(processes[number])
            ended[number] = time.monotonic()
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs, ended


def free_port() -> int:
    """One of this computer's that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two(
    program: str, *arguments: object, devices: int = 1, timeout: float
) -> list[subprocess.CompletedProcess[str]]:
    """What came of a program in two processes, as 0 and 1; one that hangs is killed.

    Its arguments are a free port, its own number, and `arguments`.
    """
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, (port, number, *arguments))],
            cwd=REPOSITORY,
            env=os.environ | simulated(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        results = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()  # no harm to one that has ended
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *result)
        for process, result in zip(processes, results, strict=True)
    ]


def simulated(count: int) -> dict[str, str]:
    """The environment that simulates as many."""
    flag = "--xla_force_host_platform_device_count"
    return {"XLA_FLAGS": re.sub(rf"{flag}=\d+", f"{flag}={count}", XLA_FLAGS)}


def finish(process: subprocess.Popen[str]) -> str:
    """Its output, once it ended; one that hangs is killed."""
    try:
        return process.communicate(timeout=600)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def cascade(factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by stage of a cascade that is smaller still than `tiny_cascade`.

    Made once per session, whichever module or worker process asks first. Not to be changed.
    """
    root = _shared(factory)
    stages = {kind: root / "small_cascade" / kind for kind in ("base", "upscaler")}
    # The base learned its variance, which is fixed when it is trained: another program then draws.
    small = {"base": _SMALL, "upscaler": _SMALL | {"scheduler": {"variance_type": "fixed_small"}}}
    with _alone(root / "small_cascade.lock"):
        for seed, (kind, folder) in enumerate(stages.items()):
            if not (folder / "unet").is_dir():
                cascades.make(folder, kind, seed=seed, **small[kind])
    return stages


def reference(factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """That cascade, and the folder of a run of it on one device that nothing disturbed.

    Made once per session as well.
    """
    stages, folder = cascade(factory), _shared(factory) / "undisturbed"
    with _alone(folder.with_suffix(".lock")):
        if not report.is_final(folder / "report.html"):
            run(flags(stages, folder))
    return stages, folder


def _shared(factory: pytest.TempPathFactory) -> Path:
    """The session's folder, the same for all workers of pytest-xdist."""
    root = factory.getbasetemp()
    return root.parent if "PYTEST_XDIST_WORKER" in os.environ else root


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def pictures(
    folder: Path,
    names: Sequence[str],
    rng: np.random.Generator,
    *,
    captions: Sequence[str] = (),
    masks: bool = False,
) -> Path:
    """Makes a folder of noise, the first pictures with captions beside them, all with masks."""
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        pixels = rng.integers(0, 256, (24, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        if k < len(captions):
            (folder / f"{name}.txt").write_text(captions[k])
        if masks:
            mask = np.zeros((24, 30), np.uint8)
            mask[6:18, 8:22] = 255
            Image.fromarray(mask).save(folder / f"{name}.mask.png")
    return folder


def lines(workdir: Path, stage: str) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` about a stage, as they stand."""
    found = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if f"{stage}/loss" in line]


def weights(folder: Path) -> dict[str, np.ndarray]:
    """Every array of the weight files below `folder`, by file and name."""
    return {
        f"{file.relative_to(folder)}: {name}": array
        for file in sorted(folder.rglob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def different(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> set[str]:
    """The names of arrays that are not the same in both, bit for bit."""
    assert a.keys() == b.keys()
    return {name for name in a if a[name].tobytes() != b[name].tobytes()}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
