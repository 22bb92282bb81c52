"""Draws for a run: the prompt grid before, during and after training, and the class images."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin

from dreambooth_jax import config as configs
from dreambooth_jax import files, generate, hosts, report, rng, sharding, train, tree
from dreambooth_jax.data.prompts import expanded, is_of_class
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.model import Model, as_tuned, compute_dtype
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.signals import GracefulStop

Weights = Mapping[str, tree.Flat]
Grid = dict[str, list[np.ndarray]]  # pictures by prompt
Wanted = Sequence[tuple[str, str, int]]  # file name, prompt, seed


def prompts_of(
    config: ConfigDict, words: Sequence[Words], templates: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The prompts of the grid, or of other templates, with each subject's words, each once."""
    lines = expanded(config.sample.prompts if templates is None else templates)
    return tuple(dict.fromkeys(line.format(**each.in_braces) for line in lines for each in words))


class Painter:
    """The jitted samplers of all stages, with every prompt of the run encoded once.

    `captions` are prompts that it is trained on besides those that name subjects and classes.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: Model,
        words: Sequence[Words],
        workdir: Workdir,
        captions: Sequence[str] = (),
    ):
        self.config, self.model, self.words, self.workdir = config, model, words, workdir
        self.captions = captions
        asked = [*grid_of(config, words), *judged_of(config, words)]
        self.prompts = tuple(dict.fromkeys(prompt for _, prompt, _ in asked))
        self.settings = {kind: settings_of(config, kind) for kind in model.kinds}
        self._tuned = {kind: as_tuned(config, model.stages[kind]) for kind in config.stages}
        self._samplers: dict[Stage, generate.Sampler] = {}
        self._texts = None if configs.learns_text(config) else self._encoded(model.weights)

    @property
    def block(self) -> int:
        """Class images per sampler call: `prior.batch_size`, rounded up to share it evenly."""
        return sharding.whole_rows(self.config.prior.batch_size, self.model.mesh)

    @property
    def rows(self) -> int:
        """Pictures per sampler call: `sample.batch_size`, rounded up to share it evenly."""
        return sharding.whole_rows(self.config.sample.batch_size, self.model.mesh)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """The subjects' own words."""
        return tuple(each.identifier for each in self.words)

    def texts(self, weights: Weights) -> Mapping[str, generate.Text]:
        """Every stage's prompts and embeddings; from these weights when the text encoder learns."""
        return self._texts if self._texts is not None else self._encoded(weights)

    def _encoded(self, weights: Weights) -> dict[str, generate.Text]:
        identifiers, dtype = self.identifiers, compute_dtype(self.config)
        named = [p for each in self.words for p in (each.instance_prompt, each.class_prompt)]
        wanted = (*named, *self.captions, *self.prompts)
        texts = {}
        for kind, stage in self.model.stages.items():
            flat = dict(weights[kind])
            text = generate.encode(stage, flat, wanted, dtype=dtype, keep=identifiers)
            if kind == "upscaler" and "upscaler" not in self.config.stages:
                # An upscaler that never saw the identifier does best without it, as diffusers
                # advises for IF.
                plain = text.prompts
                for word in identifiers:
                    plain = tuple(prompt.replace(f"{word} ", "") for prompt in plain)
                bare = generate.encode(stage, flat, plain, dtype=dtype)
                rows = bare.rows(plain)
                table = jax.tree.map(lambda x, rows=rows: sharding.fetch(x)[rows], bare.table)
                text = generate.Text(text.prompts, table)
            # On the whole mesh, which may have devices of other processes.
            whole = sharding.replicated(self.model.mesh)
            host = jax.tree.map(sharding.fetch, text.table)
            table = jax.tree.map(functools.partial(sharding.put, sharding=whole), host)
            texts[kind] = generate.Text(text.prompts, table)
        return texts

    def draw(
        self,
        weights: Weights,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        batch_size: int,
        label: str,
        on_batch: Callable[[np.ndarray], None] | None = None,
    ) -> list[np.ndarray]:
        """uint8 pictures of every stage (`generate.Cascade.draw`) from these weights."""
        kinds, by_kind = self.model.kinds, self.texts(weights)
        samplers = [self._sampler(kind, weights) for kind in kinds]
        cascade = generate.Cascade(samplers, [by_kind[kind] for kind in kinds], batch_size)
        params = [weights[kind] for kind in kinds]
        return cascade.draw(params, prompts, seeds, label=label, on_batch=on_batch)

    def _sampler(self, kind: str, weights: Weights) -> generate.Sampler:
        """A stage's sampler, made once; trained weights are sampled as their export will be."""
        untouched = weights[kind] is self.model.weights[kind]
        stage = self.model.stages[kind] if untouched else self._tuned[kind]
        if stage not in self._samplers:
            settings = self.settings[kind]
            self._samplers[stage] = generate.Sampler(stage, settings, mesh=self.model.mesh)
        return self._samplers[stage]

    def class_images(self, weights: Weights, prompt: str, seeds: Sequence[int]) -> list[np.ndarray]:
        """Class images of every stage, one for each seed."""
        prompts = [prompt] * len(seeds)
        return self.draw(weights, prompts, seeds, batch_size=self.block, label="class images")

    def drawn(self, weights: Weights, label: str) -> Path:
        """Draws every prompt into a folder of its own, with `grid.png` of all; returns the folder.

        Its name depends on the weights (`label`), prompts, seeds and samplers: nothing that was
        drawn before is replaced, and the same again is there already.
        """
        wanted = grid_of(self.config, self.words)
        folder = self._own_folder(label, wanted)
        self.grid(weights, folder.name)
        if jax.process_index() == 0:
            page = report.sheet(read_grid(folder, wanted))
            about = {"weights": label, "samplers": self._about()}
            save_png(folder / "grid.png", page, about=about)
        return folder

    def judged(self, weights: Weights, label: str, *, ready: str | None) -> Grid:
        """The pictures that a run is judged by (`judged_of`), by prompt.

        Those in `samples/<ready>/`, where they are the same; else they are drawn into a folder of
        their own.
        """
        wanted = judged_of(self.config, self.words)
        there = None if ready is None else self.workdir.samples / ready
        hosts.meet(f"before {label}")  # all processes must see the same
        if there is None or not is_drawn(there, wanted, self._about()):
            there = self._own_folder(label, wanted)
            self.grid(weights, there.name, wanted)
        return read_grid(there, wanted)

    def _about(self) -> dict[str, dict[str, Any]]:
        """How the stages sample, as pictures tell it."""
        return {kind: dataclasses.asdict(s) for kind, s in self.settings.items()}

    def _own_folder(self, label: str, wanted: Wanted) -> Path:
        """A folder whose name depends on all that its pictures depend on."""
        of = json.dumps([wanted, self._about(), self.model.fingerprints, self.config.dtype])
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
        that was interrupted goes on with the calls that are left, which have the same rows as
        without an interruption.

        Raises:
          Interrupted: a signal came; what is drawn so far is kept.
        """
        wanted = grid_of(self.config, self.words) if wanted is None else wanted
        folder = self.workdir.samples / label
        calls = [wanted[i : i + self.rows] for i in range(0, len(wanted), self.rows)]
        left = [rows for rows in calls if not is_drawn(folder, rows)]
        if not left:
            return
        waiting = iter(left)

        def keep(pictures: np.ndarray) -> None:
            rows = zip(next(waiting), pictures, strict=True)
            for k, ((name, prompt, seed), picture) in enumerate(rows):
                about = {"prompt": prompt, "seed": seed, "weights": label}
                about["samplers"] = self._about()
                if k % jax.process_count() == jax.process_index():
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
                on_batch=keep,
            )
        hosts.meet(label)
        if jax.process_index() == 0:
            cells = read_grid(folder, wanted).values()
            pictures = np.stack([*itertools.chain(*cells)])
            self.workdir.writer.write_images(0, {f"samples/{label}": pictures})


def grid_of(config: ConfigDict, words: Sequence[Words]) -> list[tuple[str, str, int]]:
    """(file name, prompt, seed) of every picture of the grid, prompt by prompt."""
    return _named(config, prompts_of(config, words), config.sample.num_images)


def judged_of(config: ConfigDict, words: Sequence[Words]) -> list[tuple[str, str, int]]:
    """The same of the pictures that the run is judged by; some prompt is always the class's."""
    prompts = prompts_of(config, words, config.evaluate.prompts or None)
    if not any(is_of_class(prompt, words) for prompt in prompts):
        prompts = tuple(dict.fromkeys((*prompts, *(each.class_prompt for each in words))))
    return _named(config, prompts, config.evaluate.num_images or config.sample.num_images)


