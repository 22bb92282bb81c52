"""Many subjects in one program: LoRA or new tokens of each, trained together beside one base."""

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

from dreambooth_jax import adapt, files, report, train
from dreambooth_jax import config as configs
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.config import ConfigDict
from dreambooth_jax.data import subject_table
from dreambooth_jax.data.subject_table import Row
from dreambooth_jax.experiment import run as one_run
from dreambooth_jax.experiment.parts import class_images, subjects
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.loading import Opened
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.training import fleet
from dreambooth_jax.signals import GracefulStop

STATUS = "fleet.json"
# Errors of one subject's photos, settings or files. The other subjects continue.
_OF_ONE = (ValueError, FileNotFoundError, PermissionError, CheckpointError)


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
    rows = subject_table.read(files.here(files.at(plan.fleet.table)))
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
    """The settings of one subject's run: its photos, noun and word, its class noun's images."""
    c = config.copy_and_resolve_references().unlock()
    c.subject.images, c.subject.class_noun = row.images, row.class_noun
    c.subject.identifier, c.subject.others = row.identifier, ()
    priors = files.at(config.prior.folder) if config.prior.folder else folder / "prior"
    c.prior.folder = str(priors / row.class_noun.replace(" ", "_"))
    c.fleet = configs.base_config().fleet  # of no matter to the run
    return c.lock()


def is_done(c: ConfigDict, folder: Path) -> bool:
    """Returns True where the run in `folder` is finished, with these settings."""
    try:
        before = configs.of_run(str(folder))
    except configs.ConfigError:
        return False
    same = configs.flatten(before) == configs.flatten(c)
    return same and report.is_final(folder / "report.html")


def _learn(
    plan: configs.Plan,
    settings: Mapping[str, ConfigDict],
    folder: Path,
    told: dict[str, dict[str, Any]],
) -> None:
    """Prepares, trains and finishes the subjects; `told` gets the state of each."""
    stages = setup.open_stages(plan)
    opened = Opened(stages, setup.load(plan, stages), {})

    def attempt(name: str, part: Callable[[], Any]) -> Any:
        try:
            return part()
        except _OF_ONE as error:
            told[name] = {"state": "failed", "reason": str(error)}
            _tell(folder, told)
            return None

    with GracefulStop() as stop:
        members = []
        for name, c in settings.items():
            train.leave_if_asked(stop, "the class images so far are kept")
            prepare = functools.partial(prepared, name, c, folder / name, opened, stop)
            made = attempt(name, prepare)
            members += [made] if made else []
        try:
            for kind in plan.trained:
                reasons = fleet.train_stage(kind, members, stop, at_once=plan.fleet.at_once)
                told |= {name: {"state": "failed", "reason": x} for name, x in reasons.items()}
                members = [each for each in members if each.name not in reasons]
        finally:
            for each in members:
                each.workdir.close()
    for each in members:
        place = folder / each.name
        finish = functools.partial(one_run.run, settings[each.name], place, opened=opened)
        if attempt(each.name, finish):
            told[each.name] = {"state": "finished", "report": f"{each.name}/report.html"}
        _tell(folder, told)


def prepared(
    name: str, config: ConfigDict, folder: Path, opened: Opened, stop: GracefulStop
) -> fleet.Member:
    """A subject's photos, words, texts and class images: a run up to its training.

    Raises:
      ValueError and what a run raises: this subject cannot be trained.
    """
    plan = configs.resolve(config)
    workdir = Workdir.open(folder, plan)
    try:
        folders = subjects.audit(plan, opened.stages)
        words = subjects.words(plan, opened.model, workdir)
        cast = subjects.read(plan, opened.model, folders, words)
        model = subjects.with_new_words(plan, opened.model, words)
        classes = class_images.own(plan, model, folders, words)
        captions = [p for subject in cast for p in subject.row_prompts]
        captions += [p for images in classes for p in images.row_prompts]
        painter = Painter(plan, model, words, workdir, captions, samplers=opened.samplers)
        classes = classes or class_images.drawn(plan, model, words, painter, workdir, stop)
    except BaseException:
        workdir.close()
        raise
    return fleet.Member(name, plan, workdir, model, cast, classes, painter)


def _tell(folder: Path, told: Mapping[str, Mapping[str, Any]]) -> Path:
    """Writes the state of each subject."""
    file = folder / STATUS
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_text(file, json.dumps({"subjects": told}, indent=1) + "\n")
    return file
