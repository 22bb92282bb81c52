"""A network's settings from its `config.json`: what the file lacks, what is not known, one message.

Each network's `from_dict` adds the rules of its own keys.
"""

import dataclasses
import math
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

Raw = Mapping[str, Any]
_LONGEST = 60  # characters of a value that is told
_MAY_BE_ZERO = ("layers", "token_id", "axes_dims")
_TOLD: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number from 0 on",
    bool: "true or false",
    str: "text",
}


def kinds(cls: type, raw: Raw, *, single: Collection[str] = ()) -> list[str]:
    """The problems of keys whose values are not of the kind of the dataclass's fields.

    Numbers of layers, of tokens and of parts of positions may be 0, others are 1 or more.

    single: keys of several values, for which the file may give one.
    """
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        value, hint = raw.get(field.name), hints[field.name]
        if value is None:
            continue
        parts = [part for part in typing.get_args(hint) if part not in (type(None), ...)]
        several = typing.get_origin(hint) is tuple
        least = 0 if any(part in field.name for part in _MAY_BE_ZERO) else 1
        one = parts[0] if parts else hint
        values = value if several and isinstance(value, list | tuple) else [value]
        listed = not several or isinstance(value, list | tuple) or field.name in single
        if not listed or not all(_is(one, each, least) for each in values):
            told = _TOLD[one] + (f" of {least} or more" if one is int else "")
            told = f"a list, each {told}" if several and field.name not in single else told
            if not several and isinstance(value, list | tuple):
                told = f"one value, {told}"
            found.append(f"{field.name} = {_shown(value)}; expected {told}")
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _is(kind: type, value: Any, least: int) -> bool:
    """Returns True for a value of the kind: whole numbers of `least` or more, others from 0 on."""
    if kind is int:
        return type(value) is int and value >= least
    if kind is float:
        return type(value) in (int, float) and 0 <= value < math.inf
    return isinstance(value, kind)


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
