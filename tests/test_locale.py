"""A locale without UTF-8: files are UTF-8 all the same, and the terminal gets escapes."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

# As in a container with LANG=C and Python's own remedies switched off, or with ISO-8859-1.
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# Arguments that make a call one of text, and how many positional ones the functions of a path have.
_TEXT = {"read_text": 0, "write_text": 1}


def said(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dreambooth_jax.console", *words],
        env=os.environ | ASCII,
        capture_output=True,
        encoding="ascii",
        timeout=120,
    )


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--help"], "--workdir"),
        (["settings", "min_snr"], "loss.min_snr_gamma = 0.0"),
        (["settings", "--markdown"], "`export.push_to_hub`"),
        (["studio", "--help"], "--token"),
    ],
)
def test_what_is_printed_has_no_character_that_the_terminal_lacks(
    words: list[str], shown: str
) -> None:
    done = said(*words)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout and done.stderr == ""


def test_a_setting_that_the_locale_cannot_tell_is_named_with_the_remedy(tmp_path: Path) -> None:
    words = ["train", "--config=imagen_like:smoke", f"--workdir={tmp_path / 'run'}"]
    done = said(*words, "--config.subject.images=/x/phötos")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [each for each in done.stderr.splitlines() if "file can hold" in each]
    assert "subject.images" in line and "PYTHONUTF8=1" in line


def without_encoding(source: str) -> list[int]:
    """Lines that read or write text in whatever encoding the locale has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or "encoding" in {each.arg for each in node.keywords}:
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        place = (
            0 if isinstance(node.func, ast.Attribute) else 1
        )  # path.open(mode), open(path, mode)
        modes = [each.value for each in node.args[place:][:1] if isinstance(each, ast.Constant)]
        named = {each.arg: each.value for each in node.keywords}
        opens = name == "open" and any(mode in ("r", "w", "a", "x", "r+") for mode in modes)
        bare = name == "open" and not node.args and not named  # path.open()
        child = name in ("run", "Popen", "check_output") and "text" in named
        if _TEXT.get(name) == len(node.args) or opens or bare or child:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("file.read_text()", [1]),
        ("file.write_text(text)", [1]),
        ("files.write_text(file, text)", []),
        ("file.read_text(encoding='utf-8')", []),
        ("open(file, 'w')", [1]),
        ("file.open()", [1]),
        ("file.open('w')", [1]),
        ("file.open('rb')", []),
        ("archive.open(about, 'w')", []),
        ("subprocess.run(words, text=True)", [1]),
    ],
)
def test_the_rule_can_tell(source: str, lines: list[int]) -> None:
    assert without_encoding(source) == lines


def test_every_text_has_its_encoding(repository: Path) -> None:
    found = {
        path.relative_to(repository).as_posix(): lines
        for path in (repository / "dreambooth_jax").rglob("*.py")
        if (lines := without_encoding(path.read_text(encoding="utf-8")))
    }
    assert found == {}
