"""Draws for a run: the prompt grid before, during and after training, and the class images."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import generate, hosts, report, sharding, train, turns
from dreambooth_jax.config import Plan
from dreambooth_jax.data.prompts import PROMPT_SETS, is_of_class
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import texts, tracking
from dreambooth_jax.experiment.parts.grids import (
    Grid,
    Wanted,
    calls_left,
    grid_of,
    is_drawn,
    judged_of,
    read_grid,
    save_png,
)
from dreambooth_jax.experiment.parts.model import Model, as_tuned, settings_of
from dreambooth_jax.experiment.parts.texts import Weights
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.signals import GracefulStop

Size = tuple[int, int] | None  # height and width in pixels


class Painter:
    """The jitted samplers of all stages, with every prompt of the run encoded once.

    `captions` are prompts that it is trained on besides those that name subjects and classes.
    """

    def __init__(
        self,
        plan: Plan,
        model: Model,
        words: Sequence[Words],
        workdir: Workdir,
        captions: Sequence[str] = (),
        *,
        samplers: dict[tuple[str, bool], generate.Sampler] | None = None,
    ):
        """samplers: shared by runs of one base model with the same settings; filled here."""
        self.plan, self.model, self.words, self.workdir = plan, model, words, workdir
        self.captions = captions
        self.on_grid: Callable[[], None] | None = None  # called when a grid is drawn
        asked = [*grid_of(plan, words), *judged_of(plan, words)]
        self.prompts = tuple(dict.fromkeys(prompt for _, prompt, _ in asked))
        self._tell_unnamed()
        self.settings = {kind: settings_of(plan, model.stages[kind]) for kind in model.kinds}
        self._tuned = {kind: as_tuned(plan, model.stages[kind]) for kind in plan.trained}
        self._samplers: dict[Any, generate.Sampler] = {} if samplers is None else samplers
        self._texts = None if configs.learns_text(plan) else self._encoded(model.weights)

    def _tell_unnamed(self) -> None:
        """Warns of prompts that name no subject, though they do not read like its class's either.

        "a sksx toy" of a run whose word is "sks" is drawn as any toy.
        """
        classes = {each.class_prompt for each in self.words}
        nouns = {each.class_noun for each in self.words}
        for template in self.plan.sample.prompts if self.words else ():
            plain = "{" not in template and template not in PROMPT_SETS
            if plain and template not in classes and is_of_class(template, self.words):
                own = " or ".join(f"{each.identifier} {each.class_noun}" for each in self.words)
                logging.warning(
                    "The prompt %r names no subject: it shows any %s. Write {subject}, or %s.",
                    *(template, " or ".join(sorted(nouns)), own),
                )

    @property
    def block(self) -> int:
        """Class images per sampler call: `prior.batch_size`, rounded up to share it evenly."""
        return sharding.whole_rows(self.plan.prior.batch_size, self.model.mesh)

    @property
    def rows(self) -> int:
        """Pictures per sampler call: `sample.batch_size`, rounded up to share it evenly."""
        return sharding.whole_rows(self.plan.sample.batch_size, self.model.mesh)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """The subjects' own words."""
        return tuple(each.identifier for each in self.words)

    def texts(self, weights: Weights) -> Mapping[str, generate.Text]:
        """Every stage's prompts and embeddings; from these weights when the text encoder learns."""
        return self._texts if self._texts is not None else self._encoded(weights)

    def _encoded(self, weights: Weights) -> dict[str, generate.Text]:
        named = [p for each in self.words for p in (each.instance_prompt, each.class_prompt)]
        negative = self.plan.sample.negative_prompt, self.plan.prior.negative_prompt
        wanted = (*named, *self.captions, *self.prompts, *negative)
        return texts.encoded(self.plan, self.model, weights, wanted, self.identifiers)

    def draw(
        self,
        weights: Weights,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        batch_size: int,
        label: str | None,
        negative: str = "",
        on_batch: Callable[[np.ndarray], None] | None = None,
        rows: Sequence[Mapping[str, np.ndarray]] = (),
    ) -> list[np.ndarray]:
        """uint8 pictures of every stage (`generate.Cascade.draw`) from these weights."""
        params = [weights[kind] for kind in self.model.kinds]
        asked: dict[str, Any] = {"label": label, "negative": negative, "on_batch": on_batch}
        cascade = self.cascade(weights, batch_size=batch_size)
        return cascade.draw(params, prompts, seeds, rows=rows, **asked)

    def cascade(self, weights: Weights, *, batch_size: int, size: Size = None) -> generate.Cascade:
        """The samplers of all stages with their texts; size as in `sampler`."""
        kinds, by_kind = self.model.kinds, self.texts(weights)
        samplers = [self.sampler(kind, weights, size=size) for kind in kinds]
        return generate.Cascade(samplers, [by_kind[kind] for kind in kinds], batch_size)

    def sampler(self, kind: str, weights: Weights, *, size: Size = None) -> generate.Sampler:
        """A stage's sampler, made once; trained weights are sampled as their export will be.

        size: height and width of the base's pictures, instead of its own.
        """
        untouched = weights[kind] is self.model.weights[kind]
        stage = self.model.stages[kind] if untouched else self._tuned[kind]
        own = self.settings[kind]
        if size is not None and kind == "base":
            own = dataclasses.replace(own, size=size)
        key = kind, stage is self.model.stages[kind], own.size
        if key not in self._samplers:
            self._samplers[key] = generate.Sampler(stage, own, mesh=self.model.mesh)
        return self._samplers[key]

    def encode_anew(self, weights: Weights) -> None:
        """Encodes all prompts with these weights, where a text encoder is not the base model's."""
        self._texts = self._encoded(weights)

    def class_images(
        self, weights: Weights, prompt: str, seeds: Sequence[int], *, size: Size = None
    ) -> list[np.ndarray]:
        """Class images of every stage, one for each seed; size as in `sampler`."""
        params, prompts = [weights[kind] for kind in self.model.kinds], [prompt] * len(seeds)
        cascade = self.cascade(weights, batch_size=self.block, size=size)
        negative = self.plan.prior.negative_prompt
        return cascade.draw(params, prompts, seeds, label=None, negative=negative)

    def drawn(self, weights: Weights, label: str) -> Path:
        """Draws every prompt into a folder of its own, with `grid.png` of all; returns the folder.

        Its name depends on the weights (`label`), prompts, seeds and samplers: nothing that was
        drawn before is replaced, and the same again is there already.
        """
        wanted = grid_of(self.plan, self.words)
        folder = self._own_folder(label, wanted)
        self.grid(weights, folder.name)
        if turns.is_first():
            page = report.sheet(read_grid(folder, wanted))
            about = {"weights": label, "samplers": self.about()}
            save_png(folder / "grid.png", page, about=about)
        return folder

    def judged(
        self, weights: Weights, label: str, *, ready: str | None, stop: GracefulStop | None = None
    ) -> Grid:
        """The pictures that a run is judged by (`judged_of`), by prompt.

        Those in `samples/<ready>/`, where they are the same; else they are drawn into a folder of
        their own.
        """
        wanted = judged_of(self.plan, self.words)
        there = None if ready is None else self.workdir.samples / ready
        hosts.meet(f"before {label}")  # all processes must see the same
        if there is None or not is_drawn(there, wanted, self.about()):
            there = self._own_folder(label, wanted)
            self.grid(weights, there.name, wanted, stop=stop)
        return read_grid(there, wanted)

    def about(self) -> dict[str, Any]:
        """Returns the sampler settings of all stages, for the text of the PNG files."""
        found: dict[str, Any] = {kind: s.told() for kind, s in self.settings.items()}
        negative = self.plan.sample.negative_prompt
        about = found | ({"negative_prompt": negative} if negative else {})
        told: dict[str, Any] = json.loads(json.dumps(about))  # as a file has them
        return told

    def _own_folder(self, label: str, wanted: Wanted) -> Path:
        """A folder whose name depends on all that its pictures depend on."""
        of = json.dumps([wanted, self.about(), self.model.fingerprints, self.plan.dtype])
        return self.workdir.samples / f"{label}-{hashlib.sha256(of.encode()).hexdigest()[:8]}"

    def grid(
        self,
        weights: Weights,
        label: str,
        wanted: Wanted | None = None,
        *,
        stop: GracefulStop | None = None,
    ) -> None:
        """Draws every prompt with fixed seeds into `samples/<label>/`, unless they are there.

        Every sampler call's pictures are written at once, a part of them by each process; a grid
        that was interrupted continues with the remaining calls, which have the same rows as
        without an interruption.

        Raises:
          Interrupted: a signal came; what is drawn so far is kept.
        """
        wanted = grid_of(self.plan, self.words) if wanted is None else wanted
        folder = self.workdir.samples / label
        negative = self.plan.sample.negative_prompt
        left = calls_left(folder, wanted, rows=self.rows, negative=negative)
        if not left:
            return
        train.leave_if_asked(stop, "the pictures so far are kept")
        waiting = iter(left)

        def keep(pictures: np.ndarray) -> None:
            rows = zip(next(waiting), pictures, strict=True)
            for k, ((name, prompt, seed), picture) in enumerate(rows):
                about = {"prompt": prompt, "seed": seed, "weights": label}
                about["samplers"] = self.about()
                if turns.is_mine(k):
                    save_png(folder / name, picture, about=about)
            train.leave_if_asked(stop, "the pictures so far are kept")

        _, prompts, seeds = zip(*itertools.chain(*left), strict=True)
        with self.workdir.timed("prompt grids"):
            self.draw(
                weights,
                prompts,
                seeds,
                batch_size=self.rows,
                label=f"grid {label}",
                negative=negative,
                on_batch=keep,
            )
        hosts.meet(label)
        if self.on_grid is not None:
            self.on_grid()
        if turns.is_first():
            tracking.write(self.plan, self.workdir, label, read_grid(folder, wanted))
