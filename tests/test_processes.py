"""1 device and 8 devices give the same numbers in a whole run."""

import math
from pathlib import Path

import commands
import pytest

MESH = {"mesh__data": 4, "mesh__fsdp": 2, "sharding__min_bytes": 0}


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
    commands.run_here(commands.config(stages, **MESH), tmp_path / "run")
    for stage in stages:
        assert_same_losses(tmp_path / "run", reference, stage)
