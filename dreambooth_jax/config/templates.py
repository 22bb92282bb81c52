"""Checks of prompts, in which names in braces stand for a subject's words."""

import difflib
import string
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from dreambooth_jax.config.problems import Problem, suggest, write
from dreambooth_jax.data.prompts import PROMPT_SETS

# What a prompt may hold in braces.
FIELDS = ("subject", "identifier", "class_noun", "instance_prompt", "class_prompt")
KEYS = ("sample.prompts", "edit.prompts", "evaluate.prompts", "edit.source_prompt")
LONGEST = 10_000  # characters: the longest that an encoder here reads is of 512 tokens


def unwritable(value: Any) -> bool:
    """Returns True for text, or a tuple with such, with half a character or a zero in it."""
    if isinstance(value, tuple | list):
        return any(map(unwritable, value))
    return isinstance(value, str) and (
        "\0" in value or any("\ud800" <= x <= "\udfff" for x in value)
    )


def held() -> str:
    """Says what is expected instead of such a text; with the remedy for a locale of few letters."""
    text = "text of characters that a file can hold"
    if sys.getfilesystemencoding() == "utf-8":
        return text
    return f"{text} (the locale has others: set PYTHONUTF8=1 to write them in UTF-8)"


def faults(prompt: Any) -> Iterator[tuple[str, str]]:
    """Yields what is expected instead of a prompt, and what to write."""
    expected = f"text with only {', '.join(f'{{{name}}}' for name in FIELDS)} in braces"
    if not isinstance(prompt, str):
        yield expected, "Write 'a {subject}' in its place."
        return
    if len(prompt) > LONGEST:
        yield f"at most {LONGEST} characters, not {len(prompt)}", "Write a shorter one."
        return
    if unwritable(prompt):
        yield held(), "Write others."
    try:
        parts = [*string.Formatter().parse(prompt)]
    except ValueError:  # a lone brace
        yield expected, "Write {{ or }} for a brace that is meant."
        return
    fields = {field for _, field, _, _ in parts} - {None}
    if any(form or conversion for _, _, form, conversion in parts):  # {subject:>1000000000}
        yield f"{expected}, without : or !", "Write {subject}."
    for field in sorted(str(field) for field in fields.difference(FIELDS)):
        yield expected, suggest(field, FIELDS) or "Write {subject}."


def wrong(key: str, prompts: Sequence[Any]) -> Iterator[Problem]:
    """Yields the problems of a setting that holds prompts."""
    for prompt in prompts:
        found = [*faults(prompt)]
        yield from (Problem(key, prompt, expected, instead) for expected, instead in found)
        if not isinstance(prompt, str) or len(prompt) > LONGEST:
            continue
        near = difflib.get_close_matches(prompt, PROMPT_SETS, n=1, cutoff=0.75)
        if near and prompt not in PROMPT_SETS:
            known = ", ".join(PROMPT_SETS)
            yield Problem(key, prompt, f"a prompt, or one of {known}", write(key, (near[0],)))
        if "[V]" in prompt:
            expected = "a prompt with the subject's words in braces"
            yield Problem(key, prompt, expected, "Write {subject} for the paper's [V] [class].")
