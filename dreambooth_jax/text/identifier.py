"""The rare-token identifier (Ruiz et al. 2022, §3.2): a word that the base model has no idea of.

Tokens are drawn uniformly from the rare part of the vocabulary, turned into text and back. What
does not come back the same, or means something, is drawn again.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from dreambooth_jax import rng
from dreambooth_jax.text.meanings import OFFENSIVE, meaning
from dreambooth_jax.text.tokenizer import Tokenizer, normalize, survives_cleaning

AUTO = "auto"  # as a wanted identifier: find one
MAX_TOKENS = 3  # the paper's k
MAX_CHARACTERS = 3  # per token, without the word mark
T5_VOCABULARY, T5_RANGE = 32_100, (5_000, 10_000)  # the paper's range, for T5-XXL

PROMPTS = ("a photo of a {} {}", "a photo of an {} {}", "a {} {}", "an {} {}")
_BEFORE = "a"  # what stands before a word that is looked at
_A_WORD = 5  # letters of a token that is a word
_POOL = 4  # with embeddings, this many times the wanted count is drawn, and the best are kept
_DRAWS = 4_000  # of sequences of several tokens before the search gives up


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A possible identifier: text, token ids, a score of how weak its prior is (more: weaker).

    change: how far it moves what the base model draws, where that was measured, in grey levels.
    """

    text: str
    ids: tuple[int, ...]
    score: float
    change: float | None = None


def default_range(tokenizer: Tokenizer) -> tuple[int, int]:
    """First and last id that candidates are drawn from; ids of a vocabulary go from common to rare.

    The paper's 5000 to 10000 for T5's vocabulary, the rarer half of any other one.
    """
    if tokenizer.vocab_size == T5_VOCABULARY:
        return T5_RANGE
    last = max(set(range(tokenizer.vocab_size)) - tokenizer.special_ids)
    return (last + 1) // 2, last


def find(
    tokenizer: Tokenizer,
    *,
    class_noun: str,
    seed: int,
    count: int = 8,
    id_range: tuple[int, int] | None = None,
    embeddings: np.ndarray | None = None,
) -> list[Candidate]:
    """Finds at most `count` identifiers, best first: fewer tokens, then the weaker prior.

    Tokens of at most three characters are drawn uniformly and without replacement from `id_range`
    (both ends included; None: `default_range`); two and three tokens only where one is not enough.
    With the text encoder's `embeddings` [vocabulary, D] more are drawn, and scored by the
    `_weakness` of their worst token; without, every score is 0. Where the default range has no
    word at all it begins at half of its first id, and so on.
    """
    low, high = id_range or default_range(tokenizer)
    if not 0 <= low <= high < tokenizer.vocab_size:
        raise ValueError(
            f"id_range is ({low}, {high}); expected first and last id of a vocabulary of "
            f"{tokenizer.vocab_size}, such as {default_range(tokenizer)}"
        )
    if embeddings is not None and (embeddings.ndim != 2 or len(embeddings) < tokenizer.vocab_size):
        raise ValueError(
            f"embeddings have shape {list(embeddings.shape)}; expected one row for each of the "
            f"tokenizer's {tokenizer.vocab_size} ids: [{tokenizer.vocab_size}, D]"
        )
    search = functools.partial(
        _found, tokenizer, class_noun=class_noun, seed=seed, count=count, embeddings=embeddings
    )
    found = search(low, high)
    while not found and id_range is None and low > 0:
        low //= 2
        found = search(low, high)
    return found


def _found(
    tokenizer: Tokenizer,
    low: int,
    high: int,
    *,
    class_noun: str,
    seed: int,
    count: int,
    embeddings: np.ndarray | None,
) -> list[Candidate]:
    """See `find`, of which this is one range of ids."""
    common = sorted(set(range(low)) - tokenizer.special_ids)
    starts, inners = _short_pieces(tokenizer, low, high)
    wanted = count if embeddings is None else _POOL * count
    found: list[Candidate] = []
    for k in range(1, MAX_TOKENS + 1):
        drawn: dict[str, tuple[int, ...]] = {}
        for ids in _draws(starts, inners, k=k, generator=rng.generator(seed, "identifier", k)):
            if len(drawn) >= wanted:
                break
            text = tokenizer.decode(ids)
            if _suits(text, class_noun) and comes_back(tokenizer, text, ids, class_noun):
                drawn[text] = ids
        scores = dict.fromkeys(drawn, 0.0)
        if embeddings is not None and drawn:
            pieces = _weakness(embeddings, list(drawn.values()), common=common, low=low, high=high)
            scores = dict(zip(drawn, pieces.min(axis=1).tolist(), strict=True))
        scored = [Candidate(text, ids, scores[text]) for text, ids in drawn.items()]
        found += sorted(scored, key=lambda candidate: -candidate.score)
        if len(found) >= count:
            break
    return found[:count]


