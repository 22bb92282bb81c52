"""Command lines as lists of words: nothing here is ever read by a shell."""

import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.studio.places import RefusedError

PROGRAM = ["-m", "dreambooth_jax.main"]
_KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?")
_LONGEST = 20_000  # characters of a value: a list of prompts
# Settings that name a file or folder to write to, or that another field of the page sets.
_OWN = ("compile.cache_dir", "hub.cache_dir", "prior.folder")


def words(executable: str = sys.executable) -> list[str]:
    """Returns the words that start the main command."""
    return [executable, *PROGRAM]


def shown(arguments: Iterable[str]) -> str:
    """Returns a command to be pasted into a shell, one argument a line."""
    parts = ["python", *PROGRAM, *arguments]
    lines = [" ".join(parts[:3]), *map(shlex.quote, parts[3:])]
    return " \\\n    ".join(lines)


def setting(key: str, value: Any, *, known: Iterable[str]) -> str:
    """Returns one flag `--config.KEY=VALUE`.

    Raises:
      RefusedError: there is no such key, or the page does not set it.
    """
    if not _KEY.fullmatch(key) or key not in set(known) or key in _OWN:
        raise RefusedError(f"{key!r} is not a setting that this page sets. Look at 'All settings'.")
    text = str(value)
    if len(text) > _LONGEST or "\0" in text:
        raise RefusedError(f"{key}: a value of {len(text)} characters; at most {_LONGEST}.")
    return f"--config.{key}={text}"


def train(
    config: str, folder: Path, changed: Mapping[str, Any], *, known: Iterable[str]
) -> list[str]:
    """Returns the arguments of a new run.

    config: the value of --config, one of those that come with the package.
    """
    known = set(known)
    return [
        f"--config={config}",
        f"--workdir={folder}",
        *(setting(key, value, known=known) for key, value in changed.items()),
    ]


def train_again(
    noted: Sequence[str], folder: Path, *, configs: Mapping[str, str], known: Iterable[str]
) -> list[str]:
    """Returns the arguments of a run that were noted when it was new, for the folder it has now.

    Nothing is taken that `train` does not write: a note may come with a folder of others. Paths
    beside the folder that it had are those beside the folder it has, where they are there.

    noted: what `train` returned. configs: the values of --config by name.

    Raises:
      RefusedError: it is none of these; see `setting`.
    """
    config, changed = "", {}
    for word in noted:
        flag, _, value = word.partition("=")
        if flag == "--config":
            config = configs.get(Path(value).stem, "")
        elif flag.startswith("--config."):
            changed[flag.removeprefix("--config.")] = value
    if not config:
        raise RefusedError(
            f"{folder.name}: its noted command has no --config of {', '.join(configs)}. Start it "
            "as a new run of another name."
        )
    old = Path(workdir(noted)).parent
    changed = {key: beside(value, old, folder.parent) for key, value in changed.items()}
    return train(config, folder, changed, known=known)


def workdir(arguments: Iterable[str]) -> str:
    """Returns the folder that a command works in; "" where it names none."""
    flag = "--workdir="
    return next((word.removeprefix(flag) for word in arguments if word.startswith(flag)), "")


def beside(value: str, old: Path, new: Path) -> str:
    """Returns a path in `old` as the one in `new`; any other text, or without such a one, as it is.

    old: a folder that was moved or copied to `new`.
    """
    if not old.is_absolute() or not Path(value).is_relative_to(old):
        return value
    there = new / Path(value).relative_to(old)
    return str(there) if there.exists() else value


def of_run(
    mode: str, config: str, folder: Path, changed: Mapping[str, Any], *, known: Iterable[str]
) -> list[str]:
    """Returns the arguments of a mode over a run that is there, with that run's own settings.

    config: the path of `of_run.py`.
    """
    known = set(known)
    return [
        f"--config={config}:{folder}",
        f"--workdir={folder}",
        f"--mode={mode}",
        *(setting(key, value, known=known) for key, value in changed.items()),
    ]


def lines(text: str) -> tuple[str, ...]:
    """Returns the lines of a form's text that are not empty."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def pairs(text: str) -> dict[str, str]:
    """Returns the settings of lines `key=value`; # begins a comment line.

    Raises:
      RefusedError: a line is none of these.
    """
    found = {}
    for line in lines(text):
        if line.startswith("#"):
            continue
        key, equals, value = line.removeprefix("--config.").partition("=")
        if not equals:
            raise RefusedError(f"{line!r}: expected key=value, such as train.num_steps=400.")
        found[key.strip()] = value.strip()
    return found
