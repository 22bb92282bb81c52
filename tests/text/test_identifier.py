"""Tests of the rare-token search; SentencePiece and closed forms are the judges."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import qwen_tokenizers

from dreambooth_jax.text import chat, identifier, tokenizer

NOUN = "dog"
# Words whose meaning a base model knows: English, units, a rifle, names, computing, insults.
KNOWN = """the cat sky owl kg cm ft uzi sks bmw ikea jim zoe jpg css usa dna nig jap sex der les
que una art boy now jam hat bed job gal""".split()


@pytest.fixture(scope="module")
def embedded(repository):
    return tokenizer.load(repository / "dreambooth_jax" / "assets" / "base" / "tokenizer")


@pytest.fixture(scope="module")
def t5(shared_data):
    return tokenizer.load(shared_data / "tokenizers" / "t5")


@pytest.fixture(scope="module")
def qwen(tmp_path_factory, repository):
    """A tokenizer of bytes as Qwen's: a word and the space before it are one token."""
    texts = [*sorted((repository / "docs").glob("*.md")), repository / "CHANGELOG.md"]
    folder = qwen_tokenizers.trained(tmp_path_factory.mktemp("qwen"), texts, size=4_000)
    return tokenizer.load(folder, max_length=96, form=chat.QWEN3_PLAIN)


@pytest.fixture(scope="module")
def clip(shared_data):
    return tokenizer.load(shared_data / "tokenizers" / "clip")


