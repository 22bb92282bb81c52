"""One run of DreamBooth, on one screen: photos → identifier → class images → fine-tuning → pictures → export → report."""

from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import export, sharding
from dreambooth_jax.experiment import setup, summary, tuning
from dreambooth_jax.experiment.painter import Painter
from dreambooth_jax.experiment.workdir import Workdir
from dreambooth_jax.signals import GracefulStop


def run(config: ConfigDict, folder: Path) -> Path:
    """Runs, or goes on with, the experiment of `config` in `folder`; returns the path of its report.

    Raises:
      ConfigError, AuditError, PriorError, CheckpointError, ValueError: what was found, expected, and what to do; nothing
        that was made so far is lost.
      Interrupted: a signal came, and everything is saved.
    """
    workdir = Workdir.open(folder, config)
    if workdir.is_finished:
        logging.info("This run is finished: see %s. For another one, give another --workdir.", workdir.report)
        return workdir.report
    with GracefulStop() as stop:
        stages = setup.open_stages(config)  # networks, tokenizers and schedules of the base model
        photos = setup.audit(config, stages)  # every problem of the folder, before anything compiles
        model = setup.load(config, stages)  # weights on the mesh, fingerprints
        subject = setup.subject(config, model, photos)  # pictures at each stage's size, identifier, prompts
        painter = Painter(config, model, subject, workdir)  # the jitted cascade, and all prompts encoded once
        prior = setup.prior(config, model, subject, painter, workdir)  # class images of the untouched base
        painter.grid(model.weights, "before")

        for kind in config.stages:  # "base", then "upscaler": the same code
            tuned = tuning.fine_tune(kind, config, model, subject, prior, painter, workdir, stop)
            model = model.with_weights(kind, tuned)

        painter.grid(model.weights, "after")
        for kind in model.kinds:
            about = summary.model_card(config, subject, kind)
            host = {path: sharding.fetch(leaf) for path, leaf in model.weights[kind].items()}
            target = workdir.export / kind if len(model.kinds) > 1 else workdir.export
            export.diffusers_folder(stages[kind], host, target, dtype=config.export.dtype, about=about)
        return summary.write(config, workdir, model, subject, prior)
