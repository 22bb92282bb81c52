"""Checks of settings that hold names with a number each: LoRA files, words of prompts."""

from collections.abc import Iterator, Mapping
from typing import Any

from dreambooth_jax.config.problems import Problem, write
from dreambooth_jax.config.templates import unwritable

LARGEST = 10  # strength of a LoRA file and factor of a word, either way


def wrong(c: Mapping[str, Any]) -> Iterator[Problem]:
    """Yields the problems of `sample.loras` and `edit.words`, among settings by dotted key."""
    told = f"from {-LARGEST} to {LARGEST}"
    pairs = {
        "sample.loras": (f"pairs (file or folder, strength {told})", (("runs/duck", 0.8),)),
        "edit.words": (f"pairs of a word and a factor {told}", (("snow", 2.0),)),
    }
    for key, (expected, example) in pairs.items():
        for pair in c[key]:
            if not is_weighted(pair):
                yield Problem(key, pair, expected, write(key, example))
    if c["edit.words"] and c["edit.method"] == "sdedit":
        expected = "() with edit.method 'sdedit', which follows no words of a source"
        instead = "Write --config.edit.method=inversion, or leave it out."
        yield Problem("edit.words", c["edit.words"], expected, instead)


def is_weighted(pair: Any) -> bool:
    """Returns True for a name that a file can hold, with a finite number within `LARGEST`."""
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        return False
    name, number = pair
    named = isinstance(name, str) and bool(name.strip()) and not unwritable(name)
    return named and type(number) in (int, float) and abs(number) <= LARGEST
