"""A wrong setting, as it is told: its key, what was found and expected, what to write instead."""

import dataclasses
import difflib
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from dreambooth_jax.config.base import base_config, flatten

_LONGEST = 300  # characters of what was found


class ConfigError(ValueError):
    """A configuration that cannot run; the text is meant for the person who wrote it."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One wrong setting: its key, what was found and expected, and what to write instead."""

    key: str
    found: Any
    expected: str
    instead: str

    def __str__(self) -> str:
        return f"{self.key} = {shown(self.found)}: expected {self.expected}. {self.instead}"


def shown(found: Any) -> str:
    """The text of what was found, its two ends if it is long; no number of 5000 digits has one."""
    try:
        text = repr(found)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _LONGEST else f"{text[:200]} … {text[-60:]}"


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise one ConfigError for all problems together, nothing when there are none."""
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(f"{count} in the configuration:{lines}")


def suggest(word: str, known: Iterable[str]) -> str:
    """A sentence with the known word nearest to `word`, `Did you mean 'subject.images'?`, or ""."""
    names = sorted(known)
    leaves = {name: name.rpartition(".")[2] for name in names}
    near = [name for name in names if leaves[name] == word]  # right, but without its group
    near = near or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not near:  # perhaps in the wrong group
        leaf = word.rpartition(".")[2]
        close = difflib.get_close_matches(leaf, sorted(set(leaves.values())), n=1, cutoff=0.7)
        near = [name for name in names if leaves[name] in close]
    return f"Did you mean {' or '.join(map(repr, near))}?" if near else ""


def write(key: str, value: Any) -> str:
    """Returns the words that give `key` that value; `None` is that of a key that is not set."""
    text = str(value)
    if len(text) > _LONGEST:
        return f"Write another --config.{key}."
    if shlex.quote(text) != text:
        text = shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'
    return "Leave it out." if value is None else f"Write --config.{key}={text}."


def default(key: str) -> str:
    """Returns the words that give `key` its default."""
    return write(key, flatten(base_config())[key])