@pytest.fixture(scope="module")
def sentencepiece_of():
    """SentencePiece itself, over the vocabulary of a tokenizer."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="judges the ids")

    def over(tok):
        model = Path(tok.hf.name_or_path, "spiece.model")
        return sentencepiece.SentencePieceProcessor(model_file=str(model))

    return over


@pytest.mark.parametrize("name", ["t5", "embedded"])
def test_single_tokens_are_rare_short_and_come_back(name, request, sentencepiece_of):
    tok = request.getfixturevalue(name)
    judge = sentencepiece_of(tok)
    low, high, count = {"t5": (5_000, 10_000, 40), "embedded": (950, 1_899, 200)}[name]
    eligible = {}  # by SentencePiece alone
    for i in range(low, high + 1):
        piece = judge.id_to_piece(i)
        if re.fullmatch("▁[a-z]{2,3}", piece) and judge.encode(piece[1:]) == [i]:
            eligible[piece[1:]] = (i,)
    found = identifier.find(tok, class_noun=NOUN, seed=0, count=count)
    single = {c.text: c.ids for c in found if len(c.ids) == 1}
    assert len(single) >= 16
    assert single.items() <= eligible.items()
    # The others are left out for what they mean, or because transformers splits them: where two
    # spellings have the same probability, it may choose the other one than SentencePiece.
    whole = {t for t, ids in eligible.items() if tok.ids(t) == ids}
    left_out = whole - single.keys()
    rude = {"fuc", "nig", "jap", "tit", "spic"}
    assert len(whole) >= 0.9 * len(eligible)
    assert {text for text in left_out if not identifier.meaning(text)} <= {"do", "og", *rude}
    assert {c.score for c in found} == {0.0}


@pytest.mark.parametrize("name", ["t5", "embedded"])
def test_every_candidate_is_its_tokens_in_both_prompts(name, request, sentencepiece_of):
    tok = request.getfixturevalue(name)
    judge = sentencepiece_of(tok)
    found = identifier.find(tok, class_noun=NOUN, seed=1, count=200)
    assert [len(c.ids) for c in found] == sorted(len(c.ids) for c in found)
    assert {len(c.ids) for c in found} == {1, 2}
    for c in found:
        for prompt in (f"a {c.text} dog", f"an {c.text} dog", f"a photo of a {c.text} dog"):
            before = judge.encode(prompt.removesuffix(f" {c.text} dog"))
            assert judge.encode(prompt) == [*before, *c.ids, *judge.encode("dog")], c
        lengths = [len(judge.id_to_piece(i).removeprefix("▁")) for i in c.ids]
        assert max(lengths) <= 3
        assert re.fullmatch("[a-z]{2,6}", c.text)


def test_three_tokens_only_when_fewer_do_not_suffice(t5, sentencepiece_of):
    # Two of the ids begin words, so a few pairs exist and many triples.
    judge = sentencepiece_of(t5)
    short = [i for i in range(5_000, 10_001) if judge.id_to_piece(i) in ("▁kam", "▁fla")]
    assert len(short) == 2
    found = identifier.find(
        t5, class_noun=NOUN, seed=0, count=40, id_range=(short[0], short[0] + 40)
    )
    assert [len(c.ids) for c in found] == sorted(len(c.ids) for c in found)
    assert {len(c.ids) for c in found} == {1, 2, 3}
    assert all(short[0] <= i <= short[0] + 40 for c in found for i in c.ids)


def test_published_candidates_come_back(t5):
    # Ids of T5's vocabulary; "Ces" is not its own lower case, so prompts would lose it.
    known = {
        "cet": 5160,
        "tun": 5240,
        "vei": 6033,
        "kam": 6511,
        "fu": 7683,
        "vot": 8164,
        "tac": 9075,
    }
    for text, i in known.items():
        assert identifier.comes_back(t5, text, (i,), "dog")
    assert not identifier.comes_back(t5, "Ces", (6188,), "dog")
    assert not identifier.comes_back(t5, "sks", (6511,), "dog")


@pytest.mark.parametrize("name", ["t5", "embedded"])
def test_words_with_a_meaning_are_never_proposed(name, request):
    found = identifier.find(request.getfixturevalue(name), class_noun="cow", seed=2, count=200)
    assert not {c.text for c in found} & set(KNOWN)
    assert all(identifier.meaning(word) for word in KNOWN)


def test_the_class_noun_and_its_parts_are_never_proposed(embedded):
    free = {c.text for c in identifier.find(embedded, class_noun="dog", seed=0, count=200)}
    chosen = sorted(text for text in free if len(text) == 3)[:3]
    for text in chosen:
        noun = f"stuffed x{text}y"
        bound = {c.text for c in identifier.find(embedded, class_noun=noun, seed=0, count=200)}
        assert text not in bound
        assert not any(word in text for text in bound for word in noun.split())


def test_the_seed_decides_and_a_longer_list_begins_the_same(embedded):
    first = identifier.find(embedded, class_noun=NOUN, seed=3)
    assert len(first) == 8
    assert len({c.text for c in first}) == 8
    assert identifier.find(embedded, class_noun=NOUN, seed=3) == first
    assert identifier.find(embedded, class_noun=NOUN, seed=3, count=3) == first[:3]
    assert identifier.find(embedded, class_noun=NOUN, seed=4) != first


def test_candidates_are_drawn_uniformly(embedded):
    window = (1_780, 1_820)
    everyone = identifier.find(embedded, class_noun=NOUN, seed=0, count=200, id_range=window)
    single = [c.text for c in everyone if len(c.ids) == 1]
    counts = dict.fromkeys(single, 0)
    draws = 30 * len(single)
    for seed in range(draws):
        (c,) = identifier.find(embedded, class_noun=NOUN, seed=seed, count=1, id_range=window)
        counts[c.text] += 1
    freedom = len(single) - 1
    assert freedom >= 10
    chi_squared = sum((n - 30) ** 2 / 30 for n in counts.values())
    assert chi_squared < freedom + 4 * (2 * freedom) ** 0.5  # mean + 4 standard deviations


def test_scores_follow_the_closed_form(embedded):
    low, high = 950, 1_899
    plain = identifier.find(embedded, class_noun=NOUN, seed=0, count=200)
    a, b, c, d, *rest = [candidate for candidate in plain if len(candidate.ids) == 1]
    # Common tokens and most rare ones lie along the first axis: a cosine of 1, a score of 0.
    rows = np.zeros((2_000, 4), np.float32)
    rows[:, 0] = 2
    rows[3, :] = [0, 2, 0, 0]
    rows[a.ids[0]] = [0, 0, 2, 0]  # like no common token, of median length: 1 - 0 - 0
    rows[b.ids[0]] = [0, 0, 0, 2 * np.exp(0.25)]  # as far, but longer: 1 - 0 - 0.25
    rows[c.ids[0]] = [0, 0, 2 * np.exp(-0.5), 0]  # as far, but shorter: 1 - 0 - 0.5
    rows[d.ids[0]] = [0, 1.6, 1.2, 0]  # a cosine of 0.8 with the rare-looking token 3: 1 - 0.8
    rows[1, :] = rows[2, :] = [0, 0, 5, 5]  # end and unknown are no common tokens
    found = identifier.find(embedded, class_noun=NOUN, seed=0, count=len(rest) + 4, embeddings=rows)
    assert [x.text for x in found[:4]] == [a.text, b.text, c.text, d.text]
    np.testing.assert_allclose([x.score for x in found[:4]], [1, 0.75, 0.5, 0.2], atol=1e-6)
    np.testing.assert_allclose([x.score for x in found[4:]], 0, atol=1e-6)
    assert all(low <= i <= high for x in found for i in x.ids)


def test_a_candidate_is_as_weak_as_its_worst_token(t5):
    window = (8_000, 8_200)
    rows = np.zeros((32_128, 3), np.float32)  # more rows than ids, as in T5's files
    rows[:, 0] = 1
    rows[5_000:10_001] = [0, 0, 1]
    plain = identifier.find(t5, class_noun=NOUN, seed=0, count=50, id_range=window)
    pair = next(c for c in plain if len(c.ids) == 2)
    rows[pair.ids[1]] = [0.6, 0, 0.8]
    rows[5_000:8_000] = [1, 0, 0]
    found = identifier.find(t5, class_noun=NOUN, seed=0, count=50, id_range=window, embeddings=rows)
    scores = {c.text: c.score for c in found}
    assert scores[pair.text] == pytest.approx(0.4, abs=1e-6)


def test_wrong_ranges_and_embeddings_are_refused(embedded):
    for bad in ((-1, 5), (7, 6), (0, 2_000)):
        with pytest.raises(ValueError, match=r"id_range is .*such as \(950, 1899\)"):
            identifier.find(embedded, class_noun=NOUN, seed=0, id_range=bad)
    with pytest.raises(ValueError, match=r"shape \[1999, 8\]; expected .*\[2000, D\]"):
        identifier.find(embedded, class_noun=NOUN, seed=0, embeddings=np.zeros((1_999, 8)))


# Identifiers of users.


def test_words_of_bytes_are_found_with_the_space_before_them(qwen):
    """Z-Image's and FLUX.2's: transformers itself reads every prompt with the word."""
    found = identifier.find(qwen, class_noun=NOUN, seed=0, count=12)
    assert len(found) == 12
    low, high = identifier.default_range(qwen)
    for each in found:
        assert qwen.hf.convert_ids_to_tokens(each.ids[0]).startswith("Ġ")
        assert all(low <= i <= high for i in each.ids)
        for prompt in ("a {} dog", "a photo of an {} dog"):
            before, after = prompt.split(" {}")
            whole = qwen.hf(prompt.format(each.text))["input_ids"]
            first, last = (qwen.hf(text)["input_ids"] for text in (before, after))
            assert whole == [*first, *each.ids, *last]
    assert identifier.choose(qwen, "auto", class_noun=NOUN, seed=0) in {x.text for x in found}


def test_where_the_rare_half_has_no_word_more_of_the_vocabulary_is_searched(qwen, monkeypatch):
    last = identifier.default_range(qwen)[1]
    monkeypatch.setattr(identifier, "default_range", lambda tokenizer: (last - 3, last))
    found = identifier.find(qwen, class_noun=NOUN, seed=0)
    assert found and all(identifier.comes_back(qwen, x.text, x.ids, NOUN) for x in found)
    assert identifier.find(qwen, class_noun=NOUN, seed=0, id_range=(last - 3, last)) == []


def test_a_word_is_looked_at_where_it_stands_in_a_prompt(qwen):
    """A piece of the vocabulary that only stands within words splits behind a space."""
    vocabulary = qwen.hf.get_vocab()
    inner = next(
        piece
        for piece in sorted(vocabulary)
        if re.fullmatch("[a-z]{3}", piece) and f"Ġ{piece}" not in vocabulary
    )
    found = identifier.check(qwen, inner, NOUN)
    pieces = qwen.hf.convert_ids_to_tokens(qwen.hf(f" {inner}")["input_ids"])
    assert len(pieces) > 1
    assert any(f"splits into {len(pieces)} tokens ({' '.join(pieces)})" in x for x in found)


@pytest.mark.parametrize("word", ["photo", "person", "dragon", "princess", "frog"])
def test_words_that_everybody_knows_are_no_identifiers(word, clip):
    (said,) = identifier.check(clip, word, NOUN)
    assert "the base model has its own idea of it" in said


def test_a_rare_token_of_clip_is_one(clip):
    assert identifier.check(clip, "ohwx", NOUN) == []


def test_only_where_prompts_are_cleaned_a_word_must_outlive_it(t5):
    assert not any("cleaned" in said for said in identifier.check(t5, "sks2", NOUN, cleaned=False))
    with pytest.raises(ValueError, match="would be lost"):
        identifier.check(t5, "sks2", NOUN)


def test_a_good_identifier_gets_no_warning(t5):
    assert identifier.check(t5, "kam", "dog") == []


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("sks", ["splits into 4 tokens (▁ s k s)", "a brand, a team or a weapon"]),
        ("jam", ["an English word"]),
        ("Kam", ["is read as 'kam'"]),
        ("mur", ["a word of another language"]),
        ("dogo", ["splits into", "share 'dog'"]),
    ],
)
def test_what_speaks_against_an_identifier_is_said(t5, text, messages):
    found = identifier.check(t5, text, "dog")
    assert len(found) == len(messages), found
    for sentence, part in zip(found, messages, strict=True):
        assert part in sentence


@pytest.mark.parametrize(
    "text", ["[V]", "xxy5syt00", "sks11df", "z b", "", "<zib-1>", "pdf", "@zib"]
)
def test_what_caption_cleaning_deletes_is_an_error(t5, text):
    with pytest.raises(ValueError, match=r"would be lost where prompts are cleaned.*'zib'"):
        identifier.check(t5, text, "dog")


def test_letters_without_a_piece_are_an_error(t5):
    with pytest.raises(ValueError, match="no pieces for a part of the identifier 'zßþж'"):
        identifier.check(t5, "zßþж", "dog")


def test_choose_takes_the_best_candidate_or_the_users_word(embedded, caplog):
    found = identifier.find(embedded, class_noun=NOUN, seed=5)
    assert identifier.choose(embedded, "auto", class_noun=NOUN, seed=5) == found[0].text
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert identifier.choose(embedded, "SKS", class_noun=NOUN, seed=5) == "sks"
    assert len(caplog.messages) == 3  # lower case, several tokens, a rifle
    with pytest.raises(ValueError, match="would be lost"):
        identifier.choose(embedded, "[V]", class_noun=NOUN, seed=5)


def test_each_subject_has_a_word_of_its_own(embedded):
    taken: list[str] = []
    for _ in range(12):
        word = identifier.choose(embedded, "auto", class_noun=NOUN, seed=5, taken=taken)
        assert not any(word in other or other in word for other in taken)
        taken.append(word)


def test_choose_uses_embeddings(embedded):
    found = identifier.find(embedded, class_noun=NOUN, seed=5, count=32)
    rows = np.ones((2_000, 4), np.float32)
    rows[found[31].ids[0]] = [1, -1, 1, -1]  # the last of the 4 × 8 that are drawn
    picked = identifier.choose(embedded, "auto", class_noun=NOUN, seed=5, embeddings=rows)
    assert picked == found[31].text


def test_no_candidate_at_all_is_said(embedded, monkeypatch):
    monkeypatch.setattr(identifier, "default_range", lambda tokenizer: (3, 3))
    with pytest.raises(ValueError, match=r"no rare token .*write an identifier of your own"):
        identifier.choose(embedded, "auto", class_noun=NOUN, seed=0)


def test_the_table_shows_every_candidate():
    rows = [identifier.Candidate("kam", (6511,), 0.25), identifier.Candidate("flagg", (1, 23), -1)]
    assert [line.split() for line in identifier.as_table(rows).splitlines()] == [
        ["identifier", "tokens", "score", "ids"],
        ["kam", "1", "0.250", "6511"],
        ["flagg", "2", "-1.000", "1", "23"],
    ]


def test_the_table_shows_changes_where_they_were_measured():
    rows = [identifier.Candidate("kam", (6511,), 0.25, 1.5), identifier.Candidate("zib", (7,), 0.5)]
    assert [line.split() for line in identifier.as_table(rows).splitlines()] == [
        ["identifier", "tokens", "score", "change", "ids"],
        ["kam", "1", "0.250", "1.50", "6511"],
        ["zib", "1", "0.500", "7"],
    ]
