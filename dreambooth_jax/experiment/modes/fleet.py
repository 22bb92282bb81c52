"""Many subjects in one program: LoRA or new tokens of each, trained together beside one base."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from dreambooth_jax import adapt, files, hosts, train, turns
from dreambooth_jax import config as configs
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.config import ConfigDict
from dreambooth_jax.data import subject_table
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.subject import Subject, Words
from dreambooth_jax.data.subject_table import Row
from dreambooth_jax.experiment import run as one_run
from dreambooth_jax.experiment.parts import class_images, subjects
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.loading import Opened
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.experiment.parts.subjects import Folders
from dreambooth_jax.experiment.parts.workdir import Workdir, is_done
from dreambooth_jax.experiment.results import judging
from dreambooth_jax.experiment.training import fleet
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.signals import GracefulStop

STATUS = "fleet.json"
# Errors of one subject's photos, settings or files. The other subjects continue.
_OF_ONE = (ValueError, OSError, CheckpointError)


@dataclasses.dataclass(frozen=True)
class _Seen:
    """A subject whose settings, photos and room on the disk are as they must be."""

    plan: configs.Plan
    workdir: Workdir
    folders: Folders


@dataclasses.dataclass(frozen=True)
class _Read:
    """The same with its words, prompts and pictures, and rows for its new tokens."""

    of: _Seen
    model: Model
    words: Sequence[Words]
    cast: Sequence[Subject]
    classes: Sequence[ClassImages]


def run(config: ConfigDict, folder: Path) -> Path:
    """Learns every subject of `fleet.table`; returns `fleet.json` in `folder`.

    Each has its checkpoints, pictures, scores and export in `<folder>/<name>`, as a run of its own
    leaves them; subjects of one class noun share their class images. Run again, it resumes: what is
    finished is not touched, the others are trained on from their checkpoints.

    Raises:
      ValueError: the table, or settings that no subject can be trained with.
      Interrupted: a signal came, and everything is saved.
    """
    folder = files.at(folder)
    plan = configs.resolve(config)
    if not adapt.keeps_base(plan.adapt):
        raise ValueError(
            f"adapt.name = {plan.adapt.name!r}: a fleet trains small leaves of many subjects "
            "beside one base. Write --config.adapt.name=lora or textual_inversion."
        )
    if not plan.fleet.table:
        raise ValueError(
            "fleet.table = '': expected a CSV file with a row for each subject. Write "
            f"--config.fleet.table=FILE.csv, its first line {','.join(subject_table.COLUMNS)}."
        )
    if plan.export.push_to_hub:
        raise ValueError(
            f"export.push_to_hub = {plan.export.push_to_hub!r}: the subjects would replace each "
            'other there. Write --config.export.push_to_hub="", and send each with --mode=push '
            f"--workdir={folder}/NAME."
        )
    if plan.subject.held_out:
        raise ValueError(
            f"subject.held_out = {plan.subject.held_out}: a fleet measures no loss on photos that "
            "are held out. Write --config.subject.held_out=0, or learn the subjects one by one."
        )
    if plan.train.sample_every:
        logging.warning(
            "train.sample_every is %d, and a fleet draws no pictures amid its steps. Those that "
            "--config.train.keep_weights_every=%d keeps can be drawn afterwards.",
            *(plan.train.sample_every, plan.train.sample_every),
        )
    rows = subject_table.read(files.at(plan.fleet.table))
    settings = {row.name: config_of(config, row, folder) for row in rows}
    told: dict[str, dict[str, Any]] = {row.name: {"state": "waiting"} for row in rows}
    began = time.monotonic()
    left = [row.name for row in rows if not is_done(settings[row.name], folder / row.name)]
    for name in settings.keys() - left:
        told[name] = {"state": "finished", "report": f"{name}/report.html"}
    if left:
        _learn(plan, {name: settings[name] for name in left}, folder, told)
    hours = (time.monotonic() - began) / 3600
    done = [name for name in left if told[name]["state"] == "finished"]
    if done:
        rate = len(done) / hours
        logging.info("%d subjects in %.2f hours: %.1f an hour.", len(done), hours, rate)
    for name, each in told.items():
        if each["state"] == "failed":
            logging.error("%s: %s", name, each["reason"])
    return _tell(folder, told)


def config_of(config: ConfigDict, row: Row, folder: Path) -> ConfigDict:
    """The settings of one subject's run: its photos, noun and word, its class noun's images.

    Class images of the user's own lie in a folder for each noun, `prior.images/clay_pot`.
    """
    c = config.copy_and_resolve_references().unlock()
    c.subject.images, c.subject.class_noun = row.images, row.class_noun
    c.subject.identifier, c.subject.others = row.identifier, ()
    noun = row.class_noun.replace(" ", "_")
    if config.prior.images:
        c.prior.images = str(files.at(config.prior.images) / noun)
    else:
        priors = files.at(config.prior.folder) if config.prior.folder else folder / "prior"
        c.prior.folder = str(priors / noun)
    c.fleet = configs.base_config().fleet  # of no matter to the run
    return c.lock()


def _learn(
    plan: configs.Plan,
    settings: Mapping[str, ConfigDict],
    folder: Path,
    told: dict[str, dict[str, Any]],
) -> None:
    """Prepares, trains and finishes the subjects; `told` gets the state of each.

    All of them are looked at before the weights are read, and read before the first one's class
    images are drawn, so that none is found wanting after hours.
    """
    stages = setup.open_stages(plan)

    def attempt(name: str, part: Callable[[], Any]) -> list[Any]:
        try:
            return [part()]
        except _OF_ONE as error:
            told[name] = {"state": "failed", "reason": str(error) or type(error).__name__}
            _tell(folder, told)
            return []

    with GracefulStop() as stop, contextlib.ExitStack() as opening:

        def of_each(before: Mapping[str, Any], part: Callable[[str], Any]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name in before:
                train.leave_if_asked(stop, "the class images so far are kept")
                for made in attempt(name, functools.partial(part, name)):
                    found[name] = made
            return found

        looked = functools.partial(_seen, stages=stages, opening=opening)
        seen = of_each(settings, lambda name: looked(settings[name], folder / name))
        if not seen:
            return
        opened = Opened(stages, setup.load(plan, stages), {})
        read = of_each(seen, lambda name: _read(seen[name], opened))
        made = of_each(read, lambda name: _prepared(name, read[name], opened, stop))
        members: list[fleet.Member] = [*made.values()]
        for kind in plan.trained:
            reasons = fleet.train_stage(kind, members, stop, at_once=plan.fleet.at_once)
            told |= {name: {"state": "failed", "reason": x} for name, x in reasons.items()}
            members = [each for each in members if each.name not in reasons]
    for k, member in enumerate(members):
        name = member.name
        _give_pictures(member, members[:k])
        finish = functools.partial(one_run.run, settings[name], folder / name, opened=opened)
        if attempt(name, finish):
            told[name] = {"state": "finished", "report": f"{name}/report.html"}
        _tell(folder, told)


def _seen(
    config: ConfigDict, folder: Path, *, stages: Mapping[str, Stage], opening: contextlib.ExitStack
) -> _Seen:
    """A subject's settings, folder, photos, captions and masks, looked at; without weights.

    opening: closes its workdir at the end.

    Raises:
      ValueError and what a run raises: this subject cannot be trained.
    """
    plan = configs.resolve(config)
    workdir = Workdir.open(folder, plan)
    opening.enter_context(workdir)
    folders = one_run.looked_at(plan, stages, workdir, judging.at_end(plan))
    return _Seen(plan, workdir, folders)


def _read(seen: _Seen, opened: Opened) -> _Read:
    """A subject's words, texts and pictures; nothing is compiled.

    Raises:
      ValueError and what a run raises: this subject cannot be trained.
    """
    plan, folders = seen.plan, seen.folders
    words = subjects.words(plan, opened.model, seen.workdir)
    cast = subjects.read(plan, opened.model, folders, words)
    model = subjects.with_new_words(plan, opened.model, words)
    return _Read(seen, model, words, cast, class_images.own(plan, folders, words))


def _prepared(name: str, read: _Read, opened: Opened, stop: GracefulStop) -> fleet.Member:
    """A subject with its class images: a run up to its training.

    Raises:
      ValueError and what a run raises: this subject cannot be trained.
    """
    plan, workdir, model, words = read.of.plan, read.of.workdir, read.model, read.words
    captions = [p for subject in read.cast for p in subject.row_prompts]
    captions += [p for images in read.classes for p in images.row_prompts]
    painter = Painter(plan, model, words, workdir, captions, samplers=opened.samplers)
    classes = read.classes or class_images.drawn(plan, model, words, painter, workdir, stop)
    return fleet.Member(name, plan, workdir, model, read.cast, classes, painter)


def _give_pictures(member: fleet.Member, before: Sequence[fleet.Member]) -> None:
    """Copies what the untouched base draws from a subject with the same noun and word.

    Not for new tokens, which differ, nor where a tracker waits for the pictures.
    """
    plan, own = member.plan, member.workdir.samples / "before"
    alike = [
        other.workdir.samples / "before"
        for other in before
        if other.painter.words == member.painter.words
    ]
    if not alike or adapt.makes_words(plan.adapt) or {*plan.log.to} - {"jsonl"}:
        return
    if turns.is_first() and alike[0].is_dir() and not own.exists():
        own.mkdir(parents=True)
        for picture in alike[0].iterdir():
            (own / picture.name).write_bytes(picture.read_bytes())
    hosts.meet(f"the pictures before training of {member.name}")


def _tell(folder: Path, told: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes the state of each subject."""
    file = folder / STATUS
    if turns.is_first():
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps({"subjects": told}, indent=1) + "\n")
    return file
