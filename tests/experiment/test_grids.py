"""Texts of pictures: whatever a prompt holds is stored in its file, and reads back the same."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from dreambooth_jax import config as configs
from dreambooth_jax import files, report
from dreambooth_jax.data.subject import Words
from dreambooth_jax.evaluate import pictures
from dreambooth_jax.experiment.parts import grids
from dreambooth_jax.experiment.parts.workdir import Workdir

WORDS = Words.of(identifier="sma", class_noun="bird")
PIXELS = np.zeros((8, 8, 3), np.uint8)
HARD = [
    *(
        "a\0b",
        "\0",
        "\ud800",
        "x \udcff y",
        "\x1b[31m red",
        "\r\n\t\x0b\x85\u2028",
        "\u202eabc",
        "",
    ),
    *("</script>&amp;", '"}{', "\\ud800", "鸟🐦", "a" * 10_000, "a" * 3_000_000, string.printable),
]


def kept(prompt: str, folder: Path) -> None:
    """Checks that a prompt is stored and known again."""
    file = folder / "00_00.png"
    grids.save_png(file, PIXELS, about={"prompt": prompt, "seed": 3, "samplers": {}})
    found, about = grids.read_picture(file)
    assert about["prompt"] == prompt and np.array_equal(found, PIXELS)
    assert grids.is_drawn(folder, [(file.name, prompt, 3)])
    assert not grids.is_drawn(folder, [(file.name, f"{prompt} ", 3)])
    assert grids.read_grid(folder, [(file.name, prompt, 3)]).keys() == {prompt}


def test_the_grids_of_a_run_are_its_own_and_not_those_of_its_judges(tmp_path):
    """Where no prompt names the class, the judges' own pictures lie beside each grid."""
    c = configs.base_config()
    c.sample.prompts, c.sample.num_images = ("a {subject}",), 1
    plan = configs.resolve(c)
    ((name, prompt, seed),) = grids.grid_of(plan, [WORDS])
    for label in ("before", "base-000100", "base-000100-56dd04ac", "upscaler-000050", "base-x"):
        (tmp_path / "samples" / label).mkdir(parents=True)
        about = {"prompt": prompt, "seed": seed, "samplers": {}}
        grids.save_png(tmp_path / "samples" / label / name, PIXELS, about=about)
    found = grids.grids_of(plan, Workdir(tmp_path, None, False), [WORDS])
    assert list(found) == ["before", "base-000100", "upscaler-000050"]


@pytest.mark.parametrize("prompt", HARD, ids=lambda prompt: ascii(prompt)[:20])
def test_a_prompt_of_any_characters_reads_back(prompt, tmp_path):
    kept(prompt, tmp_path)
    (found,) = pictures.read(tmp_path).prompts
    assert found == prompt or not prompt  # without a prompt it is the folder's name
    page = report.sheet({prompt: [PIXELS]})
    assert page.shape[0] < 1000


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=())))
def test_any_text_reads_back(tmp_path_factory, prompt):
    kept(prompt, tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 200_000,
        "[]",
        "null",
        "3",
        '{"prompt": 3}',
        '{"prompt": ["a"]}',
        '{"prompt": {}}',
    ],
    ids=lambda text: text[:20],
)
def test_a_text_of_others_is_no_prompt(text, tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_text("dreambooth_jax", text)
    folder = tmp_path / "a_red_bird"
    folder.mkdir()
    Image.fromarray(PIXELS).save(folder / "x.png", pnginfo=note)
    assert pictures.read(tmp_path).prompts == ("a red bird",)
    assert not grids.is_drawn(folder, [("x.png", "a", 3)])


def test_names_with_half_a_character_are_written_and_read(tmp_path):
    """A file of another encoding has such a name; records of runs hold names."""
    name = "photo-\udcff.jpg"
    for ascii_only in (True, False):
        files.write_text(tmp_path / "a.json", json.dumps({name: 1}, ensure_ascii=ascii_only))
        assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {name: 1}
