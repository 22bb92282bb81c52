"""The reference of all settings: key, default, meaning and choices, from the files that set them.

A setting's meaning is the comment on its line in `config/base*.py`, its details are the comment
lines above it, and a group's meaning is the comment on the line that makes the group.
"""

import ast
import dataclasses
import io
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dreambooth_jax.config.base import CHOICES, RANGES, base_config, flatten


@dataclasses.dataclass(frozen=True)
class Setting:
    """One setting.

    key: as on the command line, after `--config.`.
    default: its value where no configuration sets it; None is described by the meaning.
    meaning: what it sets, its unit, and the values that are special.
    details: more about its values, "" where the meaning tells all.
    """

    key: str
    default: Any
    meaning: str
    details: str = ""

    @property
    def group(self) -> str:
        """The part of the key before the dot, "" for a setting without a group."""
        return self.key.rpartition(".")[0]

    @property
    def values(self) -> str:
        """The choices or the range, "" where only the type is fixed."""
        if self.key in CHOICES:
            return ", ".join(CHOICES[self.key])
        return next((interval for interval, keys in RANGES.items() if self.key in keys), "")

    def has(self, word: str) -> bool:
        """Returns True where the key, the meaning, the details or a value contain the word."""
        text = " ".join((self.key, self.meaning, self.details, self.values))
        return word.lower() in text.lower()


def settings() -> list[Setting]:
    """Returns every setting in the order of the source; a meaning is "" where it has no comment."""
    defaults = flatten(base_config())
    found = {}
    for file in sorted(Path(__file__).parent.glob("base*.py")):
        for key, meaning, details in _assigned(file.read_text(encoding="utf-8")):
            found[key] = (meaning, details)
    ordered = [key for key in found if key in defaults]
    ordered += [key for key in defaults if key not in found]
    return [Setting(key, defaults[key], *found.get(key, ("", ""))) for key in ordered]


def groups() -> dict[str, str]:
    """Returns the meaning of every group that has a comment, by name."""
    defaults = flatten(base_config())
    names = {key.partition(".")[0] for key in defaults if "." in key}
    files = sorted(Path(__file__).parent.glob("base*.py"))
    lines = [line for file in files for line in _assigned(file.read_text(encoding="utf-8"))]
    return {key: meaning for key, meaning, _ in lines if key in names and meaning}


def text(found: Sequence[Setting]) -> str:
    """Returns settings for a terminal: `key = default`, then meaning, details and values."""
    blocks = []
    for each in found:
        blocks.append("\n    ".join([f"{each.key} = {each.default!r}", *_lines(each)]))
    return "\n".join(blocks)


def markdown() -> str:
    """Returns the page docs/settings.md: a table of each group."""
    meanings = groups()
    by_group: dict[str, list[Setting]] = {}
    for each in settings():
        by_group.setdefault(each.group, []).append(each)
    parts = [_HEAD]
    for group, members in by_group.items():
        parts.append(f"\n## {group or 'The run'}\n")
        if meanings.get(group):
            parts.append(f"{_cell(meanings[group])}\n")
        parts += ["| setting | default | meaning |", "|---|---|---|"]
        for each in members:
            meaning = "<br>".join(map(_cell, _lines(each)))
            parts.append(f"| `{each.key}` | `{_short(each.default)}` | {meaning} |")
    return "\n".join(parts) + "\n"


_HEAD = """\
# Settings

Every setting with its default. A configuration sets some of them, the command line has the last
word: `--config.KEY=VALUE`. `dreambooth-jax settings WORD` finds those that contain a word.

Written by `dreambooth-jax settings --markdown > docs/settings.md`; a test compares."""


def _lines(each: Setting) -> list[str]:
    """The meaning, the details and the values, a line each."""
    kind = "choices" if each.key in CHOICES else "range"
    values = f"{kind}: {each.values}" if each.values else ""
    return [line for line in (each.meaning, each.details, values) if line]


def _short(value: Any) -> str:
    """A default in one cell of a table, cut after 60 characters."""
    found = repr(value).replace("|", "\\|")
    return found if len(found) <= 60 else f"{found[:57].rstrip()}…"


def _cell(line: str) -> str:
    """A line that Markdown shows as it is written in a table."""
    for sign in "|*<":
        line = line.replace(sign, f"\\{sign}")
    return line


def _assigned(source: str) -> Iterator[tuple[str, str, str]]:
    """Yields (key, comment on its line, comment lines above it) of every `c.key = …`."""
    comments = _comments(source)
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        key = ast.unparse(node.targets[0])
        if not key.startswith("c."):
            continue
        first, last = node.lineno, node.end_lineno or node.lineno
        meaning = comments.get(first) or comments.get(last) or ""
        above: list[str] = []
        row = first - 1
        while row in comments and lines[row - 1].lstrip().startswith("#"):
            above.insert(0, comments[row])
            row -= 1
        yield key.removeprefix("c."), meaning, " ".join(above)


def _comments(source: str) -> dict[int, str]:
    """The comments of a source by line, without the number sign."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
