"""The table of many subjects: a CSV file with a row for each."""

import csv
import dataclasses
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dreambooth_jax import files, untrusted

COLUMNS = ("name", "images", "class_noun", "identifier")
LIMIT = 4 * 2**20  # bytes of such a file
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
# What a fleet writes beside its subjects' folders, and where they share class images.
_TAKEN = ("prior", "fleet.json", "fleet.tmp")
_TOLD = 20  # problems in one message
_SHOWN = 60  # characters of a cell


@dataclasses.dataclass(frozen=True)
class Row:
    """One subject: the name of its folder in the workdir, photos, class noun, identifier."""

    name: str
    images: str
    class_noun: str
    identifier: str = "auto"


def read(file: Path) -> tuple[Row, ...]:
    """Returns the rows of a table with the columns `COLUMNS`; the last may be empty or absent.

    Folders of photos are relative to the table's own folder.

    Raises:
      FileNotFoundError, FileError: there is no such file, or it is no text of a sensible size.
      ValueError: all rows that cannot be used, each with what is wrong, or a missing column.
    """
    text = untrusted.text(file, limit=LIMIT, encoding="utf-8-sig")
    with untrusted.reading(file, "a table (CSV)", remedy=f"Write {','.join(COLUMNS)}."):
        # `strict`: a quote that is never closed would swallow the rows after it.
        lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        columns = tuple(name.strip() for name in lines.fieldnames or ())
        lines.fieldnames = columns
        cells = [(lines.line_num, line) for line in lines]
    _check_columns(file, columns)
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in cells:
        row = _row(line, file.parent)
        found = [row] if isinstance(row, str) else [*_taken(row, rows)]
        problems += [f"line {number}: {problem}" for problem in found]
        rows += [] if isinstance(row, str) else [row]
    if problems or not rows:
        more = len(problems) - _TOLD
        told = [*problems[:_TOLD], *([f"and {more} more"] if more > 0 else [])]
        raise ValueError(f"{file}: " + ("\n  ".join(told) or "no subject in it."))
    return tuple(rows)


def _check_columns(file: Path, columns: Sequence[str]) -> None:
    """Raises ValueError where a column is absent, stands twice or is all but one of `COLUMNS`."""
    shown = untrusted.in_short(", ".join(columns))
    absent = [name for name in COLUMNS[:3] if name not in columns]
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    near = [
        f"{name}, which is not {close[0]}"
        for name in columns
        if name not in COLUMNS and (close := difflib.get_close_matches(name, COLUMNS, n=1))
    ]
    wrong = [f"no column {', '.join(absent)}"] if absent else []
    wrong += [f"the column {name} twice" for name in twice]
    wrong += [f"the column {name}" for name in near]
    if wrong:
        raise ValueError(
            f"{file}: the first line has {'; '.join(wrong)}, found: {shown}. "
            f"Write {','.join(COLUMNS)}, with a comma between them."
        )


def _row(line: Mapping[str | None, str | list[str] | None], folder: Path) -> Row | str:
    """The subject of a line, or what is wrong with it."""
    if None in line:
        more = len(line[None] or ())
        return f"{more} cells more than columns; write a cell that has a comma in quotes"
    values = {str(key): str(value or "").strip() for key, value in line.items()}
    name, images, noun = (values.get(key, "") for key in COLUMNS[:3])
    if not _NAME.fullmatch(name):
        return (
            f"name = {_shown(name)}; write letters, digits, '_', '-' or '.', at most 100: it is "
            "the name of a folder"
        )
    empty = [key for key, value in (("images", images), ("class_noun", noun)) if not value]
    if empty:
        return f"{name} needs {' and '.join(empty)}"
    if "\0" in images:
        return f"images = {_shown(images)}; expected a folder"
    try:
        near = "://" in images or images == "embedded"
        place = images if near else str(folder / files.at(images))
    except ValueError as error:  # the home of a user who is not here
        return f"images: {error}"
    return Row(name, place, noun, values.get("identifier") or "auto")


def _taken(row: Row, before: Sequence[Row]) -> Iterator[str]:
    """Yields what another row has: on some disks a folder's name is the same in capitals."""
    own = row.name.casefold()
    same = [other.name for other in before if other.name.casefold() == own]
    if own in _TAKEN:
        yield f"name = {row.name!r} is taken by the fleet's own files; write another"
    elif same:
        beside = "" if same[0] == row.name else f" by {same[0]!r}, which some disks do not tell"
        yield f"name = {row.name!r} is taken{beside}; write another"
    noun = folder_of(row.class_noun)
    for other in before:
        if other.class_noun != row.class_noun and folder_of(other.class_noun) == noun:
            yield (
                f"class_noun = {_shown(row.class_noun)}, and {other.name} has "
                f"{_shown(other.class_noun)}: their class images would share a folder. Write the "
                "same noun, or another"
            )
            break


def folder_of(class_noun: str) -> str:
    """The name of a noun's folder of class images, as disks that ignore capitals know it."""
    return class_noun.replace(" ", "_").casefold()


def _shown(cell: str) -> str:
    return repr(cell if len(cell) <= _SHOWN else f"{cell[:_SHOWN]}…")
