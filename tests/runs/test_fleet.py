"""Many subjects in one program: each as in a run of its own, and a broken folder stops but one."""

import json
import os
import signal

import commands
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax import lock, metrics, train
from dreambooth_jax.data import subject_table
from dreambooth_jax.experiment import modes
from dreambooth_jax.experiment.modes.fleet import config_of
from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.experiment.parts import class_images, loading
from dreambooth_jax.experiment.parts.drawing import Painter

LORA = {
    "stages": ("base",),
    "adapt__name": "lora",
    "adapt__rank": 3,
    "train__num_steps": 4,
    "train__sample_every": 0,
    "train__checkpoint_every": 2,
    "train__keep_weights_every": 2,
    "train__log_every": 1,
    "optim__learning_rate": 3e-3,
    "optim__warmup_steps": 0,
}
WORDS = {"red": "zib", "blue": "kep", "navy": "kep"}


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


@pytest.mark.long
def test_each_is_as_trained_alone_and_a_broken_folder_stops_its_subject_only(
    cascade, tmp_path, monkeypatch
):
    photos(tmp_path / "photos" / "red", (200, 40, 40))
    photos(tmp_path / "photos" / "blue", (40, 40, 200))
    photos(tmp_path / "photos" / "navy", (20, 20, 120))
    grids = []

    def draw(self, *args, **others):
        grids.append((self.words[0].identifier, others["label"]))
        return drawing(self, *args, **others)

    drawing = Painter.draw
    monkeypatch.setattr(Painter, "draw", draw)
    (tmp_path / "photos" / "none").mkdir()
    table = tmp_path / "fleet.csv"
    rows = ["name,images,class_noun,identifier", "broken,photos/none,dog,tox"]
    rows += [f"{name},photos/{name},dog,{word}" for name, word in WORDS.items()]
    table.write_text("\n".join(rows) + "\n")
    told = fleet(cascade, table, tmp_path / "fleet")
    assert told["broken"]["state"] == "failed"
    assert "none" in told["broken"]["reason"]
    assert [told[name]["state"] for name in WORDS] == ["finished"] * 3
    drawn = list((tmp_path / "fleet" / "prior").rglob("manifest.json"))
    assert len(drawn) == 1  # of the one class noun, once
    # The untouched model's pictures once for each word, the others of each subject.
    expected = [("zib", "before"), ("zib", "after"), ("kep", "before"), *[("kep", "after")] * 2]
    assert grids == [(word, f"grid {label}") for word, label in expected]
    monkeypatch.setattr(Painter, "draw", drawing)

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
        kept = [x / "kept_weights" / "base" for x in (alone, here)]
        steps = [{int(file.name) for file in x.iterdir() if file.name.isdigit()} for x in kept]
        assert steps[0] and steps[0] == steps[1]
        pictures = [sorted((x / "samples" / "before").iterdir()) for x in (alone, here)]
        assert pictures[0]
        assert [x.name for x in pictures[0]] == [x.name for x in pictures[1]]
        for one, other in zip(*pictures, strict=True):
            assert one.read_bytes() == other.read_bytes()

    # Started again, what is finished stays, and is not opened.
    before = (tmp_path / "fleet" / "red" / "report.html").stat().st_mtime_ns
    asked, learn = [], modes.fleet._learn

    def learned(plan, settings, *others):
        asked.extend(settings)
        learn(plan, settings, *others)

    monkeypatch.setattr(modes.fleet, "_learn", learned)
    told = fleet(cascade, table, tmp_path / "fleet")
    assert asked == ["broken"]
    assert told["broken"]["state"] == "failed"
    assert (tmp_path / "fleet" / "red" / "report.html").stat().st_mtime_ns == before


KILLS = [
    # The first subject's checkpoint of step 2 is there, the other's is not committed yet.
    (r"^os\.rename \S+/blue/checkpoints/base/2\.orbax-checkpoint-tmp ", 1),
    (r"^open \S+/blue/metrics\.jsonl a", 2),  # amid steps
    (r"^os\.rename \S+/blue/export/\S+\.tmp ", 1),  # the first subject is finished
]


