"""A portrait run of Stable Diffusion 3, small, and what every other mode makes of flows."""

import csv
import json
from pathlib import Path

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_in_judges
from PIL import Image

import dreambooth_jax
from dreambooth_jax import config as configs
from dreambooth_jax import families, generate, pipeline, sharding
from dreambooth_jax.evaluate import scores
from dreambooth_jax.experiment.modes.table import MODES

pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
import flows

PORTRAIT = (24, 16)
PHOTOS = sorted(Path(dreambooth_jax.__file__).parent.glob("assets/subject/*.png"))
SHORT = flows.SHORT | {"resolution": PORTRAIT, "sampler__guidance_scale": 4.0}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Model and folder of the run."""
    place = tmp_path_factory.mktemp("flow")
    model = flows.make(place / "model", "sd3")
    c = commands.config({"base": model, "upscaler": ""}, **SHORT)
    commands.run_here(c, place / "run")
    return model, place / "run"


def of_run(folder, **changed):
    c = configs.of_run(str(folder))
    c.update_from_flattened_dict({key.replace("__", "."): x for key, x in changed.items()})
    return c


def pixels(file):
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB"))


def test_every_picture_is_a_portrait_and_pytorch_draws_it_from_the_export(done):
    _, folder = done
    drawn = [*folder.glob("prior/*.png"), *folder.glob("samples/after/[0-9]*.png")]
    assert len(drawn) == 4
    assert {pixels(file).shape for file in drawn} == {(*PORTRAIT, 3)}

    stage = families.open_stage(str(folder / "export"), kind="base", resolution=PORTRAIT)
    flat = pipeline.read_weights(stage)
    prompts = ["a zib bird", "a bird in the snow"]
    text = generate.encode(stage, flat, prompts, dtype=jnp.float32)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sampler = generate.Sampler(stage, generate.Settings("ddim", 3, 4.0), mesh=mesh)
    ours = (sampler.batch(flat, text, prompts, [1, 2], None) + 1) / 2
    theirs = flows.drawn_by_them(
        flows.opened_by_them(folder / "export", "sd3"), stage, prompts, scale=4.0
    )
    assert ours.shape == theirs.shape == (2, *PORTRAIT, 3)
    assert np.abs(ours - theirs).max() <= 1e-3


def test_sample_and_evaluate(done, monkeypatch):
    _, folder = done
    c = of_run(folder, sample__prompts=("a {subject} at night",), sample__num_images=1)
    made = commands.here(MODES["sample"].function, c, folder)
    assert pixels(made / "00_00.png").shape == (*PORTRAIT, 3)
    stand_in_judges.instead(monkeypatch)
    file = commands.here(MODES["evaluate"].function, of_run(folder), folder)
    found = {(s.measure, s.pictures): s.value for s in scores.read(file)}
    photos = [pixels(file) for file in PHOTOS]
    real = stand_in_judges.colours(photos, "")
    for name, grid in (("untouched", "before"), ("tuned", "after")):
        (mean,) = stand_in_judges.colours([pixels(folder / "samples" / grid / "00_00.png")], "")
        cosines = real @ mean / np.linalg.norm(mean) / np.linalg.norm(real, axis=1)
        assert found["subject_similarity", name] == pytest.approx(np.mean(cosines))


def test_a_fleet_trains_each_subject_as_if_alone(done, tmp_path):
    model, _ = done
    words = {"red": "zib", "blue": "kep"}
    rng = np.random.default_rng(0)
    for k, name in enumerate(words):
        (tmp_path / name).mkdir()
        for n in range(3):
            photo = rng.integers(0, 256, (96, 96, 3)).astype(np.uint8)
            photo[..., 2 * k] = 255
            Image.fromarray(photo).save(tmp_path / name / f"{n}.png")
    table = tmp_path / "fleet.csv"
    with table.open("w", newline="") as opened:
        rows = [(name, tmp_path / name, "dog", word) for name, word in words.items()]
        csv.writer(opened).writerows([("name", "images", "class_noun", "identifier"), *rows])
    c = commands.config({"base": model, "upscaler": ""}, **SHORT, fleet__table=str(table))
    file = commands.here(MODES["fleet"].function, c, tmp_path / "fleet")
    told = json.loads(file.read_text())["subjects"]
    assert [told[name]["state"] for name in words] == ["finished"] * 2

    one = {"subject__images": str(tmp_path / "blue"), "subject__class_noun": "dog"}
    c = commands.config({"base": model, "upscaler": ""}, **SHORT | one)
    c.subject.identifier = words["blue"]
    commands.run_here(c, tmp_path / "alone")
    factors = [
        commands.weights(place / "export" / "lora")
        for place in (tmp_path / "alone", tmp_path / "fleet" / "blue")
    ]
    assert factors[0].keys() == factors[1].keys()
    for key, expected in factors[0].items():
        size = np.abs(expected).max()
        np.testing.assert_allclose(factors[1][key], expected, rtol=0, atol=2e-3 * size + 1e-7)
    losses = [
        [line["base/loss"] for line in commands.lines(place, "base")]
        for place in (tmp_path / "alone", tmp_path / "fleet" / "blue")
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
