"""--mode=sample and --mode=export: from a base, checkpoints, an export; what they refuse."""

import json
import shutil
from pathlib import Path

import commands
import numpy as np
import pytest
import stand_in_judges
import transformers
from PIL import Image

import dreambooth_jax
from dreambooth_jax import config as configs
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.evaluate import scores
from dreambooth_jax.experiment.modes.evaluate import evaluate
from dreambooth_jax.experiment.modes.sample import export, sample
from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts import subjects
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.text import identifier

PROMPTS = ("a {subject} at night", "a {class_noun}")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The base and a copy of a run on it, to which these tests add."""
    stages, folder = commands.reference(tmp_path_factory)
    return stages, Path(shutil.copytree(folder, tmp_path_factory.mktemp("modes") / "run"))


def of_run(folder: Path, **changed):
    c = configs.of_run(str(folder))
    c.update_from_flattened_dict({key.replace("__", "."): x for key, x in changed.items()})
    return c


def pictures(folder: Path) -> dict[str, tuple[np.ndarray, dict]]:
    found = {}
    for file in sorted(folder.glob("*.png")):
        with Image.open(file) as image:
            found[file.name] = np.asarray(image), json.loads(image.info["dreambooth_jax"])
    return found


def test_checkpoint_export_and_the_run_itself_draw_the_same(done, tmp_path):
    stages, folder = done
    run = commands.config(stages)  # as on the command line
    before = commands.contents(folder)
    made = commands.here(sample, run, folder)
    assert made.parent == folder / "samples"
    assert made.name.startswith("base-000006+upscaler-000004-")
    found = pictures(made)
    assert set(found) == {"00_00.png", "01_00.png", "grid.png"}
    after = pictures(folder / "samples" / "after")
    for name, (picture, about) in after.items():
        assert np.abs(found[name][0].astype(int) - picture).max() <= 1
        assert found[name][1]["prompt"] == about["prompt"]
        assert found[name][1]["seed"] == about["seed"]
    # Nothing of the run changed, and the same again is there already.
    stamp = (made / "00_00.png").stat().st_mtime_ns
    assert commands.here(sample, run, folder) == made
    assert (made / "00_00.png").stat().st_mtime_ns == stamp
    now = commands.contents(folder)
    assert {name: now[name] for name in before} == before

    # The export, as a base model of its own, calls the subject by the same word.
    exported = {kind: folder / "export" / kind for kind in stages}
    again = commands.here(sample, commands.config(exported), tmp_path / "elsewhere")
    assert again.name.startswith("untouched-")
    for name, (picture, about) in pictures(again).items():
        if name != "grid.png":
            assert about["prompt"] == after[name][1]["prompt"]
            # A learned variance is fixed in the export, as in the run's own sampling.
            assert np.abs(picture.astype(int) - after[name][0]).max() <= 1


def test_prompts_of_ones_own_and_the_untouched_model(done):
    _, folder = done
    c = of_run(folder, sample__prompts=PROMPTS, sample__num_images=2, restore__base=0)
    c.restore.upscaler = 0
    made = commands.here(sample, c, folder)
    found = pictures(made)
    assert made.name.startswith("untouched-")
    assert set(found) == {"00_00.png", "00_01.png", "01_00.png", "01_01.png", "grid.png"}
    assert found["00_00.png"][1]["prompt"].endswith(" bird at night")
    assert found["01_00.png"][1]["prompt"] == "a bird"
    untouched = pictures(folder / "samples" / "before")["01_00.png"][0]  # the same prompt and seed
    assert np.abs(found["01_00.png"][0].astype(int) - untouched).max() <= 1
    page = found["grid.png"][0]
    assert page.shape[1] >= 2 * 128 and page.std() > 0


def test_a_run_is_scored_by_its_own_grids_or_by_more_pictures(done, monkeypatch):
    _, folder = done
    stand_in_judges.instead(monkeypatch)
    before = {path.name for path in (folder / "samples").iterdir()}
    file = commands.here(evaluate, of_run(folder), folder)
    assert {path.name for path in (folder / "samples").iterdir()} == before  # nothing is drawn
    found = {(s.measure, s.pictures): s for s in scores.read(file)}
    photos = sorted(Path(dreambooth_jax.__file__).parent.glob("assets/subject/*.png"))
    real = stand_in_judges.colours(
        [np.asarray(Image.open(photo).convert("RGB")) for photo in photos], ""
    )
    for name, grid in (("untouched", "before"), ("tuned", "after")):
        picture, about = pictures(folder / "samples" / grid)["00_00.png"]
        assert about["prompt"] != "a bird"
        cosines = [
            x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            for x in stand_in_judges.colours([picture], "")
            for y in real
        ]
        score = found["subject_similarity", name]
        assert (score.value, score.n) == (pytest.approx(np.mean(cosines)), len(photos))

    # Two of each prompt: these are drawn, the first as they were.
    c = of_run(folder, evaluate__num_images=2, restore__base=0, restore__upscaler=0)
    content = json.loads(commands.here(evaluate, c, folder).read_text())
    assert content["about"]["weights"] == "untouched"
    assert content["about"]["pictures"] == {"untouched": 4}
    (name,) = {path.name for path in (folder / "samples").iterdir()} - before
    made = folder / "samples" / name
    assert {about["prompt"] for _, about in pictures(made).values()} >= {"a bird"}
    same = pictures(folder / "samples" / "before")["01_00.png"][0]
    assert np.abs(pictures(made)["01_00.png"][0].astype(int) - same).max() <= 1


def test_a_run_keeps_its_word_whatever_would_be_chosen_now(done, tmp_path, monkeypatch):
    _, folder = done
    told = json.loads((folder / "export" / "base" / "dreambooth.json").read_text())["identifier"]
    monkeypatch.setattr(identifier, "choose", lambda *given, **how: "other")
    c = configs.resolve(of_run(folder))
    model = setup.load(c, setup.open_stages(c))
    (word,) = subjects.words(c, model, Workdir.of_run(folder, c))
    assert word.identifier == told != "other"
    (word,) = subjects.words(c, model, Workdir.of_run(tmp_path, c))  # no run there
    assert word.identifier == "other"


def test_the_word_of_an_export_is_not_chosen_for_the_next_subject(done, tmp_path):
    _, folder = done
    exported = {kind: folder / "export" / kind for kind in ("base", "upscaler")}
    told = json.loads((exported["base"] / "dreambooth.json").read_text())["identifier"]
    names = {f"{kind}_model": str(place) for kind, place in exported.items()}
    c = configs.resolve(of_run(folder, **names))
    model = setup.load(c, setup.open_stages(c))
    (word,) = subjects.words(c, model, Workdir.of_run(tmp_path / "drawing", c), as_exported=True)
    assert word.identifier == told
    (word,) = subjects.words(c, model, Workdir.of_run(tmp_path / "next", c))
    assert told not in word.identifier and word.identifier not in told


def test_an_earlier_checkpoint_is_exported(done, tmp_path):
    _, folder = done
    copied = Path(shutil.copytree(folder, tmp_path / "run"))
    last = commands.weights(copied / "export" / "base")
    c = of_run(copied, restore__base=4, export__dtype="bfloat16")
    assert commands.here(export, c, copied) == copied / "export"
    now = commands.weights(copied / "export" / "base")
    assert now.keys() == last.keys()
    assert {x.dtype.name for x in now.values()} == {"bfloat16"}
    moved = [k for k in now if not np.allclose(now[k].astype(np.float32), last[k], rtol=2**-7)]
    assert moved and all(name.startswith("unet/") for name in moved)
    card = (copied / "export" / "base" / "README.md").read_text()
    assert "fine-tuned: 4 steps" in card
    told = json.loads((copied / "export" / "base" / "dreambooth.json").read_text())
    assert told["class_noun"] == "bird" and told["identifier"]

    # The newest one again: the run's own export, bit for bit.
    commands.here(export, of_run(copied), copied)
    again = commands.weights(copied / "export" / "base")
    assert all(np.array_equal(again[key], last[key]) for key in last)


def test_what_is_not_there_or_does_not_fit_is_refused(done, tmp_path):
    stages, folder = done
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 5; has: 4, 6"):
        commands.here(export, of_run(folder, restore__base=5), folder)
    with pytest.raises(CheckpointError, match=r"no checkpoints to export.*restore\.base=0"):
        commands.here(export, commands.config(stages), tmp_path / "nothing")
    other = commands.config(stages, subject__class_noun="toy")
    with pytest.raises(configs.ConfigError, match=r"(?s)subject\.class_noun.*of_run\.py") as error:
        commands.here(sample, other, folder)
    assert "now it is 'toy'" in str(error.value)
    with pytest.raises(configs.ConfigError, match="no run in"):
        configs.of_run(str(tmp_path))
    with pytest.raises(ValueError, match="single_file=False"):
        commands.here(export, of_run(folder, export__single_file=True), folder)
    # Weights of another base do not go under these checkpoints.
    swapped = {"base": stages["base"], "upscaler": folder / "export" / "upscaler"}
    with pytest.raises(CheckpointError, match="other settings"):
        commands.here(sample, commands.config(swapped), folder)


def test_a_set_of_prompts_by_its_name_on_the_command_line(done):
    _, folder = done
    words = [f"--config=configs/of_run.py:{folder}", "--mode=sample"]
    words += ["--config.sample.prompts=colour", "--config.restore.base=4"]
    output = commands.run(words)
    assert f"Done. The pictures: {folder / 'samples' / 'base-000004'}" in output.replace("\n", " ")
    made = Path(output.split("Done. The pictures: ")[1].splitlines()[0].strip())
    prompts = [about["prompt"] for _, about in pictures(made).values() if "prompt" in about]
    assert len(prompts) == 5
    assert prompts[0].startswith("a red ") and prompts[0].endswith(" bird")


def test_identify_lists_candidates_of_the_base_and_of_any_tokenizer(done, tmp_path):
    stages, _ = done
    c = commands.config(stages, identify__count=6)
    file = MODES["identify"].function(c, tmp_path)
    assert file == tmp_path / "identifiers.json"
    listed = json.loads(file.read_text())
    assert 0 < len(listed) <= 6
    assert all(set(found) == {"text", "ids", "score"} for found in listed)
    # A run with "auto" takes the first.
    run = json.loads((done[1] / "export" / "base" / "dreambooth.json").read_text())
    assert listed[0]["text"] == run["identifier"]
    c.identify.tokenizer = str(stages["base"] / "tokenizer")
    alone = json.loads(MODES["identify"].function(c, tmp_path / "alone").read_text())
    assert {found["score"] for found in alone} == {0.0}
    assert not (tmp_path / "config.json").exists()


def test_identify_ranks_words_by_what_they_change_in_pictures(done, tmp_path):
    stages, _ = done
    drawn = {"identify__num_images": 2, "identify__num_drawn": 2, "identify__count": 4}
    c = commands.config({"base": stages["base"]}, upscaler_model="", stages=("base",), **drawn)
    listed = json.loads(MODES["identify"].function(c, tmp_path).read_text())
    changes = [found.get("change") for found in listed]
    assert len(changes) == 4
    assert changes[2:] == [None, None]
    assert 0 < changes[0] <= changes[1]
    # The same pictures by --mode=sample: same prompts, same noise.
    c.sample.num_images = 2
    words = [found["text"] for found in listed[:2]]
    articles = ["an" if word[0] in "aeiou" else "a" for word in words]
    named = [f"{an} {word} {{class_noun}}" for an, word in zip(articles, words, strict=True)]
    c.sample.prompts = ("{class_prompt}", *named)
    made = sorted(MODES["sample"].function(c, tmp_path).glob("0*.png"))
    levels = np.stack([np.asarray(Image.open(file), np.float64) for file in made])
    plain, first, second = levels.reshape(3, -1)
    wanted = [np.abs(other - plain).mean() for other in (first, second)]
    np.testing.assert_allclose(changes[:2], wanted, atol=5e-3)


@pytest.mark.parametrize("name", ["t5", "clip"])
def test_identify_on_published_tokenizers(name, shared_data, tmp_path):
    """Every candidate is itself again inside the prompt, by the tokenizer library alone."""
    folder = shared_data / "tokenizers" / name
    c = configs.base_config()
    c.subject.class_noun = "dog"
    c.identify.tokenizer = str(folder)
    listed = json.loads(MODES["identify"].function(c, tmp_path).read_text())
    assert len(listed) == 50
    kind = {"t5": "T5Tokenizer", "clip": "CLIPTokenizer"}[name]
    judge = getattr(transformers, kind).from_pretrained(folder)
    plain = judge("a photo of a dog", add_special_tokens=False)["input_ids"]
    for found in listed:
        ids = judge(f"a photo of a {found['text']} dog", add_special_tokens=False)["input_ids"]
        assert ids == [*plain[:-1], *found["ids"], plain[-1]], found
    words = "the and for are but not you all any can her was one our out day get has him his how"
    words += " man new now old see two way who boy did its let put say she too use dad mom big red"
    common = set(words.split())
    assert not common & {found["text"] for found in listed}
