"""The console command: sub-commands, help for users, configurations by name, and the wheel."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from dreambooth_jax import __version__, config, console
from dreambooth_jax.experiment.modes.table import MODES


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    console.main(words)
    return capsys.readouterr().out


def refused(*words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        console.main(words)
    return str(caught.value.code)


def test_help_names_every_mode_configuration_and_option(capsys, repository):
    text = said(capsys, "--help")
    assert said(capsys) == text
    for name, mode in MODES.items():
        assert name in text and mode.help in text
    for file in (repository / "configs").glob("*.py"):
        assert f"\n  {file.stem} " in text
    assert "--workdir" in text and "--config.KEY=VALUE" in text
    assert max(map(len, text.splitlines())) <= 100


def test_settings_are_printed_by_word(capsys):
    text = said(capsys, "settings", "min_snr")
    assert text.startswith("loss.min_snr_gamma = 0.0\n") and "range: [0, inf)" in text
    keys = [
        line.partition(" = ")[0] for line in said(capsys, "settings").splitlines() if line[0] != " "
    ]
    assert {*keys} == {*config.flatten(config.base_config())} and len(keys) == len({*keys})
    assert "Did you mean 'optim.learning_rate'?" in refused("settings", "learning_rat", "nowhere")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "trian: no such command. Did you mean 'train'? There are train, sample, "),
        (["settings", "no such words"], "no setting contains 'no such words'."),
    ],
)
def test_a_wrong_word_is_a_short_message(words, message):
    assert refused(*words).startswith(message)


def test_version(capsys):
    assert said(capsys, "--version") == f"dreambooth_jax {__version__}\n"


def test_a_mode_runs_in_any_folder_with_a_configuration_by_name(tmp_path, repository):
    """A run that is refused for its model: the flags, the name and the settings arrived."""
    program = "import sys; from dreambooth_jax import console; console.main(sys.argv[1:])"
    words = [
        "train",
        "--config=sdxl",
        "--config.base_model=nowhere",
        "--config.train.num_steps",
        "7",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no model folder 'nowhere'" in done.stderr and "Traceback" not in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == "sdxl-photos"  # the configuration, the folder of photos
    assert '"num_steps": 7' in (run / "config.json").read_text()


def test_the_module_is_the_command(repository):
    """Without an installed script."""
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth_jax.console", "--version"],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"dreambooth_jax {__version__}\n"


def test_the_wheel_holds_the_command_the_configurations_and_the_types(tmp_path, repository):
    pytest.importorskip("hatchling")
    from hatchling.builders import wheel

    (file,) = wheel.WheelBuilder(str(repository)).build(
        directory=str(tmp_path), versions=["standard"]
    )
    with zipfile.ZipFile(file) as archive:
        names = {*archive.namelist()}
        (entry,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "dreambooth-jax = dreambooth_jax.console:main" in archive.read(entry).decode()
    configs = {
        f"dreambooth_jax/configs/{path.name}" for path in (repository / "configs").glob("*.py")
    }
    assert configs <= names
    assert {"dreambooth_jax/py.typed", "dreambooth_jax/assets/base/model_index.json"} <= names
    assert not [name for name in names if name.startswith(("configs/", "tests/"))]
    scripts = tomllib.loads((repository / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"dreambooth-jax": "dreambooth_jax.console:main"}


def test_a_file_is_preferred_to_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    known = config.library.files()
    assert config.library.located("sdxl") == str(known["sdxl"])
    assert config.library.located("configs/sdxl.py") == str(known["sdxl"])
    assert config.library.located("stable_diffusion:sd21") == f"{known['stable_diffusion']}:sd21"
    assert config.library.located("of_run:runs/a:b") == f"{known['of_run']}:runs/a:b"
    assert config.library.located("own.py:x") == "own.py:x"
    Path("configs").mkdir()
    Path("configs/sdxl.py").write_text("")
    assert config.library.located("configs/sdxl.py") == "configs/sdxl.py"
