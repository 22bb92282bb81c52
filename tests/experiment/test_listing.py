"""Pictures of a file of prompts: what is asked for, in which calls it is drawn, what is kept."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import generate
from dreambooth_jax.data import prompt_lines
from dreambooth_jax.data.prompt_lines import Line
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import listing
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.grids import seed_of
from dreambooth_jax.pipeline import SizeError

WORDS = (
    Words.of(identifier="zib", class_noun="dog"),
    Words.of(identifier="ohw", class_noun="cat"),
)
LINES = (
    Line("a {subject}", None, None, None, 1),
    Line("a hat", "blurry {class_noun}", 7, None, 3),
    Line("a hut", None, 2**32 - 1, (8, 4), 4),
)


def plan(**changed):
    sample = {"num_images": 2, "negative_prompt": "grey", "prompts_file": "", "loras": ()}
    return SimpleNamespace(seed=3, dtype="float32", sample=SimpleNamespace(**sample | changed))


class Formula:
    """A sampler whose pictures tell their prompt, seed and negative prompt."""

    def __init__(self, size):
        self.size = size or (4, 4)
        self.calls = []

    def batch(self, params, text, prompts, seeds, low_res, **rows):
        self.calls.append((tuple(prompts), tuple(seeds)))
        away = rows.get("negative", np.zeros(len(prompts)))
        levels = np.stack([text.rows(prompts), np.asarray(seeds) % 50, away], -1) / 127.5 - 1
        return np.broadcast_to(levels[:, None, None], (len(prompts), *self.size, 3))


class FormulaPainter(Painter):
    """The real painter over samplers that are a formula."""

    rows = 4

    def __init__(self, folder, lines):
        self.plan = plan()
        self.settings = {"base": generate.Settings("ddim", 2, 4.0)}
        self.model = SimpleNamespace(kinds=("base",), fingerprints={"base": "1"})
        self.workdir = SimpleNamespace(samples=folder)
        self.made = {}
        self.text = generate.Text(("", *listing.texts_of(lines, WORDS), "grey"), None)

    def cascade(self, weights, *, batch_size, size=None):
        sampler = self.made.setdefault(size, Formula(size))
        return generate.Cascade([sampler], [self.text], batch_size)


def test_each_line_has_its_pictures_seeds_and_negative_prompt():
    found = listing.asked_of(plan(), LINES, WORDS)
    of_run = [seed_of(3, 0), seed_of(3, 1)]
    rows = [(each.name, each.prompt, each.seed, each.negative, each.size) for each in found]
    assert rows == [
        ("00_00.png", "a zib dog", of_run[0], "grey", None),
        ("00_01.png", "a zib dog", of_run[1], "grey", None),
        ("01_00.png", "a ohw cat", of_run[0], "grey", None),
        ("01_01.png", "a ohw cat", of_run[1], "grey", None),
        ("02_00.png", "a hat", 7, "blurry dog", None),
        ("02_01.png", "a hat", 8, "blurry dog", None),
        ("03_00.png", "a hat", 7, "blurry cat", None),
        ("03_01.png", "a hat", 8, "blurry cat", None),
        ("04_00.png", "a hut", 2**32 - 1, "grey", (8, 4)),
        ("04_01.png", "a hut", 0, "grey", (8, 4)),
    ]
    # A line that names no subject has its pictures once; one that stands twice has them twice.
    twice = [Line("a hut", None, None, None, number) for number in (1, 2)]
    assert len(listing.asked_of(plan(num_images=1), twice, WORDS)) == 2
    many = [Line("a hut", None, None, None, number) for number in range(101)]
    assert listing.asked_of(plan(num_images=1), many, WORDS)[100].name == "100_00.png"


def test_pictures_are_drawn_once_and_say_what_they_show(tmp_path):
    painter, asked = FormulaPainter(tmp_path, LINES), listing.asked_of(plan(), LINES, WORDS)
    folder = listing.drawn(painter, {"base": {}}, "base-000004", asked)
    assert folder.parent == tmp_path
    assert folder.name.startswith("base-000004-")
    for each in asked:
        with Image.open(folder / each.name) as image:
            about, pixels = json.loads(image.info["dreambooth_jax"]), np.asarray(image)
        assert pixels.shape == (*(each.size or (4, 4)), 3)
        rows = painter.text.rows([each.prompt, each.negative])
        assert pixels[0, 0].tolist() == [rows[0], each.seed % 50, rows[1]]
        told = {key: about[key] for key in ("prompt", "seed", "negative_prompt", "weights")}
        assert told == {
            "prompt": each.prompt,
            "seed": each.seed,
            "negative_prompt": each.negative,
            "weights": "base-000004",
        }
    assert (folder / "grid.png").is_file()
    assert set(painter.made) == {None, (8, 4)}

    again = FormulaPainter(tmp_path, LINES)
    assert listing.drawn(again, {"base": {}}, "base-000004", asked) == folder
    assert again.made == {}
    others = listing.asked_of(plan(), LINES[:1], WORDS)
    assert listing.drawn(again, {"base": {}}, "base-000004", others) != folder


def test_a_stop_costs_at_most_one_call(tmp_path, monkeypatch):
    """Pictures of a finished call stay, and the next start draws the others as the first would."""
    lines = (Line("a {subject}", None, 9, None, 1),)
    asked = listing.asked_of(plan(num_images=5), lines, WORDS)  # 10 pictures, 4 rows a call
    batch = Formula.batch

    def stopped(self, *given, **rows):
        if len(self.calls) == 2:
            raise KeyboardInterrupt
        return batch(self, *given, **rows)

    painter = FormulaPainter(tmp_path, lines)
    with monkeypatch.context() as patch:
        patch.setattr(Formula, "batch", stopped)
        with pytest.raises(KeyboardInterrupt):
            listing.drawn(painter, {"base": {}}, "base-000004", asked)
    (folder,) = tmp_path.iterdir()
    names = [each.name for each in asked]
    assert sorted(file.name for file in folder.iterdir()) == sorted(names[:8])

    again = FormulaPainter(tmp_path, lines)
    listing.drawn(again, {"base": {}}, "base-000004", asked)
    (call,) = again.made[None].calls
    assert call[1][:2] == (asked[8].seed, asked[9].seed)
    assert {*names, "grid.png"} == {file.name for file in folder.iterdir()}


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a hut\na hat | | | 12x8\n")
    return file


def stages(**more):
    family = SimpleNamespace(guidance="classifier_free")
    own = SimpleNamespace(
        kind="base",
        family=family,
        folder="model",
        at=lambda size: SimpleNamespace(sample_shape=(*size, 3)),
    )
    return {"base": own, **more}


def test_sizes_are_checked_before_anything_is_loaded(file, monkeypatch):
    scales = [4.0]
    monkeypatch.setattr(
        listing, "settings_of", lambda *given: generate.Settings("ddim", 2, scales[0])
    )
    asked = plan(prompts_file=str(file))
    assert [line.size for line in listing.read(asked, stages())] == [None, (12, 8)]
    assert listing.read(plan(), stages()) == ()
    with pytest.raises(ValueError, match=r"prompts\.txt, line 2: found a size.*upscaler"):
        listing.read(asked, stages(upscaler=stages()["base"]))

    def refused(stage, settings):
        raise SizeError(settings.size, "expected others", (16, 8))

    monkeypatch.setattr(generate, "sample_shape", refused)
    with pytest.raises(
        ValueError, match=r"prompts\.txt, line 2: found the size 12x8, .* Write 16x8"
    ):
        listing.read(asked, stages())
    file.write_text("a hat | | | 12x8\n" * 25)
    with pytest.raises(ValueError, match=r"(?s)line 1: .*line 20: .*and 5 more$"):
        listing.read(asked, stages())
    file.write_text("a {subjekt}\n")
    with pytest.raises(prompt_lines.untrusted.FileError, match=r"line 1: found {subjekt}"):
        listing.read(asked, stages())
    file.write_text("a hut | blurry\n")
    assert listing.read(asked, stages())[0].negative == "blurry"
    scales[0] = 1.0
    with pytest.raises(ValueError, match=r"line 1: found a negative prompt, expected"):
        listing.read(asked, stages())
