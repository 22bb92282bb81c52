import subprocess
from pathlib import Path

import pytest

from dreambooth_jax.studio import commands
from dreambooth_jax.studio.places import RefusedError

KNOWN = ("train.num_steps", "sample.prompts", "seed", "compile.cache_dir")


@pytest.mark.parametrize(
    "key", ["", "config", "seed=1 --mode", "Train.num_steps", "a.b.c", "-seed", "compile.cache_dir"]
)
def test_only_known_settings_are_set(key):
    with pytest.raises(RefusedError, match="not a setting"):
        commands.setting(key, "1", known=KNOWN)


def test_what_is_shown_is_what_is_run():
    prompts = ("a {subject} 'quoted' $HOME", 'b "x"; rm')
    line = commands.train(
        "configs/a b.py", Path("/runs/a b"), {"sample.prompts": prompts, "seed": 3}, known=KNOWN
    )
    assert line[:2] == ["--config=configs/a b.py", "--workdir=/runs/a b"]
    assert line[2] == f"--config.sample.prompts={prompts!r}"
    shell = f"python() {{ printf '%s\\0' \"$@\"; }}\n{commands.shown(line)}\n"
    printed = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert printed.stdout.split("\0") == ["-m", "dreambooth_jax.main", *line, ""]


def test_a_mode_of_a_run_takes_its_settings():
    line = commands.of_run("sample", "of_run.py", Path("/r/x"), {"seed": 1}, known=KNOWN)
    assert line == ["--config=of_run.py:/r/x", "--workdir=/r/x", "--mode=sample", "--config.seed=1"]


def test_lines_of_settings():
    text = "\n seed = 3\n# a remark\n--config.train.num_steps=4=5\n"
    assert commands.pairs(text) == {"seed": "3", "train.num_steps": "4=5"}
    with pytest.raises(RefusedError, match="key=value"):
        commands.pairs("seed")
    with pytest.raises(RefusedError, match="at most"):
        commands.setting("seed", "x" * 30_000, known=KNOWN)
