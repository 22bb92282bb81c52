"""The table of many subjects: a CSV file with a row for each."""

import csv
import dataclasses
import io
import re
from pathlib import Path

from dreambooth_jax import untrusted

COLUMNS = ("name", "images", "class_noun", "identifier")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


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
      ValueError: all rows that cannot be used, each with what is wrong, or a missing column.
    """
    lines = csv.DictReader(io.StringIO(untrusted.text(file)))
    found = tuple(name.strip() for name in lines.fieldnames or ())
    absent = [name for name in COLUMNS[:3] if name not in found]
    if absent:
        raise ValueError(
            f"{file}: the first line has no column {', '.join(absent)}, found: {', '.join(found)}. "
            f"Write {','.join(COLUMNS)}."
        )
    rows: list[Row] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=2):
        values = {key.strip(): (value or "").strip() for key, value in line.items() if key}
        name, images, noun = (values.get(key, "") for key in COLUMNS[:3])
        if not _NAME.fullmatch(name):
            problems.append(
                f"line {number}: name = {name!r}; write letters, digits, '_', '-' or '.': it is "
                "the name of a folder"
            )
        elif name in {row.name for row in rows} | {"prior"}:
            problems.append(f"line {number}: name = {name!r} is taken; write another")
        elif not images or not noun:
            problems.append(f"line {number}: {name} needs images and class_noun")
        else:
            near = "://" in images or images == "embedded"
            folder = images if near else str(file.parent / Path(images).expanduser())
            rows.append(Row(name, folder, noun, values.get("identifier") or "auto"))
    if problems or not rows:
        raise ValueError(f"{file}: " + ("\n  ".join(problems) or "no subject in it."))
    return tuple(rows)
