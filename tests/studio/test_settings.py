"""The settings as the child process tells them: the real one."""

import pytest

from dreambooth_jax.experiment.modes.table import MODES
from dreambooth_jax.studio import settings


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return settings.Library(tmp_path_factory.mktemp("library") / "settings.json")


def test_configurations_settings_and_modes(library, repository):
    assert library.modes() == []  # without waiting
    found = library.known()
    files = {path.stem for path in (repository / "configs").glob("*.py")}
    assert found["configs"].keys() == files - {"of_run", "benchmark"}
    small = found["configs"]["imagen_like"]
    assert small["size"] == [64, 64] and small["values"]["base_model"] == "embedded"
    assert small["summary"].startswith("DreamBooth on")
    assert found["of_run"].endswith("of_run.py")
    assert library.modes() == list(MODES)
    rows = {row["key"]: row for row in found["settings"]}
    assert rows.keys() == small["values"].keys()
    assert all(row["meaning"] for row in rows.values())


def test_the_answer_is_kept_while_the_program_is_the_same(library, monkeypatch):
    found = library.known()
    again = settings.Library(library._cache)
    monkeypatch.setattr(settings, "_asked", lambda *words: pytest.fail("a child was asked"))
    assert again.known() == found
    monkeypatch.setattr(settings, "_fingerprint", lambda: "another version")
    monkeypatch.setattr(settings, "_asked", lambda *words: {"modes": {"new": ""}})
    assert settings.Library(library._cache).known() == {"modes": {"new": ""}}


def test_the_check_is_that_of_the_main_command(library):
    config = f"--config={library.known()['configs']['imagen_like']['file']}"
    changed = ["--config.train.num_steps=70", "--config.train.batch_size=2"]
    good = library.check([config, "--workdir=x", *changed, "--config.adapt.name=lora"])
    before, values = library.known()["configs"]["imagen_like"]["values"], good.pop("values")
    assert before["train.batch_size"] != 2 and before["adapt.name"] != "lora"
    expected = {"train.num_steps": 70, "train.batch_size": 2, "adapt.name": "lora"}
    assert {key: x for key, x in values.items() if x != before[key]} == expected
    assert values.keys() == before.keys()
    assert good == {"problem": "", "steps": {"base": 70, "upscaler": 100}, "size": [64, 64]}
    bad = library.check([config, "--config.train.num_steps=0"])["problem"]
    assert "train.num_steps = 0: expected a number in [1, " in bad
    assert "no such key" in library.check([config, "--config.train.steps=1"])["problem"]
    with pytest.raises(RuntimeError, match="cannot be read"):
        settings._asked("nonsense", "--nonsense")
