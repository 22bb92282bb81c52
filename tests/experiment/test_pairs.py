"""The words whose places may change, of prompts and their sources."""

from types import SimpleNamespace

import pytest

from dreambooth_jax import families
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import pairs
from dreambooth_jax.text import alignment

ZIB = Words.of(identifier="zib", class_noun="owl")


@pytest.fixture(scope="module")
def stage():
    return families.open_stage("embedded", kind="base")


def marked(stage, source: str, prompt: str, *, word: str = "", factors=()) -> tuple[str, str]:
    """The words of source and edit that are marked, as text."""
    edit = SimpleNamespace(source_prompt=source, word=word, words=factors)
    found = pairs.columns(SimpleNamespace(edit=edit), stage, prompt, (ZIB,))
    texts = []
    for text, columns in zip((source, prompt), found, strict=True):
        ids = alignment.read(stage.tokenizer, text)
        assert columns[len(ids) :].sum() == 0 and set(columns) <= {0.0, 1.0}
        kept = [token for token, one in zip(ids, columns, strict=False) if one]
        texts.append(stage.tokenizer.decode(kept).strip())
    return texts[0], texts[1]


@pytest.mark.parametrize(
    ("source", "prompt", "expected"),
    [
        # The subject is new: its word, and its noun in both. The article changes and has no place.
        ("an owl in the snow", "a zib owl in the snow", ("owl", "zib owl")),
        ("a cat in the snow", "a zib owl in the snow", ("cat", "zib owl")),
        ("a bird in the snow", "a bird in the rain", ("snow", "rain")),
        ("a bird", "a bird in the snow", ("", "in snow")),
        ("a bird in the snow", "a bird", ("in snow", "")),
        ("a bird", "a bird", ("", "")),
    ],
)
def test_words_that_differ(stage, source, prompt, expected):
    assert marked(stage, source, prompt) == expected


def test_words_of_a_factor_and_a_word_that_is_named(stage):
    same = "a bird in the snow"
    assert marked(stage, same, same, factors=(("snow", 2.0),)) == ("snow", "snow")
    other = "a bird in the rain"
    assert marked(stage, same, other, word="bird") == ("bird", "bird")
    assert marked(stage, same, other, word="rain") == ("", "rain")
    with pytest.raises(ValueError, match="does not have 'fog'; it has a, bird"):
        marked(stage, same, other, word="fog")