def _named(config: ConfigDict, prompts: Sequence[str], count: int) -> list[tuple[str, str, int]]:
    return [
        (f"{p:02d}_{k:02d}.png", prompt, seed_of(config.seed, k))
        for p, prompt in enumerate(prompts)
        for k in range(count)
    ]


def is_drawn(folder: Path, wanted: Wanted, samplers: Mapping[str, Any] | None = None) -> bool:
    """Whether `folder` holds these prompts and seeds, by what its pictures say of themselves.

    samplers: these as well, where given.
    """
    for name, prompt, seed in wanted:
        try:
            with (folder / name).open("rb") as file, Image.open(file) as image:
                about = json.loads(image.info["dreambooth_jax"])
        except (OSError, KeyError, ValueError):
            return False
        if (about["prompt"], about["seed"]) != (prompt, seed):
            return False
        if samplers is not None and about["samplers"] != samplers:
            return False
    return True


def seed_of(seed: int, index: int) -> int:
    """The seed of the k-th picture, the same for every prompt, so that columns can be compared."""
    return int(rng.generator(seed, "grid", index).integers(2**32, dtype=np.uint32))


def read_grid(folder: Path, wanted: Wanted) -> Grid:
    """The pictures of a grid by prompt, as `Painter.grid` wrote them."""
    cells: Grid = {}
    for name, prompt, _ in wanted:
        with (folder / name).open("rb") as file, Image.open(file) as image:
            cells.setdefault(prompt, []).append(np.asarray(image.convert("RGB")))
    return cells


