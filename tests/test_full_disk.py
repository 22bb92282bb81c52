"""A disk without room: the error names the file that was to be written, and hides no other."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import files, metrics, untrusted, weights
from dreambooth_jax.experiment.parts import drawing
from dreambooth_jax.experiment.parts.workdir import Workdir

FULL = Path("/dev/full")  # each byte that is written there finds no space
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")


def fill(part: Path) -> None:
    """What is written to this file next finds no space."""
    part.unlink(missing_ok=True)
    part.symlink_to(FULL)


def picture(file: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    drawing.save_png(file, pixels, about={"prompt": "a"})


def tensors(file: Path) -> None:
    with files.written(file) as part:
        weights.save(part, {"a": np.zeros(4, np.float32)})


def copied(file: Path) -> None:
    with files.written(file) as part, part.open("wb") as target:
        target.write(b"x" * 2**20)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("config.json", lambda file: files.write_text(file, "{}")),
        ("00_00.png", picture),
        ("model.bin", copied),
    ],
)
def test_a_file_that_finds_no_room_is_named_as_it_will_be_called(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    file = tmp_path / name
    fill(file.with_suffix(".tmp"))
    with pytest.raises(OSError, match=r"cannot be written: No space left on device\.") as error:
        write(file)
    told = str(error.value)
    assert error.value.errno == errno.ENOSPC and str(file) in told and ".tmp" not in told
    assert "MB are free there: make room" in told
    assert list(tmp_path.iterdir()) == []


def test_a_librarys_own_error_names_that_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors raises an error of its own, with the system's text in it."""

    def save_file(tensors: object, file: str, metadata: object) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", save_file)
    with pytest.raises(OSError, match="No space left on device") as error:
        tensors(tmp_path / "lora.safetensors")
    told = str(error.value)
    assert str(tmp_path / "lora.safetensors") in told and ".tmp" not in told
    assert "MB are free there" in told


def test_errors_over_other_files_and_connections_stay_as_they_are(tmp_path: Path) -> None:
    for error in (FileNotFoundError(2, "No such file", "/x/photo.png"), ConnectionError("reset")):
        with pytest.raises(type(error)) as caught, files.written(tmp_path / "a.json"):
            raise error
        assert caught.value is error


def test_a_line_of_metrics_names_their_file(tmp_path: Path) -> None:
    writer = metrics.JsonlWriter(tmp_path / "metrics.jsonl")
    fill(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written: No space left"):
        writer.write_scalars(1, {"base/loss": 1.0})


def opened(folder: Path) -> Workdir:
    return Workdir.open(folder, configs.resolve(configs.base_config()))


def test_the_seconds_of_a_part_name_their_file_and_hide_nothing(tmp_path: Path) -> None:
    workdir = opened(tmp_path)
    fill(tmp_path / "timings.tmp")
    with pytest.raises(OSError, match=r"timings\.json cannot be written"), workdir.timed("a"):
        pass
    fill(tmp_path / "timings.tmp")
    with pytest.raises(KeyError, match="of the run"), workdir.timed("a"):
        raise KeyError("of the run")
    with workdir.timed("a"):
        pass
    assert [*json.loads((tmp_path / "timings.json").read_text())] == ["a"]
    workdir.close()


def leave(workdir: Workdir, error: Exception | None) -> None:
    with workdir:
        if error is not None:
            raise error


def test_closing_a_workdir_hides_no_error_of_its_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for number, error in enumerate((KeyError("of the run"), None)):
        workdir = opened(tmp_path / str(number))
        workdir.writer.close = full  # type: ignore[method-assign]  # as TensorBoard's would
        with pytest.raises(OSError if error is None else KeyError):
            leave(workdir, error)
        again = opened(tmp_path / str(number))  # the claim was given free
        again.close()
    assert caplog.text.count("No space left on device") == 1


def test_the_room_is_told_where_it_is_what_lacks(tmp_path: Path) -> None:
    lacks = untrusted.unwritten(tmp_path / "a", OSError(errno.ENOSPC, "x"))
    other = untrusted.unwritten(tmp_path / "a", OSError(errno.EACCES, "x"))
    assert "make room" in str(lacks) and "make room" not in str(other)
    assert isinstance(other, PermissionError) and "Permission denied" in str(other)
