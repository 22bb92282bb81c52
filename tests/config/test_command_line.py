"""Files in configs/ and the command line: what is valid, and mistakes as one short message."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from dreambooth_jax import config


def load(path: Path):
    """The `get_config` of a file of configs/."""
    return runpy.run_path(str(path))["get_config"]


def config_files() -> list[Path]:
    """All but that which takes its settings from a run (`test_modes.py`)."""
    found = (Path(__file__).parents[2] / "configs").glob("*.py")
    return sorted(path for path in found if path.stem != "of_run")


@pytest.mark.parametrize("path", config_files(), ids=lambda path: path.stem)
def test_config_files_are_valid_and_set_only_differences(path):
    get_config = load(path)
    c = get_config()
    config.validate(c)
    assert c.is_locked
    defaults, flat = config.flatten(config.base_config()), config.flatten(c)
    assert flat != defaults
    assert len(path.read_text().splitlines()) <= 80
    with pytest.raises(config.ConfigError, match="no variant"):
        get_config("no-such-variant")


def test_smoke_variant_is_short(repository):
    c = load(repository / "configs" / "imagen_like.py")("smoke")
    config.validate(c)
    assert c.train.num_steps <= 10
    assert c.upscaler.num_steps <= 10
    assert c.prior.num_images <= 8
    assert c.sampler.num_steps <= 5


PROGRAM = """
from absl import app
from ml_collections import config_flags
from dreambooth_jax import config

CONFIG = config_flags.DEFINE_config_file("config")

def main(argv):
    print("ran", CONFIG.value.seed, CONFIG.value.subject.flip, CONFIG.value.stages, len(argv))

app.run(main, flags_parser=config.parse_flags)
"""
START = (
    "from dreambooth_jax import config\n\ndef get_config(arg=''):\n    c = config.base_config()\n"
)
FILES = {  # file → its fifth line
    "good.py": "config.variant(arg, ('small',))",
    "typo.py": "c.train.num_stpes = 3",
    "group.py": "c.trian.num_steps = 3",
    "kind.py": "c.train.num_steps = 'many'",
    "wrong.py": "c.seed = -1",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("program")
    (path / "program.py").write_text(PROGRAM)
    for name, line in FILES.items():
        (path / name).write_text(f"{START}    {line}\n    return c\n")
    return path


def parse(words: str) -> flags.FlagValues:
    """What a program of its own would have parsed."""
    argv = ["program", *words.split()]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    assert config.parse_flags(argv, values) == ["program"]
    return values


def complaint(words: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    return str(caught.value.code)  # a text: Python prints it on stderr and exits with status 1


def test_a_program_runs_or_says_what_is_wrong(folder):
    def run(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "program.py", *words]
        path = str(Path(config.__file__).parents[2])
        env = os.environ | {"PYTHONPATH": path}
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout.strip(), done.stderr.strip()

    words = ["--config=good.py:small", "--config.seed=3", "--config.subject.flip"]
    assert run(*words, "--config.stages=base") == (0, "ran 3 True ('base',) 1", "")
    told = "--config.subject.imges: no such key. Did you mean 'subject.images'?"
    assert run(*words, "--config.subject.imges=x") == (1, "", told)


def test_overrides(folder, monkeypatch):
    monkeypatch.chdir(folder)
    c = parse("--config=good.py --config.train.num_steps 7 --config.mesh.fsdp=2")["config"].value
    assert (c.train.num_steps, c.mesh.fsdp, c.optim.learning_rate) == (7, 2, 1e-5)
    c = parse("--config good.py --config.sample.prompts=('a','b') --noconfig.subject.flip").config
    assert (c.sample.prompts, c.subject.flip) == (("a", "b"), False)
    for words, value in (("96,64", (96, 64)), ("(96,64)", (96, 64)), ("512", 512), ("None", None)):
        c = parse(f"--config=good.py --config.resolution={words}")["config"].value
        assert config.resolve(c).resolution == value
        assert config.from_json(config.to_json(c)).resolution == value


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("--config.subject.imges=x", ["imges: no such key. Did you mean 'subject.images'?"]),
        (
            "--config.subject.imges=x --config.optm=2 --noconfig.subject.flp",
            ["Did you mean 'subject.images'?", "Did you mean 'optim'?", "'subject.flip'?"],
        ),
        ("--config.optim=3", ["is a group of settings. Set one of optim.b1, "]),
        ("--config.sample.prompts[0]=x", ["a tuple is set as a whole"]),
        ("--config.seed=abc", ["--config.seed=abc"]),
        ("--config.seed=-1", ["1 problem in the configuration", "seed = -1"]),
        *(
            (f"--config.resolution={words}", ["1 problem", "Write --config.resolution=512, or "])
            for words in ("0", "96x64", "96,64,3", "96,-64", "1.5", "True", "[96,64]")
        ),
        ("--cofnig.seed=1", ["Unknown command line flag 'cofnig.seed'"]),
        ("photos", ["'photos': belongs to no flag"]),
    ],
)
def test_mistakes_on_the_command_line_are_short_messages(folder, monkeypatch, words, lines):
    monkeypatch.chdir(folder)
    told = complaint(f"--config=good.py {words}").splitlines()
    assert len(told) == len(lines)
    assert all(text in line for text, line in zip(lines, told, strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--config is missing. Write for instance --config=imagen_like, or --config=FILE.py."),
        (
            "--config",
            "--config is missing. Write for instance --config=imagen_like, or --config=FILE.py.",
        ),
        ("--config=god.py", "--config=god.py: no such file. Did you mean 'good.py'?"),
        (
            "--config=good.py:smal",
            "good.py:5: no variant 'smal', only small. Did you mean 'small'?",
        ),
        ("--config=typo.py", "typo.py:5: no such key 'num_stpes'. Did you mean 'train.num_steps'?"),
        ("--config=group.py", "group.py:5: no such key 'trian'. Did you mean 'train'?"),
        ("--config=kind.py", "kind.py:5: Could not override field 'num_steps'"),
        ("--config=wrong.py", "1 problem in the configuration:\n  seed = -1: expected"),
        ("--config.seed=1 --config=good.py", "before a value for --config"),
    ],
)
def test_mistakes_around_the_config_file_are_short_messages(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    told = complaint(words)
    assert message in told
    assert len(told.splitlines()) == len(message.splitlines())
