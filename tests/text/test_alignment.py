"""Which token of an edit stands for which of its source: by hand, and in a real tokenizer."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from dreambooth_jax.text import alignment, tokenizer

START, END = 90, 91
A, AN, DOG, OWL, VASE, ON, SOFA, ZIB, BIG = range(9)


def marked(*ids: int) -> list[int]:
    return [START, *ids, END]


def found(source: list[int], target: list[int], own=(), length=8):
    words, new = alignment.aligned(source, target, length=length, own=own)
    assert words.shape == (length, length) and new.shape == (length,)
    told = {(int(i), int(j)): float(words[i, j]) for i, j in np.argwhere(words)}
    return told, [int(j) for j in np.flatnonzero(new)]


def test_an_added_word_is_the_edit_s_own():
    told, new = found(marked(A, DOG, ON, SOFA), marked(A, ZIB, DOG, ON, SOFA), own=[2])
    assert new == [2]
    moved = {0: 0, 1: 1, 2: 3, 3: 4, 4: 5, 5: 6}  # marks and words
    assert told == {**dict.fromkeys(moved.items(), 1.0), (6, 7): 1.0}  # and padding


def test_equal_prompts_are_the_identity():
    told, new = found(marked(A, DOG), marked(A, DOG))
    assert told == {(i, i): 1.0 for i in range(8)} and new == []


def test_a_replaced_word_goes_one_to_one():
    told, new = found(marked(A, OWL, ON, SOFA), marked(A, DOG, ON, SOFA))
    assert told == {(i, i): 1.0 for i in range(8)} and new == []


def test_a_word_replaced_by_more_is_shared_among_them():
    told, new = found(marked(A, VASE, ON, SOFA), marked(A, BIG, DOG, ON, SOFA))
    assert told[2, 2] == told[2, 3] == 0.5 and new == []
    told, new = found(marked(A, BIG, DOG, ON, SOFA), marked(A, VASE, ON, SOFA))
    assert told[2, 2] == told[3, 2] == 1.0 and new == []


def test_the_subject_s_word_joins_what_replaces_another_thing_but_no_article():
    told, new = found(marked(A, VASE, ON, SOFA), marked(A, ZIB, DOG, ON, SOFA), own=[2])
    assert told[2, 2] == told[2, 3] == 0.5 and new == []
    told, new = found(marked(AN, OWL, ON, SOFA), marked(A, ZIB, OWL, ON, SOFA), own=[2])
    assert told[1, 1] == told[2, 3] == 1.0 and new == [2]


def test_what_is_left_out_stands_for_nothing():
    told, new = found(marked(A, BIG, DOG), marked(A, DOG))
    assert new == [] and not any(i == 2 for i, _ in told)


def test_rows_of_kept_and_replaced_tokens_sum_to_one_and_renaming_tokens_changes_nothing():
    rng = np.random.default_rng(0)
    names = rng.permutation(50)
    for _ in range(20):
        source = [START, *rng.integers(0, 6, rng.integers(2, 7)), END]
        target = [START, *rng.integers(0, 6, rng.integers(2, 7)), END]
        if not set(source[1:-1]) & set(target[1:-1]):
            continue
        words, new = alignment.aligned(source, target, length=12)
        sums = words[: len(source)].sum(1)
        assert (np.isclose(sums, 1) | (sums == 0)).all()
        columns = words.sum(0)[: len(target)]
        assert ((columns > 0) != (new[: len(target)] > 0)).all()  # each token from one of the two
        renamed = [[START, *(100 + names[i] for i in ids[1:-1]), END] for ids in (source, target)]
        again = alignment.aligned(*renamed, length=12)
        np.testing.assert_array_equal(again.words, words)
        np.testing.assert_array_equal(again.own, new)


def test_prompts_that_share_nothing():
    with pytest.raises(ValueError, match="share no token but start and end"):
        alignment.aligned(marked(A, DOG), marked(OWL, SOFA), length=8)


@pytest.fixture(scope="module")
def t5() -> tokenizer.Tokenizer:
    folder = resources.files("dreambooth_jax") / "assets" / "base" / "tokenizer"
    return tokenizer.load(Path(str(folder)))


def test_a_word_s_tokens_are_found_where_it_stands(t5):
    prompt = "a zib bird in the snow"
    ids = alignment.read(t5, prompt)
    for word in ("zib", "bird", "snow", "zib bird", "Snow"):
        places = alignment.span(t5, prompt, word)
        assert [ids[i] for i in places] == list(t5.ids(word.lower()))
    with pytest.raises(ValueError, match="does not have 'cat'; it has a, zib, bird, in, the, snow"):
        alignment.span(t5, prompt, "cat")
    extended = t5.with_word("<zib>", count=2)
    places = alignment.span(extended, "a <zib> bird", "<zib>")
    ids = alignment.read(extended, "a <zib> bird")
    assert tuple(ids[i] for i in places) == extended.words["<zib>"]


def test_a_prompt_that_would_be_cut_cannot_be_aligned(t5):
    with pytest.raises(ValueError, match="77 are read"):
        alignment.read(t5, "bird " * 90)