def check(
    tokenizer: Tokenizer, identifier: str, class_noun: str, *, cleaned: bool = True
) -> list[str]:
    """Returns the objections to a user's own identifier, one sentence each; often none.

    cleaned: prompts may be cleaned where the export is used, as DeepFloyd IF's are.

    Raises ValueError when that would delete it or the tokenizer has no pieces for it.
    """
    text = normalize(identifier)
    if cleaned and not survives_cleaning(f"a {text} {normalize(class_noun)}", text):
        raise ValueError(
            f"the identifier {identifier!r} would be lost where prompts are cleaned (DeepFloyd "
            "IF's clean_caption does so by default); expected one word of letters a-z that is no "
            f"image format, such as 'zib'. Or write {AUTO!r}."
        )
    ids = _ids_after(tokenizer, _BEFORE, text) or tokenizer.ids(text)
    pieces = " ".join(map(tokenizer.piece, ids))
    if tokenizer.hf.unk_token_id in ids:
        raise ValueError(
            f"the tokenizer has no pieces for a part of the identifier {identifier!r} and would "
            f"replace it: {pieces}. Write a word of the letters a-z, or {AUTO!r}."
        )
    problems = []
    if text != identifier:
        problems.append(f"{identifier!r} is read as {text!r}: identifiers are in lower case.")
    if len(ids) > 1:
        problems.append(
            f"{text!r} splits into {len(ids)} tokens ({pieces}); a single rare token "
            f"carries a subject best, and the method uses at most {MAX_TOKENS}."
        )
    if reason := meaning(text) or _meaning_as_token(tokenizer, text, ids):
        problems.append(f"{text!r} is {reason}: the base model has its own idea of it.")
    if shared := _shared(text, class_noun):
        problems.append(f"{text!r} and the class noun {class_noun!r} share {shared!r}.")
    return problems


def _meaning_as_token(tokenizer: Tokenizer, text: str, ids: Sequence[int]) -> str | None:
    """Returns what a word that is one token is known as; None where nothing speaks against it."""
    if len(ids) > 1:
        return None
    if len(text) >= _A_WORD:
        return "a single token of many letters, such as words have that are well known"
    return "one of the common tokens" if ids[0] < default_range(tokenizer)[0] else None


def choose(
    tokenizer: Tokenizer,
    wanted: str,
    *,
    class_noun: str,
    seed: int,
    embeddings: np.ndarray | None = None,
    taken: Sequence[str] = (),
    cleaned: bool = True,
) -> str:
    """The identifier to train: the best candidate for "auto", else `wanted`, checked, lower-cased.

    None of `taken`, the words of other subjects, is chosen, nor one that has one of them in it or
    is in one. Warnings of `check` go to the log. Raises ValueError as `check` does, or when none is
    found.
    """
    if wanted != AUTO:
        for problem in check(tokenizer, wanted, class_noun, cleaned=cleaned):
            logging.warning("identifier: %s Write 'auto' to have one chosen.", problem)
        return normalize(wanted)
    count = 8 * (1 + len(taken))
    pool = find(tokenizer, class_noun=class_noun, seed=seed, count=count, embeddings=embeddings)
    found = [c for c in pool if not any(c.text in word or word in c.text for word in taken)]
    if not found:
        raise none_found(class_noun)
    return found[0].text


def none_found(class_noun: str) -> ValueError:
    """The error where no word is found."""
    return ValueError(
        f"no rare token of this vocabulary makes a word beside the class noun {class_noun!r}; "
        "write an identifier of your own, such as --config.subject.identifier=zib"
    )


