"""One run of DreamBooth, on one screen.

Photos → identifier → class images → fine-tuning → pictures → export → scores → report.
"""

from pathlib import Path

import jax
from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import config as configs
from dreambooth_jax import hosts, train
from dreambooth_jax.experiment import (
    advice,
    class_images,
    delivery,
    evaluation,
    program,
    setup,
    space,
    subjects,
    summary,
    tuning,
)
from dreambooth_jax.experiment.evaluation import evaluate
from dreambooth_jax.experiment.forecasting import forecast
from dreambooth_jax.experiment.modes import export, sample
from dreambooth_jax.experiment.naming import identify
from dreambooth_jax.experiment.painter import Painter
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.signals import GracefulStop

__all__ = ["evaluate", "export", "forecast", "identify", "run", "sample"]


def run(config: ConfigDict, folder: Path) -> Path:
    """Runs the experiment of `config` in `folder`, or goes on with it; returns its report's path.

    Raises:
      ConfigError, AuditError, PriorError, CheckpointError, ValueError: what was found, what was
        expected, and what to do; nothing that was made so far is lost.
      Interrupted: a signal came, and everything is saved.
    """
    workdir = Workdir.open(folder, config)
    if workdir.is_finished:
        logging.info(
            "This run is finished: see %s. For another one, give another --workdir.", workdir.report
        )
        return workdir.report
    with GracefulStop() as stop:
        # Who judges the pictures in the end: whose weights are at hand.
        judges = evaluation.at_end(config)
        # Networks, tokenizers and schedules of the base model.
        stages = setup.open_stages(config)
        # Every problem of the folders, captions and masks, before anything compiles.
        folders = subjects.audit(config, stages)
        # Room on the disk for all that is to be written.
        space.check(config, stages, workdir)
        # Weights on the mesh, fingerprints.
        model = setup.load(config, stages)
        delivery.check(config, model)
        # Identifiers and prompts; pictures at each stage's size.
        words = subjects.words(config, model, workdir)
        cast = subjects.read(config, model, folders, words)
        # Room for the identifiers' own tokens, where these are what is trained.
        model = subjects.with_new_words(config, model, words)
        classes = class_images.own(config, model, folders, words)
        # The jitted cascade, and all prompts encoded once.
        captions = [p for subject in cast for p in subject.row_prompts]
        captions += [p for images in classes for p in images.row_prompts]
        painter = Painter(config, model, words, workdir, captions)
        # Class images of the untouched base, unless there are others.
        classes = classes or class_images.drawn(config, model, words, painter, workdir, stop)
        painter.grid(model.weights, "before", stop=stop)
        before = painter.judged(model.weights, "untouched", ready="before") if judges else {}

        for kind in config.stages:  # "base", then "upscaler": the same code
            trained = tuning.fine_tune(kind, config, model, cast, classes, painter, workdir, stop)
            adapter = program.adapter_of(config, model.stages[kind])
            model = model.with_trained(kind, adapter, trained)

        train.leave_if_asked(stop, "the training is finished and saved")
        painter.grid(model.weights, "after", stop=stop)
        steps = {kind: configs.for_stage(config, kind).train.num_steps for kind in config.stages}
        delivery.deliver(config, model, words, workdir, stop, steps=steps)
        judged = None
        if judges:
            judged = evaluation.judge_run(
                config, judges, before, model, painter, workdir, steps=steps
            )
        worth = evaluation.judge_grids(config, judged, painter, workdir)
        if jax.process_index() == 0:
            advised = advice.of_run(config, workdir, worth)
            summary.write(config, workdir, model, cast, classes, judged, advised)
        hosts.meet("the report is written")  # nobody leaves before all files are there
        return workdir.report
