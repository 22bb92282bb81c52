"""Scenes rendered ahead onto disk and memory-mapped, so that training never waits for them."""

from __future__ import annotations

import functools
import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
from composites import Composites
from material import Material

from dreambooth_jax import rng
from dreambooth_jax.pipeline import Stage

SHARD = 10_000  # scenes of a part; at 32² a part takes 41 MB and about 20 seconds of a core
DROP = 0.1  # share of rows whose caption becomes "" (Ho & Salimans 2022)


class Recorded:
    """Scenes by number, rendered in parts of `SHARD` when one of them is first asked for.

    material: a function that returns the material; called only when a part has to be rendered.
    folder: keeps `N.pictures.npy` uint8 `[SHARD,S,S,3]`, `N.coverage.npy` uint8 `[SHARD,S,S]` and
    `N.captions.json`. shards: the number of parts, after which the first one comes again.
    """

    def __init__(self, material: Any, folder: Path, *, size: int, shards: int, seed: int = 0):
        self._material, self.folder, self.size, self.shards = material, folder, size, shards
        self.seed = seed

    @functools.cached_property
    def composites(self) -> Composites:
        """The renderer of the scenes."""
        material: Material = self._material()
        return Composites(material, size=self.size, seed=self.seed)

    @functools.lru_cache(maxsize=64)  # noqa: B019 (one object lives as long as the program)
    def shard(self, number: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Returns pictures, coverage and captions of a part; renders it when it is absent."""
        files = [self.folder / f"{number:04}.{name}" for name in ("pictures.npy", "coverage.npy")]
        words = self.folder / f"{number:04}.captions.json"
        if not words.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            first = number * SHARD
            scenes = [self.composites.scene(first + i) for i in range(SHARD)]
            pictures, captions, coverage = zip(*scenes, strict=True)
            for file, array in zip(files, (pictures, coverage), strict=True):
                np.save(file, np.stack(array))
            part = words.with_suffix(".tmp")
            part.write_text(json.dumps(captions))
            part.replace(words)  # the last file: with it the part is whole
        pictures, coverage = (np.load(file, mmap_mode="r") for file in files)
        return pictures, coverage, json.loads(words.read_text())

    def ahead(self, workers: int) -> None:
        """Renders all parts that are absent; more than one worker are processes of their own."""
        missing = [
            number
            for number in range(self.shards)
            if not (self.folder / f"{number:04}.captions.json").is_file()
        ]
        settings = {"size": self.size, "shards": self.shards, "seed": self.seed}
        job = functools.partial(_render, self._material, self.folder, settings)
        if workers == 1:
            for number in missing:
                self.shard(number)
            return
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            for _ in pool.imap_unordered(job, missing):
                pass

    def rows(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """Returns `count` scenes from number `first` on."""
        found = []
        for number in range(first, first + count):
            shard, row = divmod(number % (self.shards * SHARD), SHARD)
            pictures, coverage, captions = self.shard(shard)
            found.append((pictures[row], coverage[row], captions[row]))
        pictures, coverage, captions = zip(*found, strict=True)
        return np.stack(pictures), np.stack(coverage), list(captions)


def _render(material: Any, folder: Path, settings: dict[str, int], number: int) -> None:
    Recorded(material, folder, **settings).shard(number)


class Batches:
    """Rows of the train step from recorded scenes, at the pixels a side that a phase asks for.

    thing: weight of the error on a thing's pixels, where the other pixels have 1.
    """

    def __init__(self, recorded: Recorded, stage: Stage, *, thing: float = 1.0, seed: int = 0):
        self.recorded, self.stage, self.thing, self.seed = recorded, stage, thing, seed
        self.tokens = functools.lru_cache(maxsize=200_000)(self._tokens)

    def _tokens(self, caption: str) -> tuple[np.ndarray, np.ndarray]:
        encoded = self.stage.tokens([caption])
        return encoded["ids"][0].astype(np.int16), encoded["mask"][0].astype(np.int8)

    def batch(self, step: int, *, first: int, count: int, size: int) -> dict[str, np.ndarray]:
        """Returns scenes `first` to `first + count` as the train step takes them.

        A function of its arguments and the seed; `step` names the draw of the dropped captions.
        """
        pictures, coverage, captions = self.recorded.rows(first, count)
        dropped = rng.generator(self.seed, "captions", step).random(count) < DROP
        known = [self.tokens("" if out else c) for c, out in zip(captions, dropped, strict=True)]
        ids, mask = (np.stack(part).astype(np.int32) for part in zip(*known, strict=True))
        factor = pictures.shape[1] // size

        def reduced(x: np.ndarray) -> np.ndarray:
            x = x.reshape(count, size, factor, size, factor, -1).astype(np.float32)
            return x.mean((2, 4))

        batch = {
            "mean": reduced(pictures) / np.float32(127.5) - 1,
            "ids": ids,
            "mask": mask,
            "prompt": np.arange(count, dtype=np.int32),
            "is_prior": np.zeros(count, bool),
        }
        if self.stage.kind == "upscaler":
            half = batch["mean"].reshape(count, size // 2, 2, size // 2, 2, 3)
            batch["low_res"] = half.mean((2, 4))
        if self.thing != 1:
            batch["pixel_weights"] = 1 + (self.thing - 1) * reduced(coverage) / np.float32(255)
        return batch
