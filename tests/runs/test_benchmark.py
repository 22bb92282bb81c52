"""The benchmark's runs: stopped and gone on with, they end with the same scores; its tables."""

import dataclasses
import json
import logging
import re
import shutil
from pathlib import Path

import benchmark_copies
import commands
import numpy as np
import pytest
import stand_in_judges
from PIL import Image, ImageOps

from dreambooth_jax import config as configs
from dreambooth_jax.data import benchmark as data
from dreambooth_jax.data.audit import AuditError
from dreambooth_jax.evaluate import by_prompt, table_one
from dreambooth_jax.evaluate.encoders import Distance, Features
from dreambooth_jax.evaluate.measures import Bootstrap
from dreambooth_jax.evaluate.pictures import Pictures
from dreambooth_jax.evaluate.scores import Score
from dreambooth_jax.experiment.modes import benchmark, duration
from dreambooth_jax.experiment.parts import drawing as painter

NAMES = ("dog", "dog2")


class Stopped(Exception):
    """As if the machine had gone off."""


def written(folder: Path) -> dict[str, int]:
    """Every file below a folder and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def plain(*rgb: int) -> np.ndarray:
    return np.full((6, 6, 3), rgb, np.uint8)


def upright(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def pick(scores: list[dict], measure: str, pictures: str = "tuned") -> dict:
    (found,) = [s for s in scores if (s["measure"], s["pictures"]) == (measure, pictures)]
    return found


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return benchmark_copies.make(tmp_path_factory.mktemp("copy"), NAMES, photos=2)


def settings(stages, copy: Path, **changed):
    short = {
        "stages": ("base",),
        "upscaler_model": "",
        "sample__num_images": 2,
        "sample__batch_size": 8,
        "prior__num_images": 8,
        "prior__batch_size": 8,
        "train__num_steps": 2,
        "train__checkpoint_every": 2,
        "train__sample_every": 0,
        "train__held_out_every": 0,
        "benchmark__data": str(copy),
        "benchmark__num_prompts": 5,
        "benchmark__trial_steps": 0,
        "evaluate__resamples": 20,
    }
    return commands.config({"base": stages["base"]}, **short | changed)


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, Path]:
    return commands.cascade(tmp_path_factory)


@pytest.mark.long
def test_stopped_anywhere_it_ends_with_the_same_scores(stages, copy, tmp_path, monkeypatch, caplog):
    stand_in_judges.instead(monkeypatch)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    shared = {"prior__folder": str(tmp_path / "class images")}
    with caplog.at_level(logging.INFO, logger="absl"):
        measured = settings(stages, copy, **shared, benchmark__trial_steps=1)
        file = commands.here(benchmark.run, measured, whole)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert file == whole / "scores.json"
    assert re.search(r"About [\d.]+ hours for 2 subjects on 1 cpu", said)
    assert re.search(r"training base +[\d.]+ h +\d+%", said)
    assert "28 of" not in said and "2 of the 30 subjects are in" in said
    assert not (whole / "trial").exists()

    # The second one is stopped while it draws, the first is finished then.
    shutil.copytree(whole / "dog", broken / "dog")
    first, c = written(broken / "dog"), settings(stages, copy, **shared)
    save = painter.save_png

    def dying(file: Path, *rest, **more) -> None:
        if file.parts[-4:] == ("dog2", "samples", "after", "04_01.png"):
            raise Stopped
        save(file, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(painter, "save_png", dying)
        with pytest.raises(Stopped):
            commands.here(benchmark.run, c, broken)
    half = written(broken / "dog2" / "samples")
    assert half.pop("after/04_00.png") and "after/05_00.png" not in half
    assert len(half) == 12 + 8  # before training, and a sampler call of 8 after it
    assert not (broken / "dog2" / "scores.json").exists()
    c.benchmark.keep_checkpoints = False
    commands.here(benchmark.run, c, broken)
    assert (broken / "dog" / "checkpoints").exists()
    assert not (broken / "dog2" / "checkpoints").exists()
    assert written(broken / "dog") == first  # a finished subject is left alone
    now = written(broken / "dog2" / "samples")
    assert half.items() <= now.items() and len(now) == 24
    assert (broken / "scores.json").read_bytes() == file.read_bytes()

    content = json.loads(file.read_text())
    assert len(content["about"]["absent"]) == 28
    subject = content["subjects"]["dog2"]
    assert (subject["class_noun"], subject["live"], subject["photos"]) == ("dog", True, 2)
    # Both are dogs: their class images are drawn once.
    assert [path.name for path in (tmp_path / "class images").iterdir()] == ["dog"]
    word = subject["identifier"]
    prompts = [line.format(subject=f"{word} dog") for line in data.MEMBERS["dog2"].prompts[::5]]
    assert list(subject["prompts"]) == [*prompts, "a dog"]
    assert subject["pictures"] == {"untouched": 12, "tuned": 12}

    # By hand, of the files: pictures of a prompt × photos, by their mean colours.
    made = [whole / "dog2" / "samples" / "after" / f"01_0{k}.png" for k in range(2)]
    photos = sorted((copy / "dataset" / "dog2").glob("*.jpg"))
    a, b = (stand_in_judges.colours(list(map(upright, files)), "") for files in (made, photos))
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x in a for y in b]
    score = pick(subject["prompts"][prompts[1]], "subject_similarity")
    assert (score["value"], score["n"]) == (pytest.approx(np.mean(cosines)), 4)
    entries = content["subjects"].values()
    each = [pick(entry["scores"], "prompt_similarity")["value"] for entry in entries]
    mean = pick(content["scores"], "prompt_similarity")
    assert (mean["value"], mean["n"]) == (pytest.approx(np.mean(each)), 2)
    assert mean["low"] == min(each) and mean["high"] == max(each)


def test_what_cannot_run_is_told_before_anything_is_made(stages, copy, tmp_path, monkeypatch):
    stand_in_judges.instead(monkeypatch)
    with pytest.raises(ValueError, match=r"benchmark\.data = ''.*git clone"):
        benchmark.run(settings(stages, copy, benchmark__data=""), tmp_path / "run")
    with pytest.raises(ValueError, match=r"'vase' is not in .* There are: dog, dog2"):
        benchmark.run(settings(stages, copy, benchmark__subjects=("vase",)), tmp_path / "run")
    with pytest.raises(configs.ConfigError, match=r"(?s)'dog9'.*Did you mean 'dog\d?'"):
        configs.validate(settings(stages, copy, benchmark__subjects=("dog9",)))
    bad = benchmark_copies.make(tmp_path / "bad", ["dog", "vase"], photos=1)
    (bad / "dataset" / "vase" / "00.jpg").write_bytes(b"no photo")
    with pytest.raises(AuditError, match=r"(?s)No usable photo.*vase"):
        benchmark.run(settings(stages, bad), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_scores_by_prompt_ask_every_judge_once(monkeypatch):
    """Photos are red; one prompt is drawn red, another half red."""
    stand_in_judges.instead(monkeypatch)
    asked: list[int] = []

    def colours(pictures, label):
        asked.extend(map(id, pictures))
        return stand_in_judges.colours(pictures, label)

    def brightness(first, second, label):
        asked.extend((id(a), id(b)) for a, b in zip(first, second, strict=True))
        return stand_in_judges.brightness(first, second, label)

    stand_ins = [
        Features("efficientnet_lite0", colours, stand_in_judges.named_colours),
        Distance("efficientnet_lite0", brightness),
    ]
    prompts = ["a zib red", "a zib red", "a zib blue", "a zib blue", "a thing"]
    made = [plain(9, 0, 0), plain(3, 0, 0), plain(50, 50, 0), plain(20, 20, 0), plain(0, 7, 0)]
    photos = [plain(200, 0, 0), plain(100, 0, 0)]
    whole, own = by_prompt.judge(
        {"tuned": Pictures(made, prompts)},
        photos,
        stand_ins,
        identifier="zib",
        bootstrap=Bootstrap(10),
    )
    assert len(asked) == len(set(asked)) == 7 + 2
    values = {
        prompt: {score.measure: score.value for score in scores} for prompt, scores in own.items()
    }
    half = pytest.approx(np.sqrt(0.5))
    assert values == {
        "a zib red": {"subject_similarity": 1, "prompt_similarity": 1, "diversity": 2},
        "a zib blue": {"subject_similarity": half, "prompt_similarity": 0, "diversity": 20},
        "a thing": {"prior_similarity": 0},
    }
    values = {(s.measure, s.pictures): s.value for s in whole}
    assert values["subject_similarity", "tuned"] == pytest.approx((1 + np.sqrt(0.5)) / 2)
    assert values["subject_similarity", "photos"] == 1


def test_the_mean_over_subjects_draws_subjects_again():
    def score(value, measure="subject_similarity"):
        return Score(measure, "x", "tuned", value, value, value, 100)

    subjects = {"a": [score(0.2)], "b": [score(0.4)], "c": [score(0.9), score(0.3, "diversity")]}
    similarity, diversity = by_prompt.overall(subjects, Bootstrap(2000))
    assert similarity.value == pytest.approx(0.5) and similarity.n == 3
    # All three the same has a chance of 1/27 each, more than the 2.5 % left out at either end.
    assert (similarity.low, similarity.high) == (pytest.approx(0.2), pytest.approx(0.9))
    assert (diversity.value, diversity.n) == (pytest.approx(0.3), 1)


def test_published_numbers_stand_beside_those_of_the_same_encoders_alone():
    def scores(encoder):
        return [
            Score("subject_similarity", encoder, "tuned", 0.5, 0.4, 0.6, 2),
            Score("subject_similarity", encoder, "photos", 0.7, 0.6, 0.8, 2),
            Score("prompt_similarity", encoder, "tuned", 0.25, 0.2, 0.3, 2),
        ]

    text = table_one.as_text(scores("efficientnet_lite0"), num_subjects=2)
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["DreamBooth (Imagen)"][-3:] == ["0.696", "0.812", "0.306"]
    assert rows["Real images"][-3:] == ["0.774", "0.885", "n/a"]
    assert rows["here, pictures of 2 subjects"][-3:] == ["-", "-", "-"]
    assert "0.500" not in text and "clip_vitb32 and dino_vits16" in text

    text = table_one.as_text(scores("dino_vits16"), num_subjects=2)
    (line,) = [line for line in text.splitlines() if line.startswith("here, pictures")]
    assert re.search(r"0\.500 \(0\.400 to 0\.600\) +- +-$", line)
    assert "0.250" not in text  # DINO reads no prompts: the column is CLIP's
    text = table_one.as_text(scores("clip_vitb32"), num_subjects=2)
    (line,) = [line for line in text.splitlines() if line.startswith("here, pictures")]
    assert re.search(r"subjects +- +0\.500 .* 0\.250 ", line)


def test_hours_follow_from_what_was_measured():
    c = configs.base_config()
    c.train.num_steps, c.upscaler.num_steps = 100, 50
    c.prior.num_images = 60
    c.sample.prompts, c.sample.num_images = ("art", "a {class_noun}"), 3
    plan = configs.resolve(c)
    speed = duration.Speed(start=30, picture=2, step={"base": 1, "upscaler": 3}, device="a clock")
    seconds = duration.parts(plan, speed, ["dog", "dog", "toy"])
    assert seconds == {
        "starting": 90,
        "class images": 2 * 60 * 2,  # dogs share theirs
        "training base": 300,
        "training upscaler": 450,
        "pictures": 3 * 2 * (7 * 3) * 2,  # grids before and after
    }
    text = duration.told(seconds, subjects=3, device=speed.device)
    assert f"About {sum(seconds.values()) / 3600:.2f} hours for 3 subjects on a clock" in text
    halved = dataclasses.replace(speed, picture=1.0)
    assert duration.parts(plan, halved, ["dog"])["pictures"] == 42