def as_table(candidates: Sequence[Candidate]) -> str:
    """The candidates as a text table, in their order."""
    rows: list[tuple[str, ...]] = [("identifier", "tokens", "score", "change", "ids")]
    for c in candidates:
        change = "" if c.change is None else f"{c.change:.2f}"
        cells = (c.text, str(len(c.ids)), f"{c.score:.3f}", change, " ".join(map(str, c.ids)))
        rows.append(cells)
    if all(c.change is None for c in candidates):
        rows = [(*row[:3], row[4]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def comes_back(tokenizer: Tokenizer, text: str, ids: tuple[int, ...], class_noun: str) -> bool:
    """Returns True if `text` is exactly `ids` in prompts with the noun, and changes no other."""
    noun = _ids_after(tokenizer, _BEFORE, class_noun)
    if noun is None:
        return False
    for prompt in PROMPTS:
        before = tokenizer.ids(prompt.split(" {}")[0])
        if tokenizer.ids(prompt.format(text, class_noun)) != before + ids + noun:
            return False
    return True


def _ids_after(tokenizer: Tokenizer, before: str, text: str) -> tuple[int, ...] | None:
    """The ids of a text behind another one and a space; None where they change that one's.

    A vocabulary of bytes (Qwen's) has other tokens for a word with a space before it.
    """
    first = tokenizer.ids(before)
    both = tokenizer.ids(f"{before} {text}")
    return both[len(first) :] if both[: len(first)] == first else None


def _suits(text: str, class_noun: str) -> bool:
    """Returns True for a safe word without a meaning of its own; needs no tokenizer."""
    return (
        re.fullmatch("[a-z]{2,}", text) is not None  # upper case would be lost in prompts
        and text != AUTO
        and meaning(text) is None
        and not any(word in text for word in OFFENSIVE)
        and not _shared(text, class_noun)
        and all(survives_cleaning(p.format(text, normalize(class_noun)), text) for p in PROMPTS)
    )


def _shared(text: str, class_noun: str) -> str:
    """The identifier if it is part of the noun, a word of the noun if it is part of it, else ""."""
    noun = normalize(class_noun)
    return text if text in noun else next((word for word in noun.split() if word in text), "")


def _short_pieces(tokenizer: Tokenizer, low: int, high: int) -> tuple[list[int], list[int]]:
    """Ids of short pieces without a meaning, of letters a-z only: word beginnings, and others."""
    starts: list[int] = []
    inners: list[int] = []
    for token_id in sorted(set(range(low, high + 1)) - tokenizer.special_ids):
        piece = re.sub("^[▁Ġ]|</w>$", "", tokenizer.piece(token_id))
        if re.fullmatch(rf"[a-z]{{1,{MAX_CHARACTERS}}}", piece) and meaning(piece) is None:
            (starts if tokenizer.is_word_start(token_id) else inners).append(token_id)
    return starts, inners


def _draws(
    starts: list[int], inners: list[int], *, k: int, generator: np.random.Generator
) -> Iterator[tuple[int, ...]]:
    """Sequences of a word beginning and k − 1 other pieces, uniformly drawn."""
    total = len(starts) * len(inners) ** (k - 1)
    # Few sequences are all taken, in a random order. Of millions only so many that some will do:
    # what comes twice among them has the same text, and counts once.
    order = (
        generator.permutation(total) if total <= _DRAWS else generator.integers(total, size=_DRAWS)
    )
    for number in order.tolist():
        number, first = divmod(number, len(starts))
        ids = [starts[first]]
        for _ in range(k - 1):
            number, inner = divmod(number, len(inners))
            ids.append(inners[inner])
        yield tuple(ids)


def _weakness(
    embeddings: np.ndarray,
    ids: Sequence[Sequence[int]],
    *,
    common: list[int],
    low: int,
    high: int,
) -> np.ndarray:
    """1 − (largest cosine with a common token) − |ln(norm / median norm)|: ids [N, k] → [N, k].

    The median is that of the rows `low` to `high`. A row that training hardly touched is near its
    random start: like no common token, of usual length.
    """
    usual = np.median(np.linalg.norm(np.asarray(embeddings[low : high + 1], np.float32), axis=-1))
    rows, length = _unit(embeddings[np.asarray(ids)])
    cosine = rows @ _unit(embeddings[np.asarray(common, int)])[0].T
    return 1.0 - cosine.max(axis=-1, initial=-1.0) - np.abs(np.log(length / max(usual, 1e-12)))


def _unit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of length 1 in float32, and the lengths they had."""
    rows = np.asarray(rows, np.float32)
    length = np.maximum(np.linalg.norm(rows, axis=-1), 1e-12)
    return rows / length[..., None], length
