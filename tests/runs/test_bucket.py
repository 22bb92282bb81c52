"""A run, or a model, whose folder is gs://… is what it is on a disk; runs are killed as well."""

import contextlib
import importlib.util
import json
import re
import signal
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import buckets
import commands
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import families, files, metrics, pipeline
from dreambooth_jax.data import subject_table

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
    assert re.search("base: resumes at step [246] of 6", output)
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

    # Its export is a model like any other: from there as well it draws what the run drew last.
    cache = tmp_path_factory.mktemp("cache")
    exported = {kind: f"{run}/export/{kind}" for kind in stages}
    drawn = tmp_path_factory.mktemp("drawn")
    flags = commands.flags(exported, drawn, hub__cache_dir=str(cache))
    commands.run(["--mode=sample", *flags])
    (folder,) = (drawn / "samples").iterdir()
    for name in ("00_00.png", "01_00.png"):
        last = np.asarray(Image.open(reference / "samples" / "after" / name))
        np.testing.assert_array_equal(np.asarray(Image.open(folder / name)), last)


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


@pytest.fixture
def model(bucket: str, tiny_cascade: dict[str, Path]) -> Iterator[str]:
    """A model in the bucket, beside it what a stage does not read."""
    address = f"{bucket}/models/tiny"
    files.send(tiny_cascade["base"], files.at(address))
    files.write_text(files.at(f"{address}/unet/diffusion_pytorch_model.bin"), "a pickle")
    yield address
    files.remove(files.at(address))


def test_a_model_in_a_bucket_is_the_model_on_a_disk(
    model: str, tiny_cascade: dict[str, Path], tmp_path: Path
) -> None:
    stage = families.open_stage(model, kind="base", cache_dir=str(tmp_path))
    there = families.open_stage(str(tiny_cascade["base"]), kind="base")
    assert commands.contents(stage.folder) == commands.contents(there.folder)
    assert not any(path.suffix in (".bin", ".tmp") for path in tmp_path.rglob("*"))
    flat, expected = pipeline.read_weights(stage), pipeline.read_weights(there)
    assert flat.keys() == expected.keys()
    for name in flat:
        np.testing.assert_array_equal(flat[name], expected[name])


def test_a_model_in_a_bucket_is_copied_once_and_follows_it(model: str, tmp_path: Path) -> None:
    def located(**how: Any) -> Path:
        return pipeline.locate(model, kind="base", cache_dir=str(tmp_path), **how)

    def numbers(folder: Path) -> dict[str, int]:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.stat().st_ino for path in paths}

    with pytest.raises(
        FileNotFoundError, match=r"gs://bucket/models/tiny is not in .* hub.offline=True"
    ):
        located(offline=True)
    assert {Path(name).suffix for name in numbers(located(weights=False))} >= {".json"}
    assert not any(name.endswith(".safetensors") for name in numbers(located(weights=False)))
    first = numbers(located())
    assert "unet/diffusion_pytorch_model.safetensors" in first
    assert numbers(located()) == numbers(located(offline=True)) == first
    assert numbers(located(weights=False)) == first  # weights of before stay

    changed, gone = "model_index.json", "unet/diffusion_pytorch_model.safetensors"
    files.write_text(files.at(f"{model}/{changed}"), "{}")
    files.at(f"{model}/{gone}").unlink()
    assert numbers(located(offline=True)) == first
    second = numbers(located())
    assert second.keys() == first.keys() - {gone}
    assert {name for name in second if second[name] != first[name]} == {changed}
    assert (located() / changed).read_text() == "{}"


def test_no_model_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file in gs://bucket/nothing that is \*\.json"):
        pipeline.locate(f"{bucket}/nothing", kind="base", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="expected a folder, or an address gs://BUCKET/FOLDER"):
        pipeline.locate("s3://bucket/model", kind="base", cache_dir=str(tmp_path))
    assert not [*tmp_path.iterdir()]


def test_numbers_in_a_bucket_go_on(bucket: str) -> None:
    path = files.at(f"{bucket}/metrics.jsonl")
    for first in (1, 3):
        with contextlib.closing(metrics.JsonlWriter(path)) as writer:
            for step in (first, first + 1):
                writer.write_scalars(step, {"loss": 1 / step})
    assert {line["step"]: line["loss"] for line in metrics.read(path)} == {
        step: 1 / step for step in (1, 2, 3, 4)
    }


def test_a_table_of_subjects_in_a_bucket_has_its_photos_beside_it(bucket: str) -> None:
    place = f"{bucket}/fleet"
    lines = ("name,images,class_noun", "a,photos/a,dog", "b,gs://x/b,cat", "c,/far/c,cat")
    files.write_text(files.at(f"{place}/table.csv"), "\n".join(lines))
    rows = subject_table.read(files.at(f"{place}/table.csv"))
    assert [row.images for row in rows] == [f"{place}/photos/a", "gs://x/b", "/far/c"]
    with pytest.raises(FileNotFoundError, match=r"none\.csv is missing"):
        subject_table.read(files.at(f"{place}/none.csv"))
