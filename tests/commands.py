"""The main command as a child process, on a cascade that compiles in seconds, and ways to end it early."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cascades
import jax
import numpy as np
from safetensors.numpy import load_file

# One block and one layer: a third of the time that `cascades.UNET` takes to trace and compile.
_SMALL = {
    "unet": {
        "block_out_channels": [16],
        "down_block_types": ["SimpleCrossAttnDownBlock2D"],
        "up_block_types": ["SimpleCrossAttnUpBlock2D"],
    },
    "text_encoder": {"num_layers": 1},
}
# Blocks of two class images, so that there is a middle to be stopped in.
_SHORT = {
    "prior.num_images": 6,
    "prior.batch_size": 2,
    "sample.batch_size": 2,
    "sample.prompts": ("a {subject}", "a {class_noun}"),
    "train.num_steps": 5,
    "train.checkpoint_every": 2,
    "train.sample_every": 2,
    "upscaler.num_steps": 3,
}
# Signals itself just before it does something to a file: `number event pattern count`, as Python's
# audit events name it, at the count-th time that the pattern is found in the path.
_SIGNALLED = """
import os, re, runpy, signal, sys

number, event, pattern, left = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])

def hook(name, arguments):
    global left
    if name == event and re.search(pattern, str(arguments[0])):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

sys.addaudithook(hook)
sys.argv[1:] = sys.argv[5:]
runpy.run_module("dreambooth_jax.main", run_name="__main__", alter_sys=True)
"""


def cascade(root: Path) -> dict[str, Path]:
    """Folders of a cascade that is smaller still than `tiny_cascade`, by stage."""
    return {
        kind: cascades.make(root / kind, kind, seed=i, **_SMALL)
        for i, kind in enumerate(("base", "upscaler"))
    }


def flags(stages: Mapping[str, Path], workdir: Path, **changed: Any) -> list[str]:
    """The command line of a short run; `changed` settings are written with `__` for each dot."""
    settings = _SHORT | {"base_model": stages["base"], "upscaler_model": stages["upscaler"]}
    settings |= {"compile.cache_dir": jax.config.jax_compilation_cache_dir}
    settings |= {key.replace("__", "."): value for key, value in changed.items()}
    return [
        "--config=configs/imagen_like.py:smoke",
        f"--workdir={workdir}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]


def start(
    arguments: list[str], *, devices: int = 1, signalled: tuple[int, str, str, int] | None = None
) -> subprocess.Popen[str]:
    """The command in a process of its own; `signalled`: which signal at which audit event."""
    program = ["-c", _SIGNALLED, *map(str, signalled)] if signalled else ["-m", "dreambooth_jax.main"]
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(arguments: list[str], *, expect: int = 0, **how: Any) -> str:
    """The command's output, once it ended; it must end with the exit status `expect`."""
    with start(arguments, **how) as process:
        output, _ = process.communicate()
    assert process.returncode == expect, output[-5000:]
    return output


def exported(folder: Path) -> dict[str, np.ndarray]:
    """Every array of every weight file below `folder`, by file and name."""
    return {
        f"{file.relative_to(folder)}:{name}": array
        for file in sorted(folder.rglob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def same(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> bool:
    """Whether both have the same arrays, bit for bit."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].tobytes() == b[name].tobytes() for name in a
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below `folder`."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
