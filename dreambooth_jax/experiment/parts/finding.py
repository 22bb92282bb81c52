"""Masks that the model itself finds, where nobody painted one."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import regions
from dreambooth_jax.data import canvas
from dreambooth_jax.experiment.parts import pairs, scenes
from dreambooth_jax.experiment.parts.editing import Editor, shape_of
from dreambooth_jax.experiment.parts.grids import seed_of
from dreambooth_jax.experiment.parts.scenes import Scene
from dreambooth_jax.experiment.parts.texts import Weights
from dreambooth_jax.text import alignment

_MOST = 0.9  # share of a photo: a mask that covers more marks nothing


def with_masks(
    editor: Editor, weights: Weights, found: Sequence[Scene], prompts: Sequence[str]
) -> tuple[Scene, ...]:
    """The scenes with masks where the source prompt's word shows, or the first prompt differs.

    Raises:
      ConfigError: the base model cannot find a word's place, the prompt lacks the word, or a mask
        covers nothing or everything.
    """
    plan, stage = editor.plan, editor.model.stages["base"]
    source = pairs.source_of(plan, prompts[0], editor.painter.words)
    text = editor.painter.texts(weights)["base"]
    asked = {"prompt": prompts[0], "source": source}
    columns = None
    if plan.edit.masks == "word":
        asked, columns = {"prompt": source}, _columns(editor, source)
    finder = regions.Finder(
        stage,
        plan.edit.masks,
        num_steps=plan.stages["base"].sampler.num_steps,
        mesh=editor.model.mesh,
    )
    seeds = [seed_of(plan.seed, k) for k in range(regions.NOISES)]
    rows = {name: int(text.rows([prompt])[0]) for name, prompt in asked.items()}
    masked = []
    for scene in found:
        opened = editor.canvas(scene)
        known = editor.x0(weights, "base", opened.patch(shape_of(stage)))
        small = finder.mask(weights["base"], text.table, known, rows, seeds=seeds, columns=columns)
        inside = canvas.uncropped(small, opened.photo.shape[:2])
        share = inside.mean()
        logging.info("%s: the mask that was found covers %.1f %%.", scene.path, 100 * share)
        if not 0 < share < _MOST:
            raise configs.ConfigError(
                f"{scene.path}: the mask that was found for {source!r} covers {100 * share:.0f} % "
                "of the photo. Change edit.source_prompt to what the photo shows, or paint a mask "
                "and write --config.edit.masks=files."
            )
        marked = dataclasses.replace(scene, found=inside)
        masked.append(scenes.described(marked, plan, editor.shape))
    editor.forget()
    return tuple(masked)


def _columns(editor: Editor, source: str) -> np.ndarray:
    """The tokens of the word, or of the class noun, in the source prompt, float32 `[T]`."""
    stage, plan = editor.model.stages["base"], editor.plan
    if not stage.denoiser.attends:
        raise configs.ConfigError(
            f"edit.masks = 'word': the attention of a {stage.family.name} does not tell where a "
            "word is. Write --config.edit.masks=difference."
        )
    word = plan.edit.word or editor.painter.words[0].class_noun
    try:
        places = alignment.span(stage.tokenizer, source, word)
    except ValueError as error:
        raise configs.ConfigError(
            f"edit.masks = 'word': {error}. Write --config.edit.source_prompt with it, or another "
            "--config.edit.word."
        ) from error
    columns = np.zeros(stage.tokenizer.max_length, np.float32)
    columns[places] = 1
    return columns