@pytest.mark.long
def test_killed_and_started_again_it_ends_as_one_that_was_not(cascade, tmp_path):
    photos(tmp_path / "photos" / "red", (200, 40, 40))
    photos(tmp_path / "photos" / "blue", (40, 40, 200))
    table = tmp_path / "fleet.csv"
    rows = [f"{name},photos/{name},dog,{WORDS[name]}" for name in ("red", "blue")]
    table.write_text("\n".join(["name,images,class_noun,identifier", *rows]) + "\n")
    own = LORA | {"upscaler_model": "", "fleet__table": table}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = {x: commands.flags({"base": cascade["base"]}, x, **own) for x in (whole, killed)}
    for moment in KILLS:
        signalled = (int(signal.SIGKILL), *moment)
        commands.run([*flags[killed], "--mode=fleet"], expect=-signal.SIGKILL, signalled=signalled)
    for folder, words in flags.items():
        commands.run([*words, "--mode=fleet"])
        told = json.loads((folder / "fleet.json").read_text())["subjects"]
        assert {name: each["state"] for name, each in told.items()} == {
            "red": "finished",
            "blue": "finished",
        }
    for name in told:
        found, expected = (commands.weights(x / name / "export") for x in (killed, whole))
        assert found.keys() == expected.keys()
        for key in found:
            size = np.abs(expected[key]).max()
            np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=2e-3 * size + 1e-7)
        for folder in flags:
            records = metrics.read(folder / name / "metrics.jsonl")
            steps = [record["step"] for record in records if "base/loss" in record]
            assert steps == [1, 2, 3, 4]


def broken_rows(place):
    """Rows of a table, by name: cell of photos, noun, word, and what the reason must tell."""
    photos(place / "good", (200, 40, 40))
    photos(place / "torn", (40, 200, 40))
    for file in (place / "torn").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    os.mkfifo(place / "pipe")
    return {
        "first": ("good", "dog", "zib", ""),
        "absent": ("absent", "dog", "auto", "No such folder"),
        "torn": ("torn", "dog", "auto", "No usable photo"),
        "piped": ("pipe", "dog", "auto", "pipe"),
        "long": ("x" * 300, "dog", "auto", "name too long"),
        "article": ("good", "a dog", "auto", "a noun without article"),
        "word": ("good", "dog", "two words", "one word of letters"),
        "noun": ("good", "dog", "mydog", "without the noun"),
        "last": ("good", "dog", "kep", ""),
    }


def test_all_subjects_are_looked_at_before_class_images_are_drawn(cascade, tmp_path, monkeypatch):
    rows = broken_rows(tmp_path)
    table, out = tmp_path / "fleet.csv", tmp_path / "fleet"
    lines = [f"{name},{cells[0]},{cells[1]},{cells[2]}" for name, cells in rows.items()]
    table.write_text("\n".join(["name,images,class_noun,identifier", *lines]))
    at_drawing = {}

    def drawn(plan, model, words, *others):
        at_drawing.update(json.loads((out / "fleet.json").read_text())["subjects"])
        raise train.Interrupted("stopped here", exit_code=1)

    monkeypatch.setattr(class_images, "drawn", drawn)
    with pytest.raises(train.Interrupted, match="stopped here"):
        fleet(cascade, table, out)
    for name, (*_, reason) in rows.items():
        assert at_drawing[name]["state"] == ("failed" if reason else "waiting")
        assert reason in at_drawing[name].get("reason", "")
    assert not lock.holder(out / "first")

    # No subject has captions: no weights are read for them.
    monkeypatch.setattr(loading, "load", None)
    told = fleet(cascade, table, tmp_path / "none", subject__captions="files")
    assert {each["state"] for each in told.values()} == {"failed"}
    assert "caption 0.txt is missing" in told["last"]["reason"]


def test_class_images_of_ones_own_lie_in_a_folder_for_each_noun(tmp_path):
    row = subject_table.Row("a", "x", "clay pot")
    c = configs.base_config()
    assert config_of(c, row, tmp_path).prior.folder == str(tmp_path / "prior" / "clay_pot")
    c.prior.images = "/own"
    own = config_of(c, row, tmp_path).prior
    assert (own.images, own.folder) == ("/own/clay_pot", "")


def test_full_fine_tuning_and_no_table_are_errors_that_say_what_to_write(cascade, tmp_path):
    c = config(cascade, adapt__name="full", fleet__table="x.csv")
    with pytest.raises(ValueError, match=r"--config\.adapt\.name=lora or textual_inversion"):
        commands.here(MODES["fleet"].function, c, tmp_path)
    c = config(cascade, fleet__table="x.csv", export__push_to_hub="owner/name")
    with pytest.raises(ValueError, match=r"export\.push_to_hub = 'owner/name': the subjects would"):
        commands.here(MODES["fleet"].function, c, tmp_path)
    c = config(cascade, fleet__table="x.csv", subject__held_out=1)
    with pytest.raises(ValueError, match=r"subject\.held_out = 1: .*--config\.subject\.held_out=0"):
        commands.here(MODES["fleet"].function, c, tmp_path)
    with pytest.raises(ValueError, match=r"--config\.fleet\.table=FILE\.csv"):
        commands.here(MODES["fleet"].function, config(cascade), tmp_path)
    assert configs.base_config().fleet.at_once >= 1
