"""1 device, 8 devices, and 2 processes of 4 devices give the same numbers; one process writes."""

import importlib.util
import math
import signal
import socket
from pathlib import Path

import commands
import pytest

from dreambooth_jax.evaluate import perceptual


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    return commands.reference(tmp_path_factory)


def assert_same_losses(folder: Path, reference: Path, stage: str) -> None:
    """Every loss within 1e-4 of the other run's, relative to it."""
    lines, expected = commands.lines(folder, stage), commands.lines(reference, stage)
    assert [line["step"] for line in lines] == [*range(1, commands.STEPS[stage] + 1)]
    for a, b in zip(lines, expected, strict=True):
        names = [name for name in b if name.startswith(f"{stage}/loss")]
        assert len(names) == 3
        for name in names:
            assert math.isclose(a[name], b[name], rel_tol=1e-4), (name, a, b)


def test_eight_devices(one_device: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    stages, reference = one_device
    commands.run_here(commands.config(stages, **commands.MESH), tmp_path / "run")
    for stage in stages:
        assert_same_losses(tmp_path / "run", reference, stage)


def test_two_processes(one_device: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    stages, reference = one_device
    folder = tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The base alone: an upscaler is trained by the same code.
    alone = {"base": stages["base"], "upscaler": ""}
    # With scores in the end, where a judge is installed: both processes run it.
    judged = importlib.util.find_spec(perceptual.PACKAGE) is not None
    judge = {"evaluate__at_end": judged, "evaluate__batch_size": 8}
    judge |= {"evaluate__encoders": "lpips_alex"}
    flags = commands.flags(alone, folder, stages=("base",), **commands.MESH, **judge)
    flags += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    # Process 1 would be killed before it wrote a file, but for its parts of the checkpoints.
    writes = rf"^(open {folder}/(?!checkpoints)\S+ \S*[wax+]|os\.rename {folder}/(?!checkpoints))"
    processes = [
        commands.start([*flags, "--process_id=0"], devices=4),
        commands.start(
            [*flags, "--process_id=1"], devices=4, signalled=(int(signal.SIGKILL), writes, 1)
        ),
    ]
    try:
        outputs = [commands.finish(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(
        output[-3000:] for output in outputs
    )
    assert_same_losses(folder, reference, "base")
    assert "Photos of the subject" in outputs[0]
    assert "Photos of the subject" not in outputs[1]  # one process tells
    assert (folder / "report.html").is_file()
    assert (folder / "scores.json").is_file() == judged
    before, after = commands.weights(stages["base"]), commands.weights(folder / "export")
    changed = {name.split("/")[0] for name in commands.different(before, after)}
    assert changed == {"unet"}
