"""The Python interface: light to import, and the same pictures and files as the command line."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import commands
import jax
import numpy as np
import pytest

import dreambooth_jax
from dreambooth_jax import api, config, families, pipeline, sharding
from dreambooth_jax.experiment.parts.grids import read_picture


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """The stages of a tiny cascade, and a copy of a run of the main command on it."""
    stages, folder = commands.reference(tmp_path_factory)
    copy = tmp_path_factory.mktemp("api") / "run"
    shutil.copytree(folder, copy)
    return stages, copy


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """The command ran on one device."""
    some = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    with mock.patch.object(sharding, "make_mesh", some):
        yield


def drawn(folder: Path) -> list[tuple[np.ndarray, dict]]:
    after = folder / "samples" / "after"
    return [read_picture(after / name) for name in ("00_00.png", "01_00.png")]


def test_importing_the_package_imports_no_jax(repository):
    program = "import sys, dreambooth_jax; print('jax' in sys.modules, dir(dreambooth_jax))"
    words = [sys.executable, "-c", program]
    told = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=True).stdout
    assert told.startswith("False")
    assert all(name in told for name in dreambooth_jax.__all__)


def test_every_public_name_is_described():
    for name in dreambooth_jax.__all__:
        assert getattr(dreambooth_jax, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        dreambooth_jax.lode  # noqa: B018 - the name alone raises


def test_a_run_draws_what_the_command_drew(done):
    (first, about), (second, also) = drawn(done[1])
    run = dreambooth_jax.Run(done[1])
    pictures = run.sample(["a {subject}", also["prompt"]], seeds=about["seed"])
    assert pictures[0].mode == "RGB"
    for picture, expected in zip(pictures, (first, second), strict=True):
        assert np.array_equal(np.asarray(picture), expected)
    assert run.report.is_file()


def test_an_export_draws_the_same(done):
    """The export is in float32: nothing is rounded."""
    (first, about), (second, also) = drawn(done[1])
    model = dreambooth_jax.load(done[1] / "export")
    assert [word.class_noun for word in model.words] == ["bird"]
    pictures = model.sample([about["prompt"], also["prompt"]], seeds=[about["seed"]])
    assert np.array_equal(np.asarray(pictures[0]), first)
    assert np.array_equal(np.asarray(pictures[1]), second)
    with pytest.raises(ValueError, match="a cascade draws at its own size"):
        model.sample("a bird", size=(64, 64))
    with pytest.raises(ValueError, match=r"seeds = \[\]: expected one seed or more"):
        model.sample("a bird", seeds=[])
    # A brace that is meant is drawn as one.
    braces = model.sample(["a {{bird}}", "a {subject} {{"], seeds=7)
    assert len(braces) == 2


def test_an_export_is_opened_without_what_its_run_was_made_of(done, tmp_path):
    """A run of a single file or with a VAE of its own: the export holds what it took from them."""
    run = shutil.copytree(done[1], tmp_path / "run")
    settings = json.loads((run / "config.json").read_text())
    gone = dict.fromkeys(("base_settings", "vae_model"), "/gone") | {"variant": "fp16"}
    (run / "config.json").write_text(json.dumps(settings | gone))
    (first, about), _ = drawn(run)
    model = dreambooth_jax.load(run / "export")
    (picture,) = model.sample([about["prompt"]], seeds=[about["seed"]])
    assert np.array_equal(np.asarray(picture), first)


def test_a_base_model_draws_what_a_run_drew_before_training(done, caplog):
    stages, folder = done
    pixels, about = read_picture(folder / "samples" / "before" / "01_00.png")
    settings = commands.settings(stages)
    model = dreambooth_jax.load(
        stages["base"].parent, config="imagen_like:smoke", settings=settings
    )
    assert model.words == ()
    pictures = model.sample([about["prompt"]] * 2, seeds=about["seed"])
    assert np.array_equal(np.asarray(pictures[0]), pixels)
    assert "names no subject" not in caplog.text
    with pytest.raises(ValueError, match="knows no subject"):
        model.sample("a {subject}")


def test_finetune_resumes_and_exports(done):
    stages, folder = done
    settings = commands.settings(stages)
    run = dreambooth_jax.finetune(
        "embedded", "bird", config="imagen_like:smoke", workdir=folder, settings=settings
    )
    assert run == dreambooth_jax.Run(folder)  # finished: nothing is trained
    before = commands.weights(folder / "export")
    assert run.export() == folder / "export"
    assert commands.different(before, commands.weights(folder / "export")) == set()
    run.export({"restore.base": 0, "restore.upscaler": 0})  # the untouched model
    changed = commands.different(before, commands.weights(folder / "export"))
    assert any(name.startswith("base/unet") for name in changed)


def test_scores_are_those_of_the_run(done, tmp_path):
    for name in ("config.json",):
        shutil.copy(done[1] / name, tmp_path / name)
    (tmp_path / "scores.json").write_text(json.dumps({"scores": {"dino": 0.5}}))
    assert dreambooth_jax.Run(tmp_path).scores() == {"scores": {"dino": 0.5}}


@pytest.mark.parametrize(
    ("asked", "kind", "message"),
    [
        ({"prompts": []}, ValueError, "prompts = .*expected one prompt or more"),
        ({"prompts": "a {bird}"}, ValueError, "expected text with only"),
        ({"prompts": [None]}, TypeError, "prompts has None"),
        ({"seeds": -1}, ValueError, "seeds has -1: expected numbers from 0 to 4294967295"),
        ({"seeds": 1.0}, TypeError, "seeds = 1.0"),
        ({"size": (10**6, 8)}, ValueError, "size = .*8192"),
        ({"size": 512}, TypeError, "size = 512: expected height and width"),
    ],
)
def test_what_is_asked_of_a_run_is_checked_before_it_is_loaded(done, asked, kind, message):
    run = dreambooth_jax.Run(done[1])
    with (
        mock.patch.object(api, "load", None),
        pytest.raises(kind, match=message) as caught,
    ):
        run.sample(**{"prompts": ["a bird"]} | asked)
    assert len(str(caught.value).splitlines()) == 1


def test_what_cannot_be_drawn_is_told_before_anything_compiles(done):
    """By a model of one stage, which could draw other sizes."""
    stages, _ = done
    model = dreambooth_jax.load(stages["base"], config="imagen_like:smoke")
    with mock.patch.object(api, "Painter", None):
        for asked, kind, message in (
            ({"prompts": "a {subject}"}, ValueError, "knows no subject"),
            ({"prompts": "a {"}, ValueError, "for a brace that is meant"),
            ({"seeds": [0, 2**32]}, ValueError, "seeds has 4294967296"),
            ({"seeds": True}, TypeError, "seeds = True, a bool"),
        ):
            with pytest.raises(kind, match=message):
                model.sample(**{"prompts": "a bird"} | asked)
        error = pipeline.SizeError((1, 8), "expected two multiples of 8", (8, 8))
        with (
            mock.patch.object(pipeline.Stage, "at", side_effect=error),
            pytest.raises(ValueError, match=r"^size = \(1, 8\): .* of 8\. Write size=\(8, 8\)\.$"),
        ):
            model.sample("a bird", size=(1, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dreambooth_jax.load(None), "name_or_folder = None: expected text, not NoneType"),
        (lambda: dreambooth_jax.load(b"model"), "name_or_folder = b'model'"),
        (lambda: dreambooth_jax.load(config=1), "config = 1: expected text"),
        (lambda: dreambooth_jax.load(settings="seed=1"), "settings = 'seed=1': expected a dict"),
        (lambda: dreambooth_jax.load(settings={1: 2}), "settings = {1: 2}: expected a dictionary"),
        (lambda: dreambooth_jax.Run(3), "folder = 3: expected text"),
        (lambda: dreambooth_jax.finetune(["a.jpg"], "toy"), r"photos = \['a.jpg'\]: expected text"),
        (lambda: dreambooth_jax.finetune("photos", 3), "class_noun = 3: expected text"),
        (lambda: dreambooth_jax.finetune("photos", "toy", config=None), "config = None"),
        (lambda: dreambooth_jax.finetune("photos", "toy", workdir=1), "workdir = 1: expected text"),
        (lambda: dreambooth_jax.finetune("photos", "toy", settings=[1]), r"settings = \[1\]"),
    ],
)
def test_an_argument_of_another_kind_is_told_by_name(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=message):
        call()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dreambooth_jax.load("a\0b"), "name_or_folder = .*a file's name can hold"),
        (lambda: dreambooth_jax.load("nowhere"), "no model folder 'nowhere'"),
        (lambda: dreambooth_jax.Run("nowhere"), "no run in 'nowhere'"),
        (lambda: dreambooth_jax.finetune("photos", "toy", config="sdlx"), "Did you mean 'sdxl'"),
        (
            lambda: dreambooth_jax.finetune("photos", "toy", settings={"train.nsteps": 1}),
            "train.nsteps.*Did you mean 'train.num_steps'",
        ),
        (lambda: dreambooth_jax.load(settings={"seed": -1}), "seed = -1: expected"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        call()
    assert [*tmp_path.iterdir()] == []


def test_every_family_has_a_configuration_to_draw_with():
    bases = {name for name, family in families.FAMILIES.items() if family.kind == "base"}
    assert api.CONFIG_OF.keys() == bases
    assert {*api.CONFIG_OF.values()} <= config.library.files().keys()
