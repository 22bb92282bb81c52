"""The main command as a user starts it: what a run leaves behind, and what a wrong one says."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    return commands.reference(tmp_path_factory)


def picture(file: Path) -> tuple[np.ndarray, dict]:
    with Image.open(file) as image:
        return np.asarray(image), json.loads(image.info["dreambooth_jax"])


def test_a_run_leaves_what_the_readme_promises(done: tuple[dict[str, Path], Path]) -> None:
    _, folder = done
    saved = json.loads((folder / "config.json").read_text())
    assert saved["train"]["num_steps"] == commands.STEPS["base"]
    assert saved["upscaler"]["num_steps"] == commands.STEPS["upscaler"]
    for stage, steps in commands.STEPS.items():
        lines = commands.lines(folder, stage)
        assert [line["step"] for line in lines] == [*range(1, steps + 1)]
        for line in lines:
            parts = line[f"{stage}/loss/subject"], line[f"{stage}/loss/prior"]
            assert min(parts) > 0
            assert math.isclose(line[f"{stage}/loss"], sum(parts), rel_tol=1e-5)  # λ is 1
        kept = {path.name for path in (folder / "checkpoints" / stage).iterdir()}
        assert kept == {str(steps - 2), str(steps)}  # train.max_to_keep is 2
    assert sorted(path.name for path in folder.glob("prior/*.png")) == [
        f"{i:05d}.png" for i in range(6)
    ]
    manifest = json.loads((folder / "prior" / "manifest.json").read_text())
    assert manifest["made_by"]["prompt"] == "a bird"
    assert len({image["seed"] for image in manifest["images"].values()}) == 6
    page = (folder / "report.html").read_text()
    assert "Before and after" in page
    assert not re.search(r"""(src|href)=["']?(http|/)""", page)  # one file, nothing is fetched
    assert not list(folder.rglob("*tmp*"))
    assert not list(folder.rglob("*.old"))


def test_only_the_networks_changed(done: tuple[dict[str, Path], Path]) -> None:
    stages, folder = done
    for stage, before in stages.items():
        a, b = commands.weights(before), commands.weights(folder / "export" / stage)
        changed = commands.different(a, b)
        assert changed
        assert {name.split("/")[0] for name in changed} == {"unet"}
        assert all(np.isfinite(array).all() for array in b.values())


def test_pictures_say_how_they_were_made(done: tuple[dict[str, Path], Path]) -> None:
    _, folder = done
    grids = ["after", "base-000003", "base-000006", "before", "upscaler-000003"]
    assert sorted(path.name for path in folder.glob("samples/*")) == grids
    told = {}
    for label in grids:
        files = sorted((folder / "samples" / label).iterdir())
        assert [file.name for file in files] == ["00_00.png", "01_00.png"]
        for file in files:
            pixels, about = picture(file)
            assert pixels.shape == (16, 16, 3)
            assert about["weights"] == label
            told[label, file.name] = about["prompt"], about["seed"]
    first, second = told["before", "00_00.png"], told["before", "01_00.png"]
    assert first[0].startswith("a ")
    assert first[0].endswith(" bird")
    assert len(first[0].split()) == 3
    assert second[0] == "a bird"
    assert first[1] == second[1]  # the seed is that of the column
    for label in grids:
        assert told[label, "00_00.png"] == first
        assert told[label, "01_00.png"] == second
    before, _ = picture(folder / "samples" / "before" / "00_00.png")
    after, _ = picture(folder / "samples" / "after" / "00_00.png")
    assert not np.array_equal(before, after)


def test_a_finished_run_is_left_alone(done: tuple[dict[str, Path], Path]) -> None:
    stages, folder = done
    before = commands.contents(folder)
    output = commands.run(commands.flags(stages, folder))
    assert f"Finished: {folder / 'report.html'}" in output
    output = commands.run(commands.flags(stages, folder, seed=5), expect=1)
    assert "seed: the run was started with 0, now it is 5" in output
    assert "Traceback" not in output
    assert commands.contents(folder) == before


def test_a_misspelt_setting_ends_it_at_once(tmp_path: Path, repository: Path) -> None:
    words = [
        "--config=configs/imagen_like.py:smoke",
        "--config.optim.learning_rat=1",
        f"--workdir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth_jax.main", *words],
        cwd=repository,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "--config.optim.learning_rat: no such key. Did you mean 'optim.learning_rate'?"
    ]
    assert not (tmp_path / "run").exists()


def test_a_judge_that_is_not_there_ends_it_before_anything_is_loaded(tmp_path: Path) -> None:
    words = [
        "--config=configs/imagen_like.py:smoke",
        "--mode=evaluate",
        "--config.evaluate.encoders=('clip_vitl14', 'lpips_alex')",
        "--config.evaluate.clip_vitl14=runs/nowhere/clip",
        "--config.evaluate.lpips_alex=runs/nowhere/lpips",
        f"--workdir={tmp_path / 'run'}",
    ]
    output = commands.run(words, expect=1)
    assert "Traceback" not in output
    assert "clip_vitl14: no model folder 'runs/nowhere/clip'" in output
    assert "lpips_alex: no 'runs/nowhere/lpips'" in output
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_usable_photo(
    done: tuple[dict[str, Path], Path], tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "notes.txt").write_text("holiday")
    Image.new("RGB", (10, 10)).save(photos / "icon.png")
    cache = tmp_path / "compiled"
    flags = commands.flags(
        done[0], tmp_path / "run", subject__images=photos, compile__cache_dir=cache
    )
    output = commands.run(flags, expect=1)
    assert "Traceback" not in output
    assert "No usable photo" in output
    assert "notes.txt  not an image" in output
    assert "icon.png   too small (10×10" in output
    compiled = os.listdir(cache) if cache.exists() else []
    assert set(compiled) <= {"times.json"}


def test_a_tpu_that_does_not_start_ends_it_with_the_remedy(
    tmp_path: Path, repository: Path
) -> None:
    """There is none here: what jax says is the same when another program holds it."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "dreambooth_jax.main"),
            *("--config=imagen_like:smoke", f"--workdir={tmp_path / 'run'}"),
        ],
        cwd=repository,
        env=os.environ | {"JAX_PLATFORMS": "tpu,cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "The accelerator does not start: " in done.stderr and "lsof" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
