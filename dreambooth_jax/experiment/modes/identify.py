"""Finds rare words that could name a subject, and ranks them; no photos are needed."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import files, pipeline, turns
from dreambooth_jax.config import ConfigDict, Plan
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.grids import seed_of
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.text import identifier
from dreambooth_jax.text import tokenizer as tokenizers
from dreambooth_jax.text.identifier import Candidate


def identify(config: ConfigDict, folder: Path) -> Path:
    """Looks for rare words that could name the subject; returns `identifiers.json` in `folder`.

    A table of them goes to the log, and to the file as `{text, ids, score}`, best first. With
    `identify.num_images` the base model draws each of the best, and those come first that change
    its pictures least; their `change` is written beside the score.

    Raises:
      ValueError, OSError: what was found, expected, and what to do.
    """
    plan = configs.resolve(config)
    embeddings = None
    if plan.identify.tokenizer:
        tokenizer = tokenizers.load(files.local(plan.identify.tokenizer))
    else:
        base = setup.open_stages(plan)["base"]
        tokenizer = base.tokenizer
        embeddings = pipeline.read_leaf(base, base.token_table)
    found = identifier.find(
        tokenizer,
        class_noun=plan.subject.class_noun,
        seed=plan.seed,
        count=plan.identify.count,
        embeddings=embeddings,
    )
    if not found:
        raise identifier.none_found(plan.subject.class_noun)
    if plan.identify.num_images:
        found = by_change(plan, found, folder)
    logging.info("Identifiers, best first:\n%s", identifier.as_table(found))
    file = folder / "identifiers.json"
    if turns.is_first():
        listed = [
            {key: value for key, value in dataclasses.asdict(each).items() if value is not None}
            for each in found
        ]
        files.write_text(file, json.dumps(listed, indent=1) + "\n")
    return file


def by_change(plan: Plan, found: Sequence[Candidate], folder: Path) -> list[Candidate]:
    """The first `identify.num_drawn` ordered by what they change in pictures, then the others.

    "a [V] [class]" is drawn by the base stage from the same noise as "a [class]"; a word that
    means nothing to the model hardly changes the picture. The change is in grey levels, the mean
    over all pixels of all pictures.
    """
    drawn, others = found[: plan.identify.num_drawn], found[plan.identify.num_drawn :]
    words = [Words.of(identifier=x.text, class_noun=plan.subject.class_noun) for x in drawn]
    prompts = [words[0].class_prompt, *(each.instance_prompt for each in words)]
    alone = {"upscaler_model": "", "stages": ("base",), "sample.prompts": tuple(prompts)}
    plan = configs.changed(plan, alone)
    model = setup.load(plan, setup.open_stages(plan))
    painter = Painter(plan, model, words[:1], Workdir.of_run(folder, plan))
    seeds = [seed_of(plan.seed, k) for k in range(plan.identify.num_images)]
    pictures = painter.draw(
        model.weights,
        [prompt for prompt in prompts for _ in seeds],
        seeds * len(prompts),
        batch_size=painter.rows,
        label="candidates",
    )[-1].astype(np.float32)
    by_prompt = pictures.reshape(len(prompts), len(seeds), -1)
    changes = np.abs(by_prompt[1:] - by_prompt[:1]).mean((1, 2))
    measured = [
        dataclasses.replace(candidate, change=round(float(change), 3))
        for candidate, change in zip(drawn, changes, strict=True)
    ]
    return [*sorted(measured, key=lambda candidate: candidate.change or 0.0), *others]
