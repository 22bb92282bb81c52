"""The main command on photos of several shapes: killed and resumed it ends as one undisturbed."""

import json
import shutil

import commands
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch", reason="makes a model with PyTorch: install the extra `parity`")
pytest.importorskip("diffusers", reason="makes a model with diffusers: extra `parity`")
import latents

# Sides of the tiny model are multiples of 4, of at most 16 × 16 pixels.
TALL, SQUARE = (20, 12), (16, 16)
SHORT = {
    "stages": ("base",),
    "data__buckets": 3,
    "subject__identifier": "zib",
    "upscaler__num_steps": None,
    "upscaler__batch_size": None,
    "prior__num_images": 3,
    "sample__prompts": ("a {subject}",),
    "sample__num_images": 1,
    "evaluate__at_end": False,
    "train__num_steps": 4,
    "train__batch_size": 4,
    "train__log_every": 1,
    "train__sample_every": 0,
    "train__held_out_every": 4,
    "train__checkpoint_every": 2,
    "optim__learning_rate": 1e-3,
    "sampler__name": "ddim",
    "sampler__num_steps": 2,
}


def config(place, **changed):
    """A small SDXL, and photos of which one is tall."""
    model, photos, rng = place / "model", place / "photos", np.random.default_rng(0)
    if not photos.is_dir():
        latents.make(model, "sdxl")
        photos.mkdir()
        for name, size in (("a", (24, 24)), ("b", (40, 22)), ("c", (30, 32))):
            Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(photos / f"{name}.png")
    own = SHORT | {"subject__images": str(photos)} | changed
    return commands.config({"base": model, "upscaler": ""}, **own)


@pytest.mark.long
def test_eight_devices_take_the_same_steps(tmp_path):
    losses = []
    for name, mesh in (("one", {}), ("eight", commands.MESH)):
        c = config(tmp_path, train__batch_size=8, **mesh)
        commands.run_here(c, tmp_path / name)
        losses.append([line["base/loss"] for line in commands.lines(tmp_path / name, "base")])
    assert len(losses[0]) == 4
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.long
def test_a_run_that_is_killed_and_resumed_is_the_same(tmp_path):
    c, folder = config(tmp_path), tmp_path / "run"
    report = commands.run_here(c, folder)

    # One of three photos is tall, and so is one of three class images.
    made = {(20, 12): folder / "prior" / "20x12", (16, 16): folder / "prior"}
    for (size, place), count in zip(made.items(), (1, 2), strict=True):
        found = [*place.glob("*.png")]
        assert len(found) == count
        for file in found:
            with Image.open(file) as picture:
                assert picture.size == size[::-1]
        manifest = json.loads((place / "manifest.json").read_text())
        told = manifest["made_by"]["samplers"]["base"]["size"]
        assert told == (None if size == SQUARE else list(size))
    lines = commands.lines(folder, "base")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["base/loss"]) for line in lines)
    looked_at = [
        json.loads(line)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if "held_out" in line
    ]
    assert [line["step"] for line in looked_at] == [0, 4]
    text = report.read_text()
    assert "b.png, 12×20, 92% of it" in text  # 36.7 of 40 rows
    assert "cut to 16×16: 94% of it" in text  # 30 of 32 columns

    # Killed amid the class images of one shape, or after step 2: the rest is made again.
    last = [commands.contents(folder / part) for part in ("prior", "export")]
    (folder / "report.html").unlink()
    for part in ("export", "prior/20x12", "checkpoints/base/4"):
        shutil.rmtree(folder / part)
    commands.run_here(c, folder)
    assert [commands.contents(folder / part) for part in ("prior", "export")] == last
    expected = {line["step"]: line["base/loss"] for line in lines}
    again = commands.lines(folder, "base")
    assert len(again) > len(lines)
    assert all(line["base/loss"] == expected[line["step"]] for line in again)

    (folder / "report.html").unlink()
    c.data.buckets = 5
    with pytest.raises(ValueError, match=r"data.buckets: the run was started with 3, now it is 5"):
        commands.run_here(c, folder)
