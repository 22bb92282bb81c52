"""Edits that follow a source prompt: which words of the two belong together, as rows of a batch."""

from collections.abc import Sequence

import numpy as np

from dreambooth_jax import config as configs
from dreambooth_jax.config import Plan
from dreambooth_jax.data.subject import Words
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.text import alignment

INVERSION, DRAWN = "inversion", "prompt_to_prompt"


def source_of(plan: Plan, prompt: str, words: Sequence[Words]) -> str:
    """The source prompt with the words of the subject that a prompt names, or of the first one."""
    named = [each for each in words if each.identifier.lower() in prompt.lower()]
    return plan.edit.source_prompt.format(**(named or list(words))[0].in_braces)


def check(plan: Plan, stage: Stage, prompts: Sequence[str], words: Sequence[Words]) -> None:
    """Checks that every prompt can follow the source's.

    Raises:
      ConfigError: the base model has no such attention, a prompt is too long to be aligned, shares
        nothing with the source's or lacks a word of `edit.words`.
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
    tokenizer, source = stage.tokenizer, source_of(plan, prompt, words)
    own = [
        place
        for each in words
        if each.identifier.lower() in prompt.lower()
        for place in alignment.span(tokenizer, prompt, each.identifier)
        if each.identifier.lower() not in source.lower()
    ]
    found = alignment.aligned(
        alignment.read(tokenizer, source),
        alignment.read(tokenizer, prompt),
        length=tokenizer.max_length,
        own=own,
    )
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
