"""A network's settings from its `config.json`: what the file lacks, what is not known, one message.

Each network's `from_dict` adds the rules of its own keys.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Raw = Mapping[str, Any]


def missing(cls: type, raw: Raw, *, but: Collection[str] = ()) -> list[str]:
    """The problems of keys without a default, `but` these, that the file lacks or sets to null."""
    needed = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.name not in but
    ]
    return [f"{key} is missing" for key in needed if raw.get(key) is None]


def unknown(cls: type, raw: Raw, *, beside: Collection[str] = ()) -> list[str]:
    """The problems of keys that are neither fields of the dataclass nor `beside` them.

    A key that begins with `_` is about the file, not about the network.
    """
    known = {field.name for field in dataclasses.fields(cls)}.union(beside)
    return [
        f"{key} = {value!r}; the key is not known"
        for key, value in raw.items()
        if key not in known and not key.startswith("_")
    ]


def other_than(raw: Raw, allowed: Mapping[str, Sequence[Any]]) -> list[str]:
    """The problems of keys that the file sets to another value than these."""
    return [
        f"{key} = {raw[key]!r}; supported: {', '.join(map(repr, values))}"
        for key, values in allowed.items()
        if key in raw and raw[key] not in values
    ]


def given(cls: type, raw: Raw) -> dict[str, Any]:
    """The fields that the file sets, in its own types."""
    names = (field.name for field in dataclasses.fields(cls))
    return {name: raw[name] for name in names if raw.get(name) is not None}


def refuse(what: str, problems: Sequence[str], remedy: str = "") -> None:
    """Raises the one message of all problems, where there are any.

    Args:
      what: the file and its network.
      remedy: the last line.

    Raises:
      ValueError: with every problem on a line of its own.
    """
    if problems:
        lines = [f"{what} cannot be honoured:", *(f"  {problem}" for problem in problems)]
        raise ValueError("\n".join([*lines, remedy] if remedy else lines))
