"""Edits that follow a source prompt: which words of the two belong together, as rows of a batch."""

from collections.abc import Sequence

import numpy as np

from dreambooth_jax import config as configs
from dreambooth_jax.config import Plan
from dreambooth_jax.data.subject import Words
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.text import alignment

INVERSION, DRAWN = "inversion", "prompt_to_prompt"
_ARTICLES = ("a", "an", "the")  # they change with the word behind them, and have no place


def source_of(plan: Plan, prompt: str, words: Sequence[Words]) -> str:
    """The source prompt with the words of the subject that a prompt names, or of the first one."""
    named = [each for each in words if each.identifier.lower() in prompt.lower()]
    return plan.edit.source_prompt.format(**(named or list(words))[0].in_braces)


def check(plan: Plan, stage: Stage, prompts: Sequence[str], words: Sequence[Words]) -> None:
    """Checks that every prompt can follow the source's.

    Raises:
      ConfigError: the base model has no such attention, a prompt is too long to be aligned, shares
        nothing with the source's, or lacks a word of `edit.words` or `edit.word`.
    """
    if not stage.denoiser.attends:
        if plan.edit.method == DRAWN:
            raise configs.ConfigError(
                f"edit.method = {DRAWN!r}: the attention of a {stage.family.name} cannot follow "
                "another prompt's. Write --config.edit.method=inversion, or sdedit."
            )
        return
    wrong = []
    for prompt in prompts:
        try:
            rows(plan, stage, prompt, words, first=0)
            if plan.edit.local_blend == "word":
                columns(plan, stage, prompt, words)
        except ValueError as error:
            wrong.append(f"{source_of(plan, prompt, words)!r} → {prompt!r}: {error}")
    if wrong:
        raise configs.ConfigError(
            f"edit.method = {plan.edit.method!r}: {len(wrong)} of {len(prompts)} prompts cannot "
            "follow edit.source_prompt. Change it, or write --config.edit.method=sdedit:\n  "
            + "\n  ".join(wrong)
        )


def rows(
    plan: Plan, stage: Stage, prompt: str, words: Sequence[Words], *, first: int
) -> dict[str, np.ndarray]:
    """The rows of a source and its edit, `[2,…]` each (`models.words.swap_at`).

    first: the step at which sampling begins.

    Raises:
      ValueError: as `check` says.
    """
    tokenizer = stage.tokenizer
    found = _aligned(plan, stage, prompt, words)
    factors = np.ones(tokenizer.max_length, np.float32)
    for word, factor in plan.edit.words:
        factors[alignment.span(tokenizer, prompt, word)] *= factor
    count = plan.stages[stage.kind].sampler.num_steps
    cross, among = (
        first + round(share * (count - first))
        for share in (plan.edit.cross_steps, plan.edit.self_steps)
    )
    return {
        "words": np.stack([found.words * factors] * 2),
        "own": np.stack([found.own * factors] * 2),
        "cross_steps": np.full(2, cross, np.int32),
        "self_steps": np.full(2, among, np.int32),
    }


def _added(source: str, prompt: str, words: Sequence[Words]) -> list[Words]:
    """The subjects that a prompt names and its source does not."""
    return [
        each
        for each in words
        if each.identifier.lower() in prompt.lower()
        and each.identifier.lower() not in source.lower()
    ]


def _aligned(plan: Plan, stage: Stage, prompt: str, words: Sequence[Words]) -> alignment.Alignment:
    tokenizer, source = stage.tokenizer, source_of(plan, prompt, words)
    own = [
        place
        for each in _added(source, prompt, words)
        for place in alignment.span(tokenizer, prompt, each.identifier)
    ]
    return alignment.aligned(
        alignment.read(tokenizer, source),
        alignment.read(tokenizer, prompt),
        length=tokenizer.max_length,
        own=own,
    )


def columns(
    plan: Plan, stage: Stage, prompt: str, words: Sequence[Words]
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of a source and of its edit whose places may change, float32 `[T]` each, 0 or 1.

    Those of `edit.word`, in whichever of the two has it. Without one those that were replaced, are
    new, or have a factor (`edit.words`), with the class noun of a subject that is new.

    Raises:
      ValueError: neither of the two has the word.
    """
    tokenizer, source = stage.tokenizer, source_of(plan, prompt, words)
    texts = (source, prompt)
    sought = [plan.edit.word] if plan.edit.word else [word for word, _ in plan.edit.words]
    sought += [] if plan.edit.word else [w.class_noun for w in _added(source, prompt, words)]
    marked = [np.zeros(tokenizer.max_length, np.float32) for _ in texts]
    for word in sought:
        for text, marks in zip(texts, marked, strict=True):
            try:
                marks[alignment.span(tokenizer, text, word)] = 1
            except ValueError:  # this one does not have the word; below where neither has it
                continue
    if plan.edit.word:
        if not any(marks.any() for marks in marked):
            alignment.span(tokenizer, prompt, plan.edit.word)  # tells the words that there are
        return marked[0], marked[1]
    ids = [alignment.read(tokenizer, text) for text in texts]
    moved = _aligned(plan, stage, prompt, words).words
    kept = [(i, j) for i, j in np.argwhere(moved == 1) if ids[0][i : i + 1] == ids[1][j : j + 1]]
    for side, (own, marks) in enumerate(zip(ids, marked, strict=True)):
        same = {pair[side] for pair in kept}
        for place, token in enumerate(own):
            if place not in same and tokenizer.decode([token]).strip().lower() not in _ARTICLES:
                marks[place] = 1
    return marked[0], marked[1]
