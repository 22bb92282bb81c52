"""Alignment of the tokens of an edited prompt with those of its source."""

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from dreambooth_jax.text.tokenizer import Tokenizer


class Alignment(NamedTuple):
    """Shares of the source's tokens in those of the edit.

    words: float32 `[T,T]`, from source token to token of the edit; the row of a token that is
      kept or replaced sums to 1.
    own: float32 `[T]`, 1 for tokens of the edit that stand for nothing of the source.
    """

    words: np.ndarray
    own: np.ndarray


def aligned(
    source: Sequence[int],
    target: Sequence[int],
    *,
    length: int,
    own: Collection[int] = (),
) -> Alignment:
    """Aligns the ids of two prompts, start and end marks included, of `length` with their padding.

    Ids that both have in the same order (the longest such sequence) belong together. Between them,
    n tokens that were replaced by as many go one to one, by n' others with 1/n' each (Hertz et al.
    2022, section 3.2); added tokens are the edit's own. Padding follows padding.

    Args:
      own: positions in the target of the subject's own word, which stands for nothing of the
        source; right before tokens that replace others ("a vase" → "a zib dog") it joins them.

    Raises:
      ValueError: the prompts share nothing but marks.
    """
    rest = [j for j in range(len(target)) if j not in own]
    pairs = _common(source, [target[j] for j in rest])
    if len(pairs) <= sum(source[i] in (source[0], source[-1]) for i, _ in pairs):
        raise ValueError("nothing to align: the prompts share no token but start and end")
    words, new = np.zeros((length, length), np.float32), np.zeros(length, np.float32)
    new[list(own)] = 1
    matched = [*((i, rest[j]) for i, j in pairs), (len(source), len(target))]
    i_next = j_next = 0
    for i, j in matched:
        before, after = range(i_next, i), [k for k in range(j_next, j) if k not in own]
        joined = [k for k in own if before and after and j_next <= k < after[0]]
        if before and len(before) == len(after) and not joined:
            words[list(before), after] = 1
        elif before and after:
            block = sorted([*joined, *after])
            words[np.ix_(list(before), block)] = 1 / len(block)
            new[block] = 0
        else:
            new[after] = 1
        if i < len(source):
            words[i, j] = 1
        i_next, j_next = i + 1, j + 1
    for j in range(len(target), length):
        words[min(len(source) + j - len(target), length - 1), j] = 1
    return Alignment(words, new)


def _common(a: Sequence[int], b: Sequence[int]) -> list[tuple[int, int]]:
    """Positions of the longest common subsequence, the earliest one."""
    longest = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in reversed(range(len(a))):
        for j in reversed(range(len(b))):
            longest[i, j] = (
                longest[i + 1, j + 1] + 1
                if a[i] == b[j]
                else max(longest[i + 1, j], longest[i, j + 1])
            )
    pairs, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        if a[i] == b[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1, j] >= longest[i, j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def read(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """The ids of a prompt with its marks, without padding.

    Raises:
      ValueError: it is longer than what is read, and would be cut.
    """
    length = tokenizer.length(tokenizer.spelled(prompt))
    if length > tokenizer.max_length:
        raise ValueError(
            f"the prompt {prompt!r} is {length} tokens long; "
            f"{tokenizer.max_length} are read. Shorten it: words that are cut cannot be aligned."
        )
    found = tokenizer.encode([prompt])
    return [int(i) for i in found["ids"][0][: int(found["mask"][0].sum())]]


def span(tokenizer: Tokenizer, prompt: str, word: str) -> list[int]:
    """Positions of the tokens of a word, or of several in a row, among those of `read`.

    Raises:
      ValueError: the prompt does not have it; lists its words.
    """
    text, sought = tokenizer.formed(prompt), tokenizer.formed(word)
    found = re.search(rf"(?<!\w){re.escape(sought)}(?!\w)", text, re.IGNORECASE)
    if found is None:
        raise ValueError(
            f"the prompt {prompt!r} does not have {word!r}; it has {', '.join(prompt.split())}"
        )
    ids = read(tokenizer, prompt)
    first = int(ids[0] in tokenizer.special_ids)
    begin = len(tokenizer.ids(text[: found.start()].rstrip()))
    end = len(tokenizer.ids(text[: found.end()]))
    return list(range(first + begin, first + end))
