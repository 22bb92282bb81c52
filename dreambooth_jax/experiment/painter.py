"""Draws for a run: the prompt grid before, during and after training, and the class images."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image, PngImagePlugin

from dreambooth_jax import config as configs
from dreambooth_jax import generate, rng, sharding, tree
from dreambooth_jax.data.subject import Subject
from dreambooth_jax.experiment.model import Model, compute_dtype
from dreambooth_jax.experiment.workdir import Workdir

Weights = Mapping[str, tree.Flat]


def prompts_of(config: ConfigDict, subject: Subject) -> tuple[str, ...]:
    """The prompts of the grid, with the subject's words put in."""
    words = {
        "subject": f"{subject.identifier} {subject.class_noun}",
        "identifier": subject.identifier,
        "class_noun": subject.class_noun,
        "instance_prompt": subject.instance_prompt,
        "class_prompt": subject.class_prompt,
    }
    return tuple(template.format(**words) for template in config.sample.prompts)


class Painter:
    """The jitted samplers of all stages, with every prompt of the run encoded once."""

    def __init__(self, config: ConfigDict, model: Model, subject: Subject, workdir: Workdir):
        self.config, self.model, self.subject, self.workdir = config, model, subject, workdir
        self.prompts = prompts_of(config, subject)
        self.settings = {kind: _settings(config, kind) for kind in model.kinds}
        self._samplers = [
            generate.Sampler(model.stages[kind], self.settings[kind], mesh=model.mesh) for kind in model.kinds
        ]
        self._texts = None if config.train.text_encoder else self._encoded(model.weights)

    @property
    def block(self) -> int:
        """Class images per call of the sampler: `prior.batch_size`, rounded up to a whole number for each device."""
        return _whole(self.config.prior.batch_size, self.model)

    def texts(self, weights: Weights) -> Mapping[str, generate.Text]:
        """Every stage's prompts and their embeddings; anew from these weights when the text encoder learns."""
        return self._texts if self._texts is not None else self._encoded(weights)

    def _encoded(self, weights: Weights) -> dict[str, generate.Text]:
        identifier = self.subject.identifier
        wanted = (self.subject.instance_prompt, self.subject.class_prompt, *self.prompts)
        texts = {}
        for kind, stage in self.model.stages.items():
            text = generate.encode(
                stage, dict(weights[kind]), wanted, dtype=compute_dtype(self.config), keep=identifier
            )
            if kind == "upscaler" and "upscaler" not in self.config.stages:
                # An upscaler that never saw the identifier does best without it (diffusers' advice for IF).
                plain = tuple(prompt.replace(f"{identifier} ", "") for prompt in text.prompts)
                table = generate.encode(stage, dict(weights[kind]), plain, dtype=compute_dtype(self.config))
                text = generate.Text(text.prompts, table.table[table.rows(plain)])
            texts[kind] = text
        return texts

    def draw(
        self, weights: Weights, prompts: Sequence[str], seeds: Sequence[int], *, batch_size: int, label: str
    ) -> list[np.ndarray]:
        """uint8 pictures of every stage (`generate.Cascade.draw`) from these weights."""
        texts = self.texts(weights)
        cascade = generate.Cascade(self._samplers, [texts[kind] for kind in self.model.kinds], batch_size)
        return cascade.draw([weights[kind] for kind in self.model.kinds], prompts, seeds, label=label)

    def class_images(self, weights: Weights, prompt: str, seeds: Sequence[int]) -> list[np.ndarray]:
        """Class images of every stage, one for each seed."""
        return self.draw(weights, [prompt] * len(seeds), seeds, batch_size=self.block, label="class images")

    def grid(self, weights: Weights, label: str) -> None:
        """Draws every prompt of the grid with fixed seeds into `samples/<label>/`, unless the pictures are there."""
        count = self.config.sample.num_images
        names = [f"{p:02d}_{k:02d}.png" for p in range(len(self.prompts)) for k in range(count)]
        folder = self.workdir.samples / label
        if all((folder / name).is_file() for name in names):
            return
        seeds = [seed_of(self.config.seed, k) for k in range(count)] * len(self.prompts)
        prompts = [prompt for prompt in self.prompts for _ in range(count)]
        size = _whole(self.config.sample.batch_size, self.model)
        with self.workdir.timed("prompt grids"):
            pictures = self.draw(weights, prompts, seeds, batch_size=size, label=f"grid {label}")[-1]
        self.workdir.writer.write_images(0, {f"samples/{label}": pictures})
        if jax.process_index() == 0:
            settings = {kind: dataclasses.asdict(s) for kind, s in self.settings.items()}
            for name, picture, prompt, seed in zip(names, pictures, prompts, seeds, strict=True):
                about = {"prompt": prompt, "seed": seed, "weights": label, "samplers": settings}
                save_png(folder / name, picture, about=about)


def seed_of(seed: int, index: int) -> int:
    """The seed of the k-th picture of every prompt: the same for all, so that columns can be compared."""
    return int(rng.generator(seed, "grid", index).integers(2**32, dtype=np.uint32))


def read_grid(folder: Path, *, prompts: int, count: int) -> list[list[np.ndarray]]:
    """The pictures of a grid by prompt, as `Painter.grid` wrote them."""

    def picture(p: int, k: int) -> np.ndarray:
        with Image.open(folder / f"{p:02d}_{k:02d}.png") as image:
            return np.asarray(image.convert("RGB"))

    return [[picture(p, k) for k in range(count)] for p in range(prompts)]


def save_png(file: Path, picture: np.ndarray, *, about: Mapping[str, object]) -> None:
    """Writes uint8 `[H,W,3]` whole or not at all, with `about` as JSON in its text block `dreambooth_jax`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    note = PngImagePlugin.PngInfo()
    note.add_text("dreambooth_jax", json.dumps(about))
    part = file.with_suffix(".tmp")
    Image.fromarray(picture).save(part, format="PNG", pnginfo=note)
    part.replace(file)


def _whole(rows: int, model: Model) -> int:
    """`rows`, rounded up to a multiple of the devices that share them."""
    parts = sharding.row_shards(model.mesh)
    return -(-rows // parts) * parts


def _settings(config: ConfigDict, kind: str) -> generate.Settings:
    c = configs.for_stage(config, kind)
    return generate.Settings(
        name=c.sampler.name,
        num_steps=c.sampler.num_steps,
        guidance_scale=float(c.sampler.guidance_scale),
        threshold=c.sampler.threshold,
        noise_level=c.upscaler.sample_aug_level if kind == "upscaler" else 0,
    )
