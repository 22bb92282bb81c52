"""The benchmark as a data set of tensorflow_datasets: no TensorFlow, no metadata, no pixel off."""

import re
import struct
import subprocess
import sys
from pathlib import Path

import benchmark_copies
import numpy as np
import pytest
from PIL import Image, ImageOps

tfds = pytest.importorskip("tensorflow_datasets")
_COMMAND = """
import runpy, sys
runpy.run_module("dreambooth_jax.data.tfds_builder", run_name="__main__")
print("loaded:", sorted({"tensorflow", "torch"} & sys.modules.keys()))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, str]:
    """A checkout of two subjects, the data sets' folder made of it, what the command said."""
    data = benchmark_copies.make(tmp_path_factory.mktemp("checkout"), ["dog2", "bear_plushie"])
    (data / "dataset" / "dog2" / "09.jpg").write_bytes(b"\xff\xd8\xff no more")
    out = tmp_path_factory.mktemp("sets")
    ran = subprocess.run(
        [sys.executable, "-c", _COMMAND, f"--data={data}", f"--out={out}"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return data, out, ran.stdout


def test_the_command_needs_no_tensorflow_and_tells_what_is_left_out(made):
    _, out, said = made
    assert "loaded: []" in said
    assert f"6 photos in {out / 'dreambooth' / '1.0.0'}" in said
    assert "2 of the 30 subjects" in said
    assert re.search(r"dog2: 3 photos kept, 1 skipped(.|\n)*09\.jpg", said)


def test_photos_and_labels_come_back(made):
    data, out, _ = made
    source = tfds.data_source("dreambooth", split="train", data_dir=out)
    names = source.dataset_info.features["subject"].names
    classes = source.dataset_info.features["class"].names
    assert len(source) == 6
    seen = []
    for example in (source[i] for i in range(len(source))):
        name, file = names[example["subject"]], example["file"].decode()
        seen.append((name, file))
        assert classes[example["class"]] == {"dog2": "dog", "bear_plushie": "stuffed animal"}[name]
        assert example["live"] == (name == "dog2")
        with Image.open(data / "dataset" / name / file) as photo:
            assert (photo.format == "MPO") == (file == "00.jpg")
            upright = np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))
        np.testing.assert_array_equal(example["image"], upright)
        assert example["image"].shape == ((40, 32, 3) if file == "00.jpg" else (32, 40, 3))
    files = ["00.jpg", "01.jpg", "02.jpg"]
    assert seen == [(name, file) for name in ("bear_plushie", "dog2") for file in files]


def test_a_folder_is_enough_to_read_it_and_holds_the_prompts(made):
    _, out, _ = made
    builder = tfds.builder_from_directory(out / "dreambooth" / "1.0.0")
    assert len(builder.info.metadata["benchmark_live"]) == 25
    assert "a {subject} wearing a santa hat" in builder.info.metadata["benchmark_live"]
    assert builder.info.splits["train"].num_examples == 6


def test_nothing_but_pixels_travels_on(made):
    data, out, _ = made
    secret = benchmark_copies.MAKER.encode()
    assert secret in (data / "dataset" / "dog2" / "00.jpg").read_bytes()  # the test can tell
    written = [path.read_bytes() for path in out.rglob("*") if path.is_file()]
    assert not any(secret in content or b"Exif" in content for content in written)
    source = tfds.data_source(
        "dreambooth", split="train", data_dir=out, decoders={"image": tfds.decode.SkipDecoding()}
    )
    for i in range(len(source)):
        png, at, chunks = source[i]["image"], 8, set()
        while at < len(png):
            (length,) = struct.unpack(">I", png[at : at + 4])
            chunks.add(png[at + 4 : at + 8])
            at += 12 + length
        assert chunks == {b"IHDR", b"IDAT", b"IEND"}


def test_what_is_no_copy_of_the_benchmark_ends_with_a_message(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "dreambooth_jax.data.tfds_builder", "--data", tmp_path, "--out=x"],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "none of the benchmark's 30 subjects" in ran.stderr
    assert "Traceback" not in ran.stderr
