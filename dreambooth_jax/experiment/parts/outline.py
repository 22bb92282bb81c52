"""Parts of a run in order, the time that each took last time, and the run's state on disk."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import files, progress, status, turns, untrusted
from dreambooth_jax.config import Plan
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts.grids import grid_of
from dreambooth_jax.experiment.parts.workdir import Workdir

_TIMES = "times.json"  # beside the compiled programs
_KEPT = 200  # kinds of runs
_STATES = {
    "sample": "drawing",
    "edit": "drawing",
    "evaluate": "evaluating",
    "export": "exporting",
    "push": "exporting",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a run, the state it is in and its number of images or steps; 0 is not counted."""

    name: str
    state: str
    units: int = 0
    unit: str = "image"
    stage: str | None = None


def of_run(plan: Plan, *, judged: bool) -> list[Part]:
    """Returns the parts of a training run; `judged` ones are scored at their end."""
    unnamed = [
        Words.of(identifier=f"<{k}>", class_noun=noun)
        for k, (_, noun, _) in enumerate(configs.subjects(plan))
    ]
    pictures = len(grid_of(plan, unnamed))
    parts = []
    if configs.draws_class_images(plan):
        shares = configs.class_shares(plan).values()
        count = sum(configs.num_class_images(plan, share=share)[0] for share in shares)
        parts.append(Part("class images", "drawing", count))
    parts.append(Part("pictures before training", "drawing", pictures))
    for own in plan.to_train:
        name = f"training the {own.kind}"
        parts.append(Part(name, "training", own.train.num_steps, "step", own.kind))
    parts.append(Part("pictures after training", "drawing", pictures))
    parts.append(Part("export", "exporting"))
    if judged:
        parts.append(Part("scores", "evaluating"))
    return parts


class Outline:
    """The parts of one run: told at its start, entered in turn, timed for the next run like it."""

    def __init__(self, plan: Plan, parts: Sequence[Part], recorder: status.Recorder) -> None:
        self.parts, self.recorder = {part.name: part for part in parts}, recorder
        self._key, self._file = _key(plan), _file()
        self._known = _read(self._file).get(self._key, {})

    def about(self, part: Part) -> float | None:
        """Seconds that `part` is likely to take, from the last such run on such devices."""
        found = self._known.get(part.name)
        if found is None:
            return None
        return found["once"] + found["each"] * max(part.units, 1)

    def __str__(self) -> str:
        """One line per part."""
        known = [self.about(part) for part in self.parts.values()]
        sure = [seconds for seconds in known if seconds is not None]
        source = ", times of the last such run on this device" if sure else ""
        total = f": about {progress.in_words(sum(sure))}{source}" if len(sure) == len(known) else ""
        lines = [f"{self._numbered(part)}" for part in self.parts.values()]
        return f"The plan{total}\n" + "\n".join(f"  {line}" for line in lines)

    def _numbered(self, part: Part) -> str:
        number = [*self.parts].index(part.name) + 1
        line = f"{number} of {len(self.parts)}: {part.name}"
        if part.units:
            line += f", {part.units} {part.unit}{'s' if part.units > 1 else ''}"
        about = self.about(part)
        return line if about is None else f"{line}, about {progress.in_words(about)}"

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Enters a part, in the log and in the run's state."""
        part = self.parts[name]
        logging.info("%s", self._numbered(part))
        with self.recorder.part(name, state=part.state, stage=part.stage):
            yield

    def keep_times(self) -> None:
        """Keeps the times of the finished parts for the next such run."""
        if self._file is None or not turns.is_first():
            return
        own = dict(self._known)
        for name, found in self.recorder.measured.items():
            part = self.parts.get(name)
            if part is None or found.units < part.units:
                continue  # a part of it was there before: its time tells nothing
            each = (found.seconds - found.compiling) / max(found.units, 1)
            own[name] = {"once": round(found.compiling, 3), "each": round(each, 5)}
        every = {key: x for key, x in _read(self._file).items() if key != self._key}
        newest = [*every.items(), (self._key, own)][-_KEPT:]
        try:
            files.write_text(self._file, json.dumps(dict(newest), indent=1) + "\n")
        except OSError as error:
            logging.debug("%s: %s", self._file, error)


@contextlib.contextmanager
def followed(plan: Plan, workdir: Workdir, parts: Sequence[Part]) -> Iterator[Outline]:
    """Writes the run's state into its folder until the block ends, and keeps its times."""
    recorder = status.Recorder(workdir.root, mode="train", parts=len(parts), writes=workdir.writes)
    with recorder, progress.observed_by(recorder):
        outline = Outline(plan, parts, recorder)
        try:
            yield outline
        finally:
            outline.keep_times()


@contextlib.contextmanager
def of_mode(mode: str, folder: Path) -> Iterator[None]:
    """Writes the state of a mode that works in a run's folder, `status_<mode>.json`.

    A training run writes its own; other modes, and those without a run's folder, write none.
    """
    if mode not in _STATES:
        yield
        return
    writes = turns.is_first() and folder.is_dir()
    with (
        status.Recorder(folder, mode=mode, parts=1, writes=writes) as recorder,
        progress.observed_by(recorder),
        recorder.part(mode, state=_STATES[mode]),
    ):
        yield


def _key(plan: Plan) -> str:
    """A name for runs that take as long: the same devices, models, rows and samplers."""
    device = jax.devices()[0].device_kind
    about = [f"{jax.device_count()} x {device}", plan.dtype, plan.adapt.name]
    for kind, own in plan.stages.items():
        sampler = f"{own.sampler.name} {own.sampler.num_steps}"
        sampler += " of rounded products" if own.sampler.products != "float32" else ""
        about += [f"{kind} {own.model}", f"{own.train.batch_size} rows", sampler]
    return ", ".join(map(str, about))


def _file() -> Path | None:
    """The file of times, beside the compiled programs; None where these are not kept."""
    folder = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
    kept = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]  # the same
    return files.at(folder) / _TIMES if folder and kept else None


def _read(file: Path | None) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The file's entries; none where it is absent or damaged: times are only told."""
    try:
        content = untrusted.json_object(file) if file is not None and file.is_file() else {}
        with untrusted.values(file or ""):
            return {
                str(key): {
                    name: {"once": float(x["once"]), "each": float(x["each"])}
                    for name, x in parts.items()
                }
                for key, parts in content.items()
            }
    except (OSError, untrusted.FileError) as error:
        logging.debug("%s: %s", file, error)
        return {}
