"""A run whose folder is gs://… is the run that it is on a disk, killed and continued as well."""

import contextlib
import importlib.util
import json
import re
import signal
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import buckets
import commands
import pytest

from dreambooth_jax import files, metrics

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gcp_storage_emulator") is None
    or importlib.util.find_spec("gcsfs") is None,
    reason="needs gcsfs and a server that stands in for Google's (the extra test)",
)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with buckets.emulated() as address:
        yield address


@pytest.mark.long
def test_a_run_in_a_bucket(bucket: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    stages, reference = commands.reference(tmp_path_factory)
    photos = resources.files("dreambooth_jax") / "assets" / "subject"
    files.send(Path(str(photos)), files.at(f"{bucket}/photos"))
    run = files.at(f"{bucket}/runs/bird")
    flags = commands.flags(stages, run, subject__images=f"{bucket}/photos")

    # Killed while it writes a picture of the grid after the last step of the base.
    process = commands.start(flags, signalled=(int(signal.SIGKILL), r"^open \S+/01_00\.png w", 3))
    output = commands.finish(process)
    assert process.returncode == -signal.SIGKILL, output[-3000:]
    found = buckets.contents(str(run))
    assert "samples/before/01_00.png" in found
    assert "checkpoints/base/2/commit_success.txt" in found
    assert "samples/base-000006/00_00.png" in found
    assert "samples/base-000006/01_00.png" not in found
    assert json.loads(found["metrics.jsonl"].splitlines()[-1])["step"] >= 4

    output = commands.run(flags)
    assert re.search("base: goes on from step [246] of 6", output)
    assert f"Done. The report: {run}/report.html" in output
    found = buckets.contents(str(run))
    expected = commands.contents(reference)
    same = ("prior/", "samples/", "export/")
    assert {n for n in found if n.startswith(same)} == {n for n in expected if n.startswith(same)}
    for name in found:
        if name.startswith(same) and not name.endswith("README.md"):
            assert found[name] == expected[name], name
    lines, before = (metrics.read(place / "metrics.jsonl") for place in (run, reference))
    assert [line["step"] for line in lines] == [line["step"] for line in before]


def test_files_of_a_bucket(bucket: str, tmp_path: Path) -> None:
    folder = files.at(f"{bucket}/some")
    files.write_text(folder / "a.json", "first")
    with pytest.raises(KeyError):
        buckets.break_off(folder / "a.json")
    assert (folder / "a.json").read_text() == "first"
    with files.filled(folder / "export", last="index") as place:
        (place / "sub").mkdir(parents=True)
        (place / "index").write_text("1")
        (place / "sub" / "index").write_text("2")
    with files.filled(folder / "export") as place:  # replaces all of it
        place.mkdir()
        (place / "other").write_text("3")
    assert buckets.contents(str(folder)) == {"a.json": b"first", "export/other": b"3"}
    with pytest.raises(FileNotFoundError, match=r"no file in gs://bucket/nothing"):
        files.here(files.at(f"{bucket}/nothing"))


def test_numbers_in_a_bucket_go_on(bucket: str) -> None:
    path = files.at(f"{bucket}/metrics.jsonl")
    for first in (1, 3):
        with contextlib.closing(metrics.JsonlWriter(path)) as writer:
            for step in (first, first + 1):
                writer.write_scalars(step, {"loss": 1 / step})
    assert {line["step"]: line["loss"] for line in metrics.read(path)} == {
        step: 1 / step for step in (1, 2, 3, 4)
    }
