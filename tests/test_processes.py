"""1 device, 8 devices, and 2 processes of 4 devices give the same numbers; one process writes.

When a process is killed the other ends as well, and the run goes on, also on fewer devices.
"""

import importlib.util
import math
import re
import shutil
import signal
import time
from pathlib import Path

import commands
import pytest

from dreambooth_jax.evaluate import perceptual


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    return commands.reference(tmp_path_factory)


def assert_same_losses(folder: Path, reference: Path, stage: str) -> None:
    """Every loss within 1e-4 of the other run's, relative to it; of steps made twice as well."""
    expected = {line["step"]: line for line in commands.lines(reference, stage)}
    lines = commands.lines(folder, stage)
    assert {line["step"] for line in lines} == {*range(1, commands.STEPS[stage] + 1)}
    for a in lines:
        b = expected[a["step"]]
        names = [name for name in b if name.startswith(f"{stage}/loss")]
        assert len(names) == 3
        for name in names:
            assert math.isclose(a[name], b[name], rel_tol=1e-4), (name, a, b)


def test_eight_devices(one_device: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    stages, reference = one_device
    commands.run_here(commands.config(stages, **commands.MESH), tmp_path / "run")
    for stage in stages:
        assert_same_losses(tmp_path / "run", reference, stage)


def together(
    flags: list[str], killed_at: tuple[str, int], *, host_timeout: int = 45
) -> tuple[list[int], list[str], list[float]]:
    """Codes, outputs and times of ending of two processes with 4 devices each.

    killed_at: pattern of the audit event, and its occurrence, at which process 1 kills itself.
    """
    flags = [*flags, f"--coordinator=127.0.0.1:{commands.free_port()}", "--num_processes=2"]
    flags.append(f"--host_timeout={host_timeout}")
    processes = [
        commands.start([*flags, "--process_id=0"], devices=4),
        commands.start(
            [*flags, "--process_id=1"], devices=4, signalled=(int(signal.SIGKILL), *killed_at)
        ),
    ]
    outputs, ended = ["", ""], [0.0, 0.0]
    try:
        for number in (1, 0):
            outputs[number] = commands.finish(processes[number])
            ended[number] = time.monotonic()
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs, ended


def test_two_processes(one_device: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    stages, reference = one_device
    folder = tmp_path / "run"
    # The base alone: an upscaler is trained by the same code.
    alone = {"base": stages["base"], "upscaler": ""}
    # With scores in the end, where a judge is installed: both processes run it.
    judged = importlib.util.find_spec(perceptual.PACKAGE) is not None
    changed = {"stages": ("base",), "evaluate__at_end": judged, "evaluate__batch_size": 8}
    changed |= {"evaluate__encoders": "lpips_alex"}
    flags = commands.flags(alone, folder, **commands.MESH, **changed)

    # Process 1 dies while it writes its part of the second checkpoint.
    part = rf"^open {folder}/checkpoints/base/\S*\b4\b\S* \S*[wax+]"
    codes, outputs, ended = together(flags, (part, 1), host_timeout=8)
    assert codes[1] == -signal.SIGKILL, outputs[1][-3000:]
    assert codes[0] not in (0, None), outputs[0][-3000:]
    assert ended[0] - ended[1] < 120
    assert re.search("No sign of life from process 1 .* base step 2", outputs[0])
    assert not (folder / "report.html").exists()
    fewer = tmp_path / "fewer"
    shutil.copytree(folder, fewer)

    # Process 1 would be killed before it wrote a file, but for its parts of the checkpoints.
    writes = rf"^(open {folder}/(?!checkpoints)\S+ \S*[wax+]|os\.rename {folder}/(?!checkpoints))"
    already = len(commands.lines(folder, "base"))
    codes, outputs, _ = together(flags, (writes, 1))
    assert codes == [0, 0], "\n".join(output[-3000:] for output in outputs)
    assert commands.lines(folder, "base")[already]["step"] == 3  # on from the first checkpoint
    assert_same_losses(folder, reference, "base")
    assert "Photos of the subject" in outputs[0]
    assert "Photos of the subject" not in outputs[1]  # one process tells
    assert (folder / "report.html").is_file()
    assert (folder / "scores.json").is_file() == judged
    before, after = commands.weights(stages["base"]), commands.weights(folder / "export")
    changed_parts = {name.split("/")[0] for name in commands.different(before, after)}
    assert changed_parts == {"unet"}

    # What the two left when one died, on one process with 4 devices.
    four = {**commands.MESH, "mesh__data": 2, "stages": ("base",), "evaluate__at_end": False}
    commands.run_here(commands.config(alone, **four), fewer)
    assert_same_losses(fewer, reference, "base")
