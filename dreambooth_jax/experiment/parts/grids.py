"""The grids of pictures of a run: which pictures there are, and their PNG files."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image, PngImagePlugin

from dreambooth_jax import files, rng, untrusted
from dreambooth_jax.config import Plan
from dreambooth_jax.data.prompts import expanded, is_of_class
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts.workdir import Workdir

Grid = dict[str, list[np.ndarray]]  # pictures by prompt
Wanted = Sequence[tuple[str, str, int]]  # file name, prompt, seed


def prompts_of(
    plan: Plan, words: Sequence[Words], templates: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The prompts of the grid, or of other templates, with each subject's words, each once."""
    lines = expanded(plan.sample.prompts if templates is None else templates)
    return tuple(dict.fromkeys(line.format(**each.in_braces) for line in lines for each in words))


def grid_of(plan: Plan, words: Sequence[Words]) -> list[tuple[str, str, int]]:
    """(file name, prompt, seed) of every picture of the grid, prompt by prompt."""
    return _named(plan, prompts_of(plan, words), plan.sample.num_images)


def judged_of(plan: Plan, words: Sequence[Words]) -> list[tuple[str, str, int]]:
    """File names, prompts and seeds of the evaluation images; always includes a class prompt."""
    prompts = prompts_of(plan, words, plan.evaluate.prompts or None)
    if not any(is_of_class(prompt, words) for prompt in prompts):
        prompts = tuple(dict.fromkeys((*prompts, *(each.class_prompt for each in words))))
    return _named(plan, prompts, plan.evaluate.num_images or plan.sample.num_images)


def _named(plan: Plan, prompts: Sequence[str], count: int) -> list[tuple[str, str, int]]:
    return [
        (f"{p:02d}_{k:02d}.png", prompt, seed_of(plan.seed, k))
        for p, prompt in enumerate(prompts)
        for k in range(count)
    ]


def is_drawn(
    folder: Path,
    wanted: Wanted,
    samplers: Mapping[str, Any] | None = None,
    *,
    negative: str | None = None,
) -> bool:
    """Returns True where `folder` holds these prompts and seeds, by the text of its PNG files.

    A picture that is there and cannot be read is told, and counts as not drawn.

    Args:
      samplers: these as well, where given.
      negative: and with this negative prompt, where given.
    """
    for name, prompt, seed in wanted:
        try:
            about = read_picture(folder / name)[1]
        except FileNotFoundError:
            return False
        except untrusted.FileError as error:
            logging.warning("%s", error)
            return False
        if (about.get("prompt"), about.get("seed")) != (prompt, seed):
            return False
        drawn_by = about.get("samplers")
        if samplers is not None and drawn_by != samplers:
            return False
        told = drawn_by.get("negative_prompt", "") if isinstance(drawn_by, dict) else negative
        if negative is not None and told != negative:
            return False
    return True


def read_picture(file: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """A picture of a grid, decoded as a whole, and what it says of itself.

    Raises:
      FileNotFoundError: there is none.
      FileError: it is damaged, or not a picture of a grid.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing.")
    with (
        untrusted.reading(file, "a picture of a grid", remedy="It is drawn again."),
        untrusted.regular(file).open("rb") as opened,
        Image.open(opened, formats=["PNG"]) as image,
    ):
        pixels = np.asarray(image.convert("RGB"))
        about = json.loads(image.info["dreambooth_jax"])
        if not isinstance(about, dict):
            raise ValueError("its text is no JSON object")
        return pixels, about


def seed_of(seed: int, index: int) -> int:
    """The seed of the k-th picture, the same for every prompt, so that columns can be compared."""
    return int(rng.generator(seed, "grid", index).integers(2**32, dtype=np.uint32))


def read_grid(folder: Path, wanted: Wanted) -> Grid:
    """The pictures of a grid by prompt, as `Painter.grid` wrote them."""
    cells: Grid = {}
    for name, prompt, _ in wanted:
        cells.setdefault(prompt, []).append(read_picture(folder / name)[0])
    return cells


def calls_left(
    folder: Path, wanted: Wanted, *, rows: int, negative: str | None = None
) -> list[Wanted]:
    """The pictures of each sampler call of so many rows, but for calls that are drawn whole."""
    calls = [wanted[i : i + rows] for i in range(0, len(wanted), rows)]
    return [call for call in calls if not is_drawn(folder, call, negative=negative)]


def grid_label(kind: str, step: int) -> str:
    """Returns the name of the grid that a stage's training draws after a step."""
    return f"{kind}-{step:06d}"


def grids_of(
    plan: Plan,
    workdir: Workdir,
    words: Sequence[Words],
    *,
    all_seeds: Sequence[str] | None = None,
) -> dict[str, dict[str, list[np.ndarray]]]:
    """The prompt grids in order, before, over training, after: pictures by label and prompt.

    A grid that was drawn on the way for other prompts is left out. Where `all_seeds` is given, all
    pictures of these labels are read, and of the others the first of each prompt.
    """
    labels = ["before"]
    for kind in plan.trained:
        # Not what was drawn for the judges alone, whose folders have a hash behind the step.
        names = [p.name for p in workdir.samples.glob(f"{kind}-*")]
        labels += sorted(name for name in names if re.fullmatch(rf"{kind}-\d+", name))
    every, several = grid_of(plan, words), plan.sample.num_images
    found = {}
    for label in [*labels, "after"]:
        wanted = every if all_seeds is None or label in all_seeds else every[::several]
        if is_drawn(workdir.samples / label, wanted, negative=plan.sample.negative_prompt):
            found[label] = read_grid(workdir.samples / label, wanted)
    return found


def save_png(file: Path, picture: np.ndarray, *, about: Mapping[str, object]) -> None:
    """Writes uint8 `[H,W,3]` whole or not at all; `about` is JSON in its text `dreambooth_jax`."""
    note = PngImagePlugin.PngInfo()
    note.add_text("dreambooth_jax", json.dumps(about))
    with files.written(file) as part:
        Image.fromarray(picture).save(part, format="PNG", pnginfo=note)
