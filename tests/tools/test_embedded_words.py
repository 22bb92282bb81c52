"""The judge of words: pairs, shares and confusions that are counted by hand."""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))  # scripts, not a package

import embedded_words
from embedded_base import NOUNS


def test_every_noun_is_asked_for_with_every_word_but_none():
    words = embedded_words.WORDS["style"]
    found = embedded_words.pairs(words, images=2)
    assert len(found) == 2 * len(NOUNS) * 4
    assert set(found[:, 1]) == {1, 2, 3, 4} and words[0] == {}
    assert set(embedded_words.pairs(words, images=1, every=4)[:, 0]) == set(range(0, len(NOUNS), 4))
    assert len({tuple(pair) for pair in found.tolist()}) == len(NOUNS) * 4


def test_a_word_is_counted_and_its_commonest_confusion_named():
    truth, nearest = np.array([1, 1, 1, 1, 2]), np.array([1, 0, 0, 2, 2])
    text = embedded_words.by_class(["none", "gold", "glass"], truth, nearest)
    assert text.splitlines() == [
        "    gold            25 %, taken for none",
        "    glass          100 %",
    ]
    row = embedded_words.line("style", nearest == truth, np.array([True, True]), 5)
    assert row.split() == ["style", "20", "100.0", "±", "0.0", "40.0", "±", "42.9", "60"]
