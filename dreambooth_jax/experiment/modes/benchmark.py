"""The paper's benchmark: every subject learned in a run of its own, and all of them scored."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts, turns, untrusted
from dreambooth_jax.config import ConfigDict
from dreambooth_jax.data import benchmark as data
from dreambooth_jax.data.audit import audit
from dreambooth_jax.data.benchmark import Checkout, Member
from dreambooth_jax.evaluate import by_prompt, scores, table_one
from dreambooth_jax.evaluate.measures import Bootstrap
from dreambooth_jax.evaluate.scores import Score
from dreambooth_jax.experiment import run as one_run
from dreambooth_jax.experiment.modes import duration
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.workdir import is_done
from dreambooth_jax.experiment.results import judging
from dreambooth_jax.signals import GracefulStop


def run(config: ConfigDict, folder: Path) -> Path:
    """Learns and scores every subject of `benchmark.data`; returns `scores.json` in `folder`.

    Each subject has an ordinary run in `<folder>/<subject>`; subjects of one class share their
    class images. Run again, it resumes: finished subjects are not touched, the unfinished one
    resumes from its checkpoint, or from the pictures that are drawn.

    Raises:
      AuditError, EncoderError, ValueError and what a run raises: what was found, what
        was expected, and what to do.
      Interrupted: a signal came, and everything is saved.
    """
    folder = files.at(folder)
    checkout = data.locate(_data_folder(config))
    members = data.chosen(checkout, tuple(config.benchmark.subjects))
    logging.info("%s", checkout)
    plan = configs.resolve(config)
    judging.required(plan)
    by_name = {member.name: config_of(config, member, checkout, folder) for member in members}
    left = [
        member for member in members if not _is_done(by_name[member.name], folder / member.name)
    ]
    hosts.agree(
        "the subjects that are left",
        [member.name for member in left],
        remedy=f"{folder} must be one folder that all hosts see: on a shared disk, or gs://….",
    )
    size = max(stage.size for stage in setup.open_stages(plan).values()) if left else (1, 1)
    for member in left:  # every folder that cannot be used is told before the first hour is spent
        audit(checkout.photos_of(member.name), size=size, strict=config.subject.strict)
    if left and config.benchmark.trial_steps:
        with GracefulStop() as stop:
            speed = duration.measure(
                by_name[left[0].name], folder, stop, counted=config.benchmark.trial_steps
            )
        seconds = duration.parts(
            configs.resolve(by_name[left[0].name]), speed, [m.class_noun for m in left]
        )
        logging.info("%s", duration.told(seconds, subjects=len(left), device=speed.device))
    began = time.monotonic()
    for number, member in enumerate(left, start=1):
        logging.info("%s: subject %d of %d.", member.name, number, len(left))
        one_run.run(by_name[member.name], folder / member.name)
        if not config.benchmark.keep_checkpoints and turns.is_first():
            files.remove(folder / member.name / "checkpoints")
        hours = (time.monotonic() - began) / number * (len(left) - number) / 3600
        logging.info("%s is scored; about %.2f hours for the others.", member.name, hours)
    return finish(config, checkout, members, folder)


def _data_folder(config: ConfigDict) -> str:
    if not config.benchmark.data.strip():
        raise ValueError(
            "benchmark.data = '': expected a copy of the DreamBooth data set. Write "
            f"git clone {data.HOMEPAGE}, then --config.benchmark.data=dreambooth."
        )
    return config.benchmark.data


def config_of(config: ConfigDict, member: Member, checkout: Checkout, folder: Path) -> ConfigDict:
    """The settings of the run of one subject: its photos, noun and prompts, its class's images."""
    c = config.copy_and_resolve_references().unlock()
    c.subject.images = str(checkout.photos_of(member.name))
    c.subject.class_noun = member.class_noun
    c.subject.others = ()
    of_class = member.class_noun.replace(" ", "_")
    priors = files.at(config.prior.folder) if config.prior.folder else folder / "prior"
    c.prior.folder = str(priors / of_class)
    if config.prior.images:
        c.prior.images = str(files.at(config.prior.images) / of_class)
    count = config.benchmark.num_prompts
    every = [i * len(member.prompts) // count for i in range(count)]
    c.sample.prompts = (*(member.prompts[i] for i in every), "{class_prompt}")
    c.evaluate.at_end = True
    c.evaluate.prompts = ()
    c.evaluate.reference = c.evaluate.generated = c.evaluate.untouched = ""
    c.benchmark = configs.base_config().benchmark  # others do not change the run
    return c.lock()


def _is_done(c: ConfigDict, folder: Path) -> bool:
    """Returns True where the run in `folder` is finished, with these settings, and scored."""
    return is_done(c, folder) and (folder / "scores.json").is_file()


def finish(
    config: ConfigDict, checkout: Checkout, members: tuple[Member, ...], folder: Path
) -> Path:
    """The mean over the subjects, logged beside the paper's numbers, written with all of theirs."""
    subjects: dict[str, dict[str, Any]] = {}
    own: dict[str, list[Score]] = {}
    for member in members:
        file = folder / member.name / "scores.json"
        own[member.name] = scores.read(file)
        content = untrusted.json_object(file)
        subjects[member.name] = {
            "class_noun": member.class_noun,
            "live": member.live,
            **{key: content["about"][key] for key in ("identifier", "photos", "pictures")},
            "scores": content["scores"],
            "prompts": content["prompts"],
        }
    bootstrap = Bootstrap(config.evaluate.resamples, config.seed)
    overall = by_prompt.overall(own, bootstrap)
    logging.info("Mean of %d subjects:\n%s", len(own), scores.as_table(overall))
    table = table_one.as_text(overall, num_subjects=len(own))
    logging.info("Table 1 of Ruiz et al. 2022, and the same here:\n%s", table)
    about = {
        "base_model": config.base_model,
        "subjects": len(own),
        "absent": [member.name for member in checkout.missing],
        "num_prompts": config.benchmark.num_prompts,
        "num_images": config.evaluate.num_images or config.sample.num_images,
        "intervals": f"bootstrap, 95 %, {bootstrap.resamples} draws, seed {bootstrap.seed}: of "
        "subjects for the mean, of prompts, pictures and photos for a subject",
    }
    file = folder / "scores.json"
    if turns.is_first():
        content = {
            "schema": scores.SCHEMA,
            "measures": scores.explained(overall),
            "about": about,
            "scores": [dataclasses.asdict(score) for score in overall],
            "subjects": subjects,
        }
        scores.replace(file, content)
    return file
