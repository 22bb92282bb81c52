"""Two subjects with captions, masks and class images of one's own, through the whole command."""

import collections
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import commands
import numpy as np
import pytest
import stand_in_judges
from PIL import Image

from dreambooth_jax import config as configs
from dreambooth_jax import metrics
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.data.audit import AuditError
from dreambooth_jax.evaluate import scores
from dreambooth_jax.experiment.parts import subjects

SETTINGS = {
    "subject__class_noun": "cat",
    "subject__identifier": "zib",
    "subject__captions": "files",
    "subject__masks": "files",
    "subject__crops": 2,
    "subject__flip": True,
    "prior__num_images": None,
    "sample__prompts": ("a {subject}", "{class_prompt}"),
    "train__text_encoder": True,
    "train__num_steps": 4,
    "train__batch_size": 4,  # fewer rows than prompts
    "train__accumulate": 2,
    "train__sample_every": 0,
    "upscaler__num_steps": 2,
    "upscaler__batch_size": 4,
    "loss__min_snr_gamma": 5.0,
}


def pictures_opened(patch: pytest.MonkeyPatch) -> collections.Counter[str]:
    """How often Pillow opens each file from now on, by folder and name."""
    found: collections.Counter[str] = collections.Counter()
    real = Image.open

    def counted(file, *args, **how):
        found["/".join(Path(getattr(file, "name", file)).parts[-2:])] += 1
        return real(file, *args, **how)

    patch.setattr(Image, "open", counted)
    return found


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The run's configuration and folder; its photos are beside it."""
    root = tmp_path_factory.mktemp("cast")
    rng = np.random.default_rng(7)
    cats = [f"a {{subject}} on a {x}" for x in ("roof", "mat", "tree")]
    dogs = [f"a {x} {{subject}}" for x in ("wet", "big", "old")]
    commands.pictures(root / "cat", ("one", "two", "three"), rng, captions=cats, masks=True)
    commands.pictures(root / "dog", ("one", "two", "four"), rng, captions=dogs, masks=True)
    own = [f"a {x} {{class_noun}}" for x in ("grey", "small")]
    commands.pictures(root / "classes", ("a", "b", "c"), rng, captions=own)
    commands.pictures(root / "classes" / "dog", ("a", "b", "c"), rng, captions=own)
    c = commands.config(
        commands.cascade(tmp_path_factory),
        **SETTINGS,
        subject__images=str(root / "cat"),
        subject__others=((str(root / "dog"), "dog", "auto"),),
        prior__images=str(root / "classes"),
        evaluate__at_end=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        stand_in_judges.instead(patch)
        commands.run_here(c, root / "run")
    return c, root


def test_the_run_names_both_and_shows_all_that_they_brought(done):
    _, root = done
    run = root / "run"
    told = json.loads((run / "export" / "base" / "dreambooth.json").read_text())
    assert (told["identifier"], told["class_noun"]) == ("zib", "cat")
    (second,) = told["others"]
    word = second["identifier"]
    assert second["class_noun"] == "dog"
    assert word not in ("auto", "zib")
    card = (run / "export" / "base" / "README.md").read_text()
    assert f"a zib cat, a {word} dog" in card
    report = (run / "report.html").read_text()
    for text in (
        "three.png: a <mark>zib</mark> cat on a tree",
        f"four.png: a old <mark>{word}</mark> dog",
        "The masks, zib cat",
        f"The masks, {word} dog",
        "Class images, cat",
        "a small dog",
    ):
        assert text in report, text
    prompts = set()
    for file in (run / "samples" / "after").iterdir():
        with Image.open(file) as image:
            prompts.add(json.loads(image.info["dreambooth_jax"])["prompt"])
    assert prompts == {"a zib cat", f"a {word} dog", "a cat", "a dog"}
    assert not (run / "prior").exists()  # none was drawn
    found = {(s.measure, s.pictures): s.n for s in scores.read(run / "scores.json")}
    for name in ("zib cat", f"{word} dog"):  # one picture of its own, by three photos of its own
        assert found["subject_similarity", f"tuned, {name}"] == 3
        assert found["prior_similarity", f"tuned, {name}"] == 3
        assert found["drift_similarity", f"tuned, {name}"] == 1
    records = metrics.read(run / "metrics.jsonl")
    losses = [v for r in records for name, v in r.items() if name.endswith(("subject", "prior"))]
    assert len(losses) == 2 * (4 + 2)
    assert np.isfinite(losses).all() and min(losses) > 0
    manifest = run / "checkpoints" / "base" / "4" / "manifest" / "metadata"
    saved = json.loads(manifest.read_text())["config"]
    assert saved["captions.one.png"] == "a zib cat on a roof"
    assert saved["captions.1/one.png"] == f"a wet {word} dog"
    assert len([key for key in saved if key.startswith("masks.")]) == 6
    assert len([key for key in saved if key.startswith("class_images.")]) == 6


def test_it_goes_on_bit_for_bit_and_refuses_another_caption_mask_or_class_image(done, tmp_path):
    c, root = done
    c = c.copy_and_resolve_references()
    c.evaluate.at_end = False
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    (run / "report.html").unlink()
    for stage in ("base", "upscaler"):  # back to the step before the last
        shutil.rmtree(run / "checkpoints" / stage / str({"base": 4, "upscaler": 2}[stage]))
    last = commands.weights(run / "export")
    for file, text, key in (
        (root / "dog" / "two.txt", "a huge {subject}", r"captions\.1/two\.png.*huge"),
        (root / "classes" / "a.txt", "a grey {class_noun} asleep", r"class_images\.cat/a\.png"),
    ):
        before = file.read_text()
        file.write_text(text)
        with pytest.raises(CheckpointError, match=key):
            commands.run_here(c, run)
        file.write_text(before)
    with pytest.MonkeyPatch.context() as patch:
        opened = pictures_opened(patch)
        commands.run_here(c, run)
    assert commands.different(commands.weights(run / "export"), last) == set()
    # Each photo, mask and class image was decoded once, for the audit and for all that is cut.
    photos = [f"cat/{x}" for x in ("one", "two", "three")]
    photos += [f"dog/{x}" for x in ("one", "two", "four")]
    expected = [f"{x}{end}" for x in photos for end in (".png", ".mask.png")]
    expected += [f"{x}/{k}.png" for x in ("classes", "dog") for k in "abc"]
    inputs = {name: n for name, n in opened.items() if name.startswith(("cat/", "dog/", "classes"))}
    assert inputs == dict.fromkeys(expected, 1)


def test_problems_of_all_folders_are_one_report(tmp_path):
    rng = np.random.default_rng(0)
    commands.pictures(tmp_path / "cat", ("one", "two"), rng, captions=("a {subject}",))
    c = configs.base_config()
    c.subject.images, c.subject.captions = str(tmp_path / "cat"), "files"
    c.subject.others = ((str(tmp_path / "dgo"), "dog", "zib"),)
    c.prior.images = str(tmp_path / "cat")
    with pytest.raises(AuditError) as caught:
        subjects.audit(configs.resolve(c), {"base": SimpleNamespace(size=(16, 16))})
    text = str(caught.value)
    for told in (
        "Photos of the subject, bird: 1 caption or mask not as needed",
        "caption two.txt is missing",
        f"Photos of the subject, dog: No such folder: {tmp_path / 'dgo'}",
        "Class images of 'bird': 1 caption or mask not as needed",
        "names the subject: write {class_noun}",
        f"Class images of 'dog': No such folder: {tmp_path / 'cat' / 'dog'}",
    ):
        assert told in text, told
