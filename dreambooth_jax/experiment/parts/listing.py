"""Pictures of a file of prompts (`sample.prompts_file`), each line with its own seed and size."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import files, generate, hosts, report, turns
from dreambooth_jax.config import Plan, templates
from dreambooth_jax.data import prompt_lines
from dreambooth_jax.data.prompt_lines import Line, Size
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.grids import Wanted, calls_left, read_grid, save_png, seed_of
from dreambooth_jax.experiment.parts.model import settings_of
from dreambooth_jax.experiment.parts.texts import Weights
from dreambooth_jax.pipeline import SizeError, Stage

_TOLD = 20  # problems in one message


@dataclasses.dataclass(frozen=True)
class Asked:
    """One picture that is asked for."""

    name: str
    prompt: str
    seed: int
    negative: str
    size: Size | None

    @property
    def as_wanted(self) -> tuple[str, str, int]:
        """Its file, prompt and seed, as grids have them."""
        return self.name, self.prompt, self.seed


def read(plan: Plan, stages: Mapping[str, Stage]) -> tuple[Line, ...]:
    """The lines of `sample.prompts_file`, as the model can draw them; () where there is none.

    Raises:
      FileError, OSError: see `prompt_lines.read`.
      ValueError: all sizes that the model cannot draw, and negative prompts without guidance.
    """
    if not plan.sample.prompts_file:
        return ()
    at = files.at(plan.sample.prompts_file)
    file = files.here(at.parent) / at.name
    lines = prompt_lines.read(file, fields=templates.FIELDS)
    settings = {kind: settings_of(plan, stage) for kind, stage in stages.items()}
    guided = any(generate.is_guided(x, settings[k].guidance_scale) for k, x in stages.items())
    wrong: list[str] = []
    for line in lines:
        if line.negative and not guided:
            wrong.append(
                f"line {line.number}: found a negative prompt, expected none: no stage has "
                "guidance, which would lead away from it. Write a --config.sampler.guidance_scale "
                "above 1, or leave it out."
            )
        if line.size is not None and "upscaler" in stages:
            wrong.append(
                f"line {line.number}: found a size, expected none: this model's upscaler enlarges "
                "pictures of one size. Leave it out, or write "
                '--config.upscaler_model="" --config.stages="(\'base\',)".'
            )
        elif line.size is not None:
            own = dataclasses.replace(settings["base"], size=line.size)
            try:
                generate.sample_shape(stages["base"], own)
            except SizeError as error:
                size, near = ("x".join(map(str, each)) for each in (line.size, error.near))
                told = f"found the size {size}, {error.reason}. Write {near}."
                wrong.append(f"line {line.number}: {told}")
    if wrong:
        more = [f"and {len(wrong) - _TOLD} more"] if len(wrong) > _TOLD else []
        raise ValueError(f"{file}, " + "\n  ".join([*wrong[:_TOLD], *more]))
    return lines


def texts_of(lines: Sequence[Line], words: Sequence[Words]) -> tuple[str, ...]:
    """The prompts and negative prompts of all lines, with the subjects' words."""
    filled = [line.with_words(each.in_braces) for line in lines for each in words]
    found = itertools.chain.from_iterable((line.prompt, line.negative or "") for line in filled)
    return tuple(dict.fromkeys(found))


def asked_of(plan: Plan, lines: Sequence[Line], words: Sequence[Words]) -> list[Asked]:
    """Every picture, line by line: `sample.num_images` of each, of each subject that it names.

    A line's seed is that of its first picture, and those after it count on from it. Without one
    they are those of a grid.
    """
    found: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        for each in words:
            filled = line.with_words(each.in_braces)
            found.setdefault((line.number, filled.prompt, filled.negative), filled)
    digits = max(2, len(str(len(found) - 1)))
    return [
        Asked(
            name=f"{p:0{digits}d}_{k:02d}.png",
            prompt=line.prompt,
            seed=seed_of(plan.seed, k) if line.seed is None else (line.seed + k) % 2**32,
            negative=plan.sample.negative_prompt if line.negative is None else line.negative,
            size=line.size,
        )
        for p, line in enumerate(found.values())
        for k in range(plan.sample.num_images)
    ]


def drawn(painter: Painter, weights: Weights, label: str, asked: Sequence[Asked]) -> Path:
    """Draws all into a folder of its own, with `grid.png`; returns the folder.

    Its name depends on the weights (`label`) and on all that is asked for: nothing is replaced, and
    what is there already is not drawn again. Each sampler call's pictures are written at once.
    """
    about = {kind: settings.told() for kind, settings in painter.settings.items()}
    of = json.dumps([[dataclasses.astuple(each) for each in asked], about, painter.plan.dtype])
    of += json.dumps(dict(painter.model.fingerprints), sort_keys=True)
    folder = painter.workdir.samples / f"{label}-{hashlib.sha256(of.encode()).hexdigest()[:8]}"
    for (negative, size), chosen in _groups(asked).items():
        hosts.meet(f"before {folder.name}, {size}")  # all processes must see the same
        left = calls_left(folder, [each.as_wanted for each in chosen], rows=painter.rows)
        if not left:
            continue
        told = {"weights": label, "samplers": about, "negative_prompt": negative, "size": size}
        keep = functools.partial(_keep, folder, iter(left), told)
        cascade = painter.cascade(weights, batch_size=painter.rows, size=size)
        cascade.draw(
            [weights[kind] for kind in painter.model.kinds],
            [prompt for call in left for _, prompt, _ in call],
            [seed for call in left for _, _, seed in call],
            label=f"list {label}",
            negative=negative,
            on_batch=keep,
        )
    hosts.meet(folder.name)
    if turns.is_first():
        _sheet(folder, asked, {"weights": label, "samplers": about})
    return folder


def _keep(
    folder: Path, calls: Iterator[Wanted], told: Mapping[str, Any], pictures: np.ndarray
) -> None:
    """Writes the pictures of the next call, a part of them by each process."""
    for k, ((name, prompt, seed), picture) in enumerate(zip(next(calls), pictures, strict=True)):
        if turns.is_mine(k):
            save_png(folder / name, picture, about={**told, "prompt": prompt, "seed": seed})


def _groups(asked: Sequence[Asked]) -> dict[tuple[str, Size | None], list[Asked]]:
    """The pictures that one call of a sampler can draw together."""
    groups: dict[tuple[str, Size | None], list[Asked]] = {}
    for each in asked:
        groups.setdefault((each.negative, each.size), []).append(each)
    return groups


def _sheet(folder: Path, asked: Sequence[Asked], about: Mapping[str, Any]) -> None:
    """Writes `grid.png`: a row for each line, under its prompt, negative prompt and size."""
    rows: dict[str, list[Any]] = {}
    for row, pictures in itertools.groupby(asked, key=lambda each: each.name.partition("_")[0]):
        shown = [*pictures]
        first = shown[0]
        parts = [f"{int(row)}. {first.prompt}"]
        parts += [f"without: {first.negative}"] if first.negative else []
        parts += [f"{first.size[0]}×{first.size[1]}"] if first.size else []
        grid = read_grid(folder, [each.as_wanted for each in shown])
        rows[" · ".join(parts)] = grid[first.prompt]
    save_png(folder / "grid.png", report.sheet(rows), about=about)
