"""A run that is killed, stopped or damaged, and started again, ends as one that was not."""

import json
import re
import signal
from pathlib import Path

import commands
import pytest

from dreambooth_jax import metrics

LINE = r"^open \S+/metrics\.jsonl a"  # a line of it is about to be written


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    return commands.reference(tmp_path_factory)


def assert_as(folder: Path, undisturbed: Path) -> None:
    """Weights, pictures and numbers are those of the other run."""
    assert not commands.different(
        commands.weights(folder / "export"), commands.weights(undisturbed / "export")
    )
    for part in ("prior", "samples", "export"):
        assert commands.contents(folder / part) == commands.contents(undisturbed / part)
    for stage, steps in commands.STEPS.items():
        loss = f"{stage}/loss"
        expected = {line["step"]: line[loss] for line in commands.lines(undisturbed, stage)}
        # All lines, those of steps that were made twice as well.
        assert all(line[loss] == expected[line["step"]] for line in commands.lines(folder, stage))
        records = metrics.read(folder / "metrics.jsonl")
        found = [record["step"] for record in records if loss in record]
        assert found == [*range(1, steps + 1)]


MOMENTS = [
    # The first class images are there, the manifest knows none of them yet.
    (r"^os\.rename \S+/prior/00001\.tmp", 1),
    (r"^os\.rename \S+/prior/00003\.tmp", 1),  # in the second of three blocks
    (LINE, 5),  # between checkpoints of the base
    # In the middle of a save: the arrays are being written.
    (r"^os\.mkdir \S+/base/[46]\.orbax-checkpoint-tmp/\S+/array_metadatas ", 1),
    (r"^os\.rename \S+/samples/upscaler-000003/01_00\.tmp", 1),  # half a grid is there
    # A checkpoint is written, not yet committed.
    (r"^os\.rename \S+/upscaler/[24]\.orbax-checkpoint-tmp ", 1),
    (r"^os\.rename \S+/export/upscaler\.tmp ", 1),  # one of two stages is exported
]


@pytest.mark.long
def test_kill_9(undisturbed: tuple[dict[str, Path], Path], tmp_path: Path) -> None:
    stages, reference = undisturbed
    flags = commands.flags(stages, tmp_path / "run")
    first_image = tmp_path / "run" / "prior" / "00000.png"
    made = None
    for n, moment in enumerate(MOMENTS):
        signalled = (int(signal.SIGKILL), *moment)
        commands.run(flags, expect=-signal.SIGKILL, signalled=signalled)
        if n == 1:
            made = first_image.stat().st_ino
    assert (tmp_path / "run" / "export" / "base").is_dir()
    assert not (tmp_path / "run" / "export" / "upscaler").exists()
    commands.run(flags)
    assert first_image.stat().st_ino == made  # kept, not drawn again
    assert_as(tmp_path / "run", reference)


def test_signals_save_and_a_flipped_byte_is_refused(
    undisturbed: tuple[dict[str, Path], Path], tmp_path: Path
) -> None:
    stages, reference = undisturbed
    folder = tmp_path / "run"
    flags = commands.flags(stages, folder)

    moment = (int(signal.SIGTERM), r"^os\.rename \S+/prior/00000\.tmp", 1)
    output = commands.run(flags, expect=143, signalled=moment)
    assert "SIGTERM received: the class images so far are kept." in output
    manifest = json.loads((folder / "prior" / "manifest.json").read_text())
    assert list(manifest["images"]) == ["00000.png", "00001.png"]

    output = commands.run(flags, expect=143, signalled=(int(signal.SIGTERM), LINE, 3))
    assert "SIGTERM received: base is saved at step 3. Run the same command to resume." in output
    assert "Traceback" not in output

    newest = folder / "checkpoints" / "base" / "3"
    victim = max(newest.rglob("d/*"), key=lambda file: file.stat().st_size)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)

    # Base again from step 2: four lines, then three of the upscaler.
    output = commands.run(flags, expect=130, signalled=(int(signal.SIGINT), LINE, 7))
    assert re.search(rf"REFUSED checkpoint {newest}: .*(leaf '|{victim.name})", output)
    assert "base: resumes at step 2 of 6" in output
    assert "SIGINT received: upscaler is saved at step 3." in output

    output = commands.run(flags)
    assert "upscaler: resumes at step 3 of 4" in output
    assert_as(folder, reference)


@pytest.mark.long
def test_more_steps_end_as_a_run_that_had_them_from_the_start(
    undisturbed: tuple[dict[str, Path], Path], tmp_path: Path
) -> None:
    stages, reference = undisturbed
    folder = tmp_path / "run"
    few = {"train__num_steps": 4, "upscaler__num_steps": 2}
    commands.run(commands.flags(stages, folder, **few))
    assert (folder / "report.html").is_file()
    output = commands.run(commands.flags(stages, folder))
    assert "base: resumes at step 4 of 6" in output
    assert "upscaler: resumes at step 2 of 4" in output
    assert_as(folder, reference)
    output = commands.run(commands.flags(stages, folder, **few), expect=1)
    assert "train.num_steps: the run was started with 6, now it is 4 (there are fewer" in output
