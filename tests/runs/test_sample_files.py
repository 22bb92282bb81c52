"""--mode=sample with a file of prompts and LoRA files, beside a base model that has them fused."""

import json
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dreambooth_jax import config as configs
from dreambooth_jax import families, weights
from dreambooth_jax.experiment.modes.sample import sample
from dreambooth_jax.experiment.parts import loras
from dreambooth_jax.export import lora_file
from dreambooth_jax.untrusted import FileError

RANK, ALPHA = 2, 1.0
STRENGTHS = {"first": 0.8, "second": -0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return commands.cascade(tmp_path_factory)["base"]


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """Two LoRA files, one of a run's export, and a copy of the base with both fused by numpy."""
    folder, rng = tmp_path_factory.mktemp("loras"), np.random.default_rng(0)
    stage = families.open_stage(str(base), kind="base")
    paths = [path for path, leaf in stage.abstract.items() if path.endswith("/kernel")]
    denoiser = [path for path in paths if stage.is_denoiser(path) and "attentions" in path][:6]
    text = [path for path in paths if stage.is_text(path)][:2]
    assert denoiser and text
    chosen = {"first": [*denoiser, *text], "second": denoiser[2:]}
    changes: dict[str, np.ndarray] = {}
    for name, own in chosen.items():
        trained = {}
        for path in own:
            *window, fan_in, fan_out = stage.abstract[path].shape
            down = rng.normal(size=(*window, fan_in, RANK)).astype(np.float32)
            up = 0.3 * rng.normal(size=(RANK, fan_out)).astype(np.float32)
            trained |= {f"{path}/lora_down": down, f"{path}/lora_up": up}
            change = STRENGTHS[name] * ALPHA / RANK * np.tensordot(down, up, 1)
            changes[path] = changes.get(path, 0) + change
        place = folder / name / "export" / "lora"
        lora_file.write(stage, trained, place, alpha=ALPHA, dtype="float32", about={})
    fused = Path(shutil.copytree(base, folder / "fused"))
    for file in fused.rglob("*.safetensors"):
        tensors, component = load_file(file), file.parent.name
        for path in [path for path in changes if path.startswith(f"{component}/")]:
            key = weights.key_of(path.partition("/")[2])
            tensors[key] = tensors[key] + weights.turned(path, changes[path], to_file=True)
        save_file({key: np.ascontiguousarray(x) for key, x in tensors.items()}, file)
    return folder, fused


def config(model: Path, **changed):
    # Without noise on the way: changed weights are sampled with the variance of fine-tuning.
    asked = {"upscaler_model": "", "stages": ("base",), "sample__num_images": 1}
    asked |= {"sampler__name": "ddim"}
    return commands.config({"base": model}, **asked | changed)


def levels(folder: Path) -> dict[str, tuple[np.ndarray, dict]]:
    found = {}
    for file in sorted(folder.glob("0*.png")):
        with Image.open(file) as image:
            found[file.name] = (
                np.asarray(image, np.float64),
                json.loads(image.info["dreambooth_jax"]),
            )
    return found


def test_the_files_changes_are_those_of_a_base_that_has_them(base, made, tmp_path):
    folder, fused = made
    lines = tmp_path / "lines.txt"
    lines.write_text("a {class_noun} at night | grey | 5\na hat\n")
    kohya = folder / "second" / "export" / "lora" / lora_file.KOHYA
    pairs = ((str(folder / "first"), 0.8), (str(kohya), -0.5))  # a run's folder, and a file
    file = {"sample__prompts_file": str(lines)}
    added = commands.here(sample, config(base, sample__loras=pairs, **file), tmp_path / "added")
    assert added.name.startswith("untouched+first@0.8+lora_kohya@-0.5-")
    drawn, expected, plain = (
        levels(each)
        for each in (
            added,
            commands.here(sample, config(fused, **file), tmp_path / "fused"),
            commands.here(sample, config(base, **file), tmp_path / "plain"),
        )
    )
    assert set(drawn) == set(expected) == {"00_00.png", "01_00.png"}
    for name, (picture, about) in drawn.items():
        assert np.abs(picture - expected[name][0]).max() <= 1
        assert np.abs(picture - plain[name][0]).max() > 4
        assert about["prompt"] == {"00_00.png": "a bird at night", "01_00.png": "a hat"}[name]
    assert (drawn["00_00.png"][1]["seed"], drawn["00_00.png"][1]["negative_prompt"]) == (5, "grey")


def test_what_is_wrong_with_loras_is_told_before_weights_are_read(base, made, tmp_path):
    stages = {"base": families.open_stage(str(base), kind="base")}

    def read(*pairs):
        return loras.read(configs.resolve(config(base, sample__loras=pairs)), stages)

    assert read().label == ""
    assert not read().changes_text(stages)
    assert read((str(made[0] / "first"), 1)).changes_text(stages)
    with pytest.raises(FileNotFoundError, match=r"sample\.loras: .*none is missing"):
        read((str(tmp_path / "none"), 1.0))
    (tmp_path / "run").mkdir()
    with pytest.raises(configs.ConfigError, match=r"has no export/lora/.*--mode=export first"):
        read((str(tmp_path / "run"), 1.0))
    weights.save(tmp_path / "odd.safetensors", {"unet.x.lora_A.weight": np.ones((1, 2))})
    with pytest.raises(FileError, match=r"odd\.safetensors does not fit"):
        read((str(tmp_path / "odd.safetensors"), 1.0))
    with pytest.raises(configs.ConfigError, match=r"sample\.loras.*strength from -10 to 10"):
        read(("runs/duck", "much"))
