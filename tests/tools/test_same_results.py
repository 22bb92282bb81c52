"""The comparison of runs: it sees one bit, a missing array, another dtype, and what is meant."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package
import same_results

from dreambooth_jax import config as configs
from dreambooth_jax.models import layers


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
    found = same_results.differences(old, new)
    assert {name: difference.text for name, difference in found.items()} == expected


def test_the_sign_of_zero_and_absent_arrays_are_differences():
    old = {"a": np.array([0.0]), "b": np.array([1])}
    new = {"a": np.array([-0.0]), "c": np.array([1])}
    found = same_results.differences(old, new)
    assert found == {
        "a": ("differs by up to 0", 0.0),
        "b": ("only before", np.inf),
        "c": ("only now", np.inf),
    }


def test_what_is_meant_is_named_by_case_and_array_and_bounded(monkeypatch):
    meant = same_results.Meant("^sd", r"samples/", 2, "another sampler")
    monkeypatch.setattr(same_results, "MEANT", (meant,))
    picture, near = "samples/after/00_00.png", same_results.Difference("differs", 2)
    assert same_results.explained("sd1", picture, near) is meant
    assert same_results.explained("sd1", "export/x: a", near) is None
    assert same_results.explained("full", picture, near) is None
    assert same_results.explained("sd1", picture, near._replace(size=3)) is None
    assert same_results.explained("sd1", picture, near._replace(size=np.inf)) is None


def test_a_difference_that_is_not_meant_fails_the_case(tmp_path, monkeypatch, capsys):
    meant = same_results.Meant("sd1", r"samples/", 2, "another sampler")
    monkeypatch.setattr(same_results, "MEANT", (meant,))
    old = folder(tmp_path / "old")
    assert same_results.compare("sd1", old, folder(tmp_path / "near", colour=9))
    assert "1 meant, by up to 2: another sampler" in capsys.readouterr().out
    assert not same_results.compare("sd1", old, folder(tmp_path / "far", colour=10))
    assert "samples/after/00_00.png: differs by up to 3" in capsys.readouterr().out
    assert not same_results.compare("sd1", tmp_path / "absent", old)


def test_what_is_undone_was_changed_after_the_other_commit(repository):
    (one,) = same_results.UNDONE
    known = ["git", "cat-file", "-e", f"{one.commit}~1"]
    if subprocess.run(known, cwd=repository, capture_output=True).returncode:
        pytest.skip("needs the repository's history")
    assert same_results.undone_since(one.commit) == ()
    assert same_results.undone_since(f"{one.commit}~1") == (one,)


def test_convolutions_of_few_positions_are_as_they_were(monkeypatch):
    monkeypatch.setattr(layers, "_few_positions_on_cpu", layers._few_positions_on_cpu)  # put back
    picture, kernel = np.zeros((4, 8, 8, 16)), np.zeros((3, 3, 16, 16))
    assert not layers._few_positions_on_cpu(picture, kernel)
    (one,) = same_results.UNDONE
    exec(one.lines, {})
    assert layers._few_positions_on_cpu(picture, kernel)
    assert not layers._few_positions_on_cpu(np.zeros((4, 8, 9, 16)), kernel)


def test_every_case_is_a_command_line_of_known_settings():
    known = configs.flatten(configs.base_config())
    for name in same_results.CASES:
        words = same_results.flags(name, Path("models"), Path("run"))
        keys = [w.removeprefix("--config.").split("=")[0] for w in words if "--config." in w]
        assert set(keys) <= known.keys() and len(keys) == len(set(keys))
