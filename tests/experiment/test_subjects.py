"""Folders and words of a run: compared with each other, and with what was asked."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import compile_cache, main
from dreambooth_jax import config as configs
from dreambooth_jax.data.audit import AuditError
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import class_images, subjects
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.text import tokenizer as text

STAGES: Any = {"base": SimpleNamespace(size=16)}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four photos of noise."""
    folder = tmp_path / "duck"
    folder.mkdir()
    for k in range(4):
        pixels = np.random.default_rng(k).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


def plan_of(**changed: Any) -> configs.Plan:
    settings = {key.replace("__", "."): value for key, value in changed.items()}
    return configs.changed(configs.resolve(configs.base_config()), settings)


@pytest.mark.parametrize("ending", ["png", "bmp"])  # the same pixels in another format
def test_photos_of_a_subject_are_no_class_images(ending: str, photos: Path, tmp_path: Path) -> None:
    own = tmp_path / "class"
    own.mkdir()
    for k, place in enumerate(sorted(photos.iterdir())):
        Image.open(place).save(own / f"c{k}.{ending}")
    plan = plan_of(subject__images=str(photos), prior__images=str(own))
    with pytest.raises(AuditError, match="4 photos of a subject are among the class images"):
        subjects.audit(plan, STAGES)
    others = ((str(photos), "duck", "auto"),)
    plan = plan_of(subject__images=str(photos), subject__others=others)
    with pytest.raises(AuditError, match="4 photos of a subject are of another subject as well"):
        subjects.audit(plan, STAGES)


def test_what_is_left_as_it_comes_or_too_few_is_told(
    photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The default noun of the embedded subject; 2 class images where 200 are asked for."""
    own = tmp_path / "class"
    own.mkdir()
    for k in range(2):
        pixels = np.random.default_rng(9 + k).integers(0, 256, (24, 24, 3), np.uint8)
        Image.fromarray(pixels).save(own / f"{k}.png")
    settings = {"subject__images": str(photos), "prior__images": str(own)}
    plan = plan_of(**settings, prior__num_images=200)
    folders = subjects.audit(plan, STAGES)
    assert "subject.class_noun is 'bird', as it is left" in caplog.text
    words = [Words.of(identifier="zib", class_noun="bird")]
    class_images.own(plan, folders, words)
    assert "prior.num_images is 200, and" in caplog.text and "holds 2 class images" in caplog.text
    caplog.clear()
    plan = plan_of(**settings, subject__class_noun="toy", prior__num_images=2)
    words = [Words.of(identifier="zib", class_noun="toy")]
    class_images.own(plan, subjects.audit(plan, STAGES), words)
    assert "class_noun" not in caplog.text and "holds 2" not in caplog.text


def test_a_prompt_that_names_no_subject_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A word that is nearly the subject's is no word: the picture shows any toy."""
    words = [Words.of(identifier="sma", class_noun="toy")]
    prompts = ("a sksx toy", "a sma toy", "a toy", "a {subject} in the snow", "art")
    painter: Any = SimpleNamespace(plan=plan_of(sample__prompts=prompts), words=words)
    Painter._tell_unnamed(painter)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "'a sksx toy' names no subject" in told[0] and "sma toy" in told[0]


def test_every_caption_that_loses_the_word_is_named(
    photos: Path, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = repository / "dreambooth_jax" / "assets" / "base" / "tokenizer"
    stage = SimpleNamespace(size=16, tokenizers={"text_encoder": text.load(folder)})
    model: Any = SimpleNamespace(stages={"base": stage})
    long = "photo " * 90
    for name, caption in (
        ("0", f"{long} zib bird"),
        ("1", "a zib bird"),
        ("2", f"{long}a zib bird"),
    ):
        (photos / f"{name}.txt").write_text(caption)
    (photos / "3.txt").write_text(f"a zib bird, {long}")  # cut after the word
    plan = plan_of(
        subject__images=str(photos), subject__captions="files", subject__identifier="zib"
    )
    folders = subjects.audit(plan, model.stages)
    with pytest.raises(AuditError) as error:
        subjects.read(plan, model, folders, [Words.of(identifier="zib", class_noun="bird")])
    lines = str(error.value).splitlines()
    assert [Path(line.split()[3].rstrip(":")).name for line in lines] == ["0.png", "2.png"]
    assert all("nearer to the beginning" in line for line in lines)


def test_no_home_folder_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Containers run under users without a name."""
    known: dict[str, Any] = {}
    before = SimpleNamespace(jax_compilation_cache_dir=None, update=known.__setitem__)
    monkeypatch.setattr(compile_cache.jax, "config", before)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def absent() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(compile_cache.Path, "home", absent)
    compile_cache.use("")
    assert known == {"jax_enable_compilation_cache": False}
    assert "--config.compile.cache_dir=FOLDER" in caplog.text


def test_an_error_in_a_library_s_thread_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    monkeypatch.setattr(threading, "excepthook", main._in_background)

    def fails() -> None:
        raise OSError(28, "No space left on device", "x/array")

    thread = threading.Thread(target=fails, name="saver")
    thread.start()
    thread.join()
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert told == ["thread saver: [Errno 28] No space left on device: 'x/array'"]
    assert capsys.readouterr().err.count("Traceback") == 0
