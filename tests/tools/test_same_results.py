"""The comparison of runs: it sees one bit, a missing array, another dtype, and what is meant."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package
import same_results

from dreambooth_jax import config as configs


def folder(root, *, bit=0, colour=7, dtype=np.float32):
    (root / "export" / "unet").mkdir(parents=True)
    (root / "samples" / "after").mkdir(parents=True)
    (root / "samples" / "after-0123abcd").mkdir(parents=True)
    array = np.array([1.0, -0.0], dtype)
    raw = array.view(np.uint8).copy()
    raw[0] ^= bit
    save_file({"a": raw.view(dtype), "b": array}, root / "export" / "unet" / "x.safetensors")
    for name in ("after", "after-0123abcd"):
        picture = np.full((2, 2, 3), colour, np.uint8)
        Image.fromarray(picture).save(root / "samples" / name / "00_00.png")
    return root


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {}),
        ({"bit": 1}, {"export/unet/x.safetensors: a": "differs by up to 1.19e-07"}),
        ({"colour": 9}, {"samples/after/00_00.png": "differs by up to 2"}),
        (
            {"dtype": np.float64},
            {
                f"export/unet/x.safetensors: {name}": "float32[2] is now float64[2]"
                for name in ("a", "b")
            },
        ),
    ],
)
def test_one_bit_and_one_grey_level_are_seen(changed, expected, tmp_path):
    old = same_results.contents(folder(tmp_path / "old"))
    new = same_results.contents(folder(tmp_path / "new", **changed))
    assert same_results.differences(old, new) == expected


def test_the_sign_of_zero_and_absent_arrays_are_differences():
    old = {"a": np.array([0.0]), "b": np.array([1])}
    new = {"a": np.array([-0.0]), "c": np.array([1])}
    found = same_results.differences(old, new)
    assert found == {"a": "differs by up to 0", "b": "only before", "c": "only now"}


def test_what_is_meant_is_named_by_case_and_array(monkeypatch):
    monkeypatch.setattr(same_results, "MEANT", (("^sd", r"samples/", "another sampler"),))
    told = {"samples/after/00_00.png": "differs", "export/x: a": "differs"}
    assert same_results.unexplained("sd1", told).keys() == {"export/x: a"}
    assert same_results.unexplained("full", told) == told


def test_every_case_is_a_command_line_of_known_settings():
    known = configs.flatten(configs.base_config())
    for name in same_results.CASES:
        words = same_results.flags(name, Path("models"), Path("run"))
        keys = [w.removeprefix("--config.").split("=")[0] for w in words if "--config." in w]
        assert set(keys) <= known.keys() and len(keys) == len(set(keys))