def grids_of(
    config: ConfigDict, workdir: Workdir, words: Sequence[Words]
) -> dict[str, dict[str, list[np.ndarray]]]:
    """The prompt grids in order, before, over training, after: pictures by label and prompt.

    A grid that was drawn on the way for other prompts is left out.
    """
    labels = ["before"]
    for kind in config.stages:
        labels += sorted(p.name for p in workdir.samples.glob(f"{kind}-*"))
    wanted = grid_of(config, words)
    return {
        label: read_grid(workdir.samples / label, wanted)
        for label in [*labels, "after"]
        if is_drawn(workdir.samples / label, wanted)
    }


def save_png(file: Path, picture: np.ndarray, *, about: Mapping[str, object]) -> None:
    """Writes uint8 `[H,W,3]` whole or not at all; `about` is JSON in its text `dreambooth_jax`."""
    note = PngImagePlugin.PngInfo()
    note.add_text("dreambooth_jax", json.dumps(about))
    with files.written(file) as part:
        Image.fromarray(picture).save(part, format="PNG", pnginfo=note)


def settings_of(config: ConfigDict, kind: str) -> generate.Settings:
    """How a stage samples in this run."""
    c = configs.for_stage(config, kind)
    return generate.Settings(
        name=c.sampler.name,
        num_steps=c.sampler.num_steps,
        guidance_scale=float(c.sampler.guidance_scale),
        threshold=c.sampler.threshold,
        noise_level=c.upscaler.sample_aug_level if kind == "upscaler" else 0,
    )
