"""Arguments of the Python interface, checked before anything is loaded: prompts, seeds, sizes."""

import operator
import os
import string
from collections.abc import Iterable, Mapping
from typing import Any

from dreambooth_jax.config import templates
from dreambooth_jax.config.problems import shown
from dreambooth_jax.data.images import LARGEST

_MOST = 2**32 - 1  # of a seed


def prompts(given: Any) -> list[str]:
    """The prompts of a text, or of several, each with only known names in braces.

    Raises:
      TypeError: they are no texts.
      ValueError: there is none, or one that cannot be, with what to write instead.
    """
    found = [given] if isinstance(given, str) else _several("prompts", given, "['a {subject}']")
    if not found:
        raise ValueError("prompts = []: expected one prompt or more, such as ['a {subject}'].")
    for prompt in found:
        if not isinstance(prompt, str):
            raise TypeError(
                f"prompts has {shown(prompt)}, a {type(prompt).__name__}: expected texts, such as "
                "['a {subject}']."
            )
        for expected, instead in templates.faults(prompt):
            raise ValueError(f"prompts has {shown(prompt)}: expected {expected}. {instead}")
    return found


def is_template(prompt: str) -> bool:
    """Returns True for a prompt that names something in braces."""
    return any(field is not None for _, field, _, _ in string.Formatter().parse(prompt))


def seeds(given: Any) -> list[int]:
    """The seeds of a whole number, or of several.

    Raises:
      TypeError: they are no whole numbers.
      ValueError: there is none, or one that is out of range.
    """
    whole = _whole(given)
    found = [given] if whole is not None else _several("seeds", given, "[0, 1]")
    if not found:
        raise ValueError("seeds = []: expected one seed or more, such as [0].")
    numbers = []
    for seed in found:
        number = _whole(seed)
        if number is None:
            raise TypeError(
                f"seeds has {shown(seed)}, a {type(seed).__name__}: expected whole numbers, such "
                "as [0, 1]."
            )
        if not 0 <= number <= _MOST:
            raise ValueError(f"seeds has {shown(number)}: expected numbers from 0 to {_MOST}.")
        numbers.append(number)
    return numbers


def size(given: Any) -> tuple[int, int] | None:
    """Height and width in pixels; None stays so.

    Raises:
      TypeError: it is no pair of whole numbers.
      ValueError: a side is out of range.
    """
    if given is None:
        return None
    sides = [_whole(side) for side in given] if isinstance(given, tuple | list) else []
    if len(sides) != 2 or None in sides:
        raise TypeError(
            f"size = {shown(given)}: expected height and width in pixels, such as (768, 512)."
        )
    height, width = (side or 0 for side in sides)
    if not all(1 <= side <= LARGEST for side in (height, width)):
        raise ValueError(f"size = {shown(given)}: expected sides from 1 to {LARGEST} pixels.")
    return height, width


def place(name: str, given: Any) -> str:
    """The text of a path that is the argument `name`.

    Raises:
      TypeError: it is no path.
      ValueError: no file can have that name.
    """
    found = os.fspath(given) if isinstance(given, os.PathLike) else given
    text(name, found)
    if templates.unwritable(found):
        raise ValueError(f"{name} = {shown(found)}: expected text that a file's name can hold.")
    return str(found)


def text(name: str, given: Any) -> str:
    """The argument `name`, a text.

    Raises:
      TypeError: it is none.
    """
    if not isinstance(given, str):
        raise TypeError(f"{name} = {shown(given)}: expected text, not {type(given).__name__}.")
    return given


def settings(given: Any) -> Mapping[str, Any]:
    """Settings by dotted key; {} for None.

    Raises:
      TypeError: they are no mapping of texts.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(isinstance(key, str) for key in given):
        raise TypeError(
            f"settings = {shown(given)}: expected a dictionary by key, such as "
            "{'sampler.num_steps': 20}."
        )
    return given


def _several(name: str, given: Any, example: str) -> list[Any]:
    """The members of a sequence."""
    if isinstance(given, bytes | bytearray | Mapping | set) or not isinstance(given, Iterable):
        raise TypeError(
            f"{name} = {shown(given)}, a {type(given).__name__}: expected a list, such as "
            f"{example}."
        )
    return [*given]


def _whole(given: Any) -> int | None:
    """A whole number, numpy's as well; None for what is none, and for True and False."""
    try:
        return None if isinstance(given, bool) else operator.index(given)
    except TypeError:  # the caller says what it is
        return None
