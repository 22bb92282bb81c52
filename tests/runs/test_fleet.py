"""Many subjects in one program: each as in a run of its own, and a broken folder stops but one."""

import json

import commands
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax.experiment.modes.table import MODES

LORA = {
    "stages": ("base",),
    "adapt__name": "lora",
    "adapt__rank": 3,
    "train__num_steps": 4,
    "train__sample_every": 0,
    "train__checkpoint_every": 2,
    "train__log_every": 1,
    "optim__learning_rate": 3e-3,
    "optim__warmup_steps": 0,
}
WORDS = {"red": "zib", "blue": "kep"}


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
    return commands.cascade(tmp_path_factory)


def photos(folder, colour):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(sum(colour))
    for k in range(3):
        noise = rng.integers(-40, 40, (96, 96, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")


def config(cascade, **changed):
    c = commands.config({"base": cascade["base"], "upscaler": ""}, **LORA | changed)
    c.upscaler.num_steps = c.upscaler.batch_size = None
    return c


def fleet(cascade, table, folder, **changed):
    c = config(cascade, fleet__table=str(table), **changed)
    return json.loads(commands.here(MODES["fleet"].function, c, folder).read_text())["subjects"]


def test_each_is_as_trained_alone_and_a_broken_folder_stops_its_subject_only(cascade, tmp_path):
    photos(tmp_path / "photos" / "red", (200, 40, 40))
    photos(tmp_path / "photos" / "blue", (40, 40, 200))
    (tmp_path / "photos" / "none").mkdir()
    table = tmp_path / "fleet.csv"
    rows = ["name,images,class_noun,identifier", "broken,photos/none,dog,tox"]
    rows += [f"{name},photos/{name},dog,{word}" for name, word in WORDS.items()]
    table.write_text("\n".join(rows) + "\n")
    told = fleet(cascade, table, tmp_path / "fleet")
    assert told["broken"]["state"] == "failed"
    assert "none" in told["broken"]["reason"]
    assert [told[name]["state"] for name in WORDS] == ["finished"] * 2
    drawn = list((tmp_path / "fleet" / "prior").rglob("manifest.json"))
    assert len(drawn) == 1  # of the one class noun, once

    for name, word in WORDS.items():
        alone = tmp_path / f"alone_{name}"
        c = config(
            cascade,
            subject__images=str(tmp_path / "photos" / name),
            subject__class_noun="dog",
            subject__identifier=word,
        )
        commands.run_here(c, alone)
        here = tmp_path / "fleet" / name
        expected, found = (commands.weights(x / "export") for x in (alone, here))
        assert found.keys() == expected.keys()
        factors = [key for key in found if "lora_B" in key]
        assert factors
        for key in found:
            size = np.abs(expected[key]).max()
            np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=2e-3 * size + 1e-7)
        assert all(np.abs(found[key]).max() > 0 for key in factors)
        losses = [[line["base/loss"] for line in commands.lines(x, "base")] for x in (alone, here)]
        np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
        assert {file.name for file in alone.iterdir()} - {"prior"} == {
            file.name for file in here.iterdir()
        }

    # Started again, what is finished stays.
    before = (tmp_path / "fleet" / "red" / "report.html").stat().st_mtime_ns
    told = fleet(cascade, table, tmp_path / "fleet")
    assert told["broken"]["state"] == "failed"
    assert (tmp_path / "fleet" / "red" / "report.html").stat().st_mtime_ns == before


def test_full_fine_tuning_and_no_table_are_errors_that_say_what_to_write(cascade, tmp_path):
    c = config(cascade, adapt__name="full", fleet__table="x.csv")
    with pytest.raises(ValueError, match=r"--config\.adapt\.name=lora or textual_inversion"):
        commands.here(MODES["fleet"].function, c, tmp_path)
    with pytest.raises(ValueError, match=r"--config\.fleet\.table=FILE\.csv"):
        commands.here(MODES["fleet"].function, config(cascade), tmp_path)
    assert configs.base_config().fleet.at_once >= 1
