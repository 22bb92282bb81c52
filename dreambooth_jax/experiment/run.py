"""One run of DreamBooth, on one screen.

Photos → identifier → class images → fine-tuning → pictures → export → scores → report.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from dreambooth_jax import config as configs
from dreambooth_jax import hosts, log_file, train
from dreambooth_jax.config import ConfigDict, Plan
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.subject import Subject
from dreambooth_jax.experiment.parts import class_images, outline, subjects
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.grids import Grid
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import advice, ending, judging, live, pushing
from dreambooth_jax.experiment.results import exporting as delivery
from dreambooth_jax.experiment.results import report as summary
from dreambooth_jax.experiment.training import checks, program
from dreambooth_jax.experiment.training import disk as space
from dreambooth_jax.experiment.training import fine_tune as tuning
from dreambooth_jax.export import upload
from dreambooth_jax.pipeline import Stage
from dreambooth_jax.signals import GracefulStop


def command(config: ConfigDict, folder: Path) -> Path:
    """Runs the experiment as the command line does: what is not done at the end is an error.

    Raises:
      UploadError: all is made and kept, but the model hub did not take the export.
      ConfigError, AuditError, PriorError, CheckpointError, ValueError, Interrupted: see `run`.
    """
    return _whole(config, folder, None, strict=True)


def run(config: ConfigDict, folder: Path, *, opened: setup.Opened | None = None) -> Path:
    """Runs the experiment of `config` in `folder`, or resumes it; returns its report's path.

    An export that a model hub does not take is a warning, last of all.

    Raises:
      ConfigError, AuditError, PriorError, CheckpointError, ValueError: what was found, what was
        expected, and what to do; nothing that was made so far is lost.
      Interrupted: a signal came, and everything is saved.
    """
    return _whole(config, folder, opened, strict=False)


def _whole(config: ConfigDict, folder: Path, opened: setup.Opened | None, *, strict: bool) -> Path:
    """The report. strict: an export that was not sent is an error, when all else is done."""
    plan = configs.resolve(config)
    with contextlib.ExitStack() as opening:
        workdir = opening.enter_context(Workdir.open(folder, plan))
        if workdir.is_finished:
            subjects.check_unchanged(plan, workdir)
            logging.info("Finished: %s. Write another --workdir for another run.", workdir.report)
            return workdir.report
        opening.enter_context(log_file.kept(workdir.root, writes=workdir.writes))
        # Installed encoders for the scores at the end.
        judges = judging.at_end(plan)
        parts = outline.of_run(plan, judged=bool(judges))
        with (
            outline.followed(plan, workdir, parts) as told,
            GracefulStop(answer=told.recorder.answer, at_once=told.recorder.left_at_once) as stop,
        ):
            run = _Run(plan, workdir, judges, told, stop)
            try:
                report = _learned(run, opened)
            except BaseException:
                for error in run.unsent:  # what ends the run now is another thing
                    logging.warning("%s", error)
                raise
        for error in run.unsent:
            if strict:
                raise error
            logging.warning("%s", error)
    return report


@dataclasses.dataclass(frozen=True)
class _Run:
    """Settings, folder, encoders for the scores, parts, the request to stop; what was not sent."""

    plan: Plan
    workdir: Workdir
    judges: Sequence[str]
    told: outline.Outline
    stop: GracefulStop
    unsent: list[upload.UploadError] = dataclasses.field(default_factory=list)


def _learned(run: _Run, opened: setup.Opened | None) -> Path:
    """From photos to the report, which is returned."""
    plan, workdir, told, stop = run.plan, run.workdir, run.told, run.stop
    # Photos, captions and masks; weights on the mesh, fingerprints.
    folders, model = _opened(run, opened)
    train.leave_if_asked(stop, "nothing is drawn or trained yet")
    # Identifiers and prompts; pictures at each stage's size.
    words = subjects.words(plan, model, workdir)
    cast = subjects.read(plan, model, folders, words)
    # Rows for the identifiers' new tokens, where these are trained.
    model = subjects.with_new_words(plan, model, words)
    classes = class_images.own(plan, folders, words)
    # The jitted cascade, and all prompts encoded once.
    captions = [p for subject in cast for p in subject.row_prompts]
    captions += [p for images in classes for p in images.row_prompts]
    samplers = None if opened is None else opened.samplers
    painter = Painter(plan, model, words, workdir, captions, samplers=samplers)
    # Class images of the untouched base, unless there are others.
    if configs.draws_class_images(plan):
        with told.part("class images"):
            classes = class_images.drawn(plan, model, words, painter, workdir, stop, folders.photos)
    # The report is there from now on, and written anew at every grid.
    with live.followed(summary.Told(plan, workdir, model, cast, classes), told.recorder) as page:
        painter.on_grid = page.update
        before, model = _trained(run, model, cast, classes, painter)
        steps = {own.kind: own.train.num_steps for own in plan.to_train}
        with told.part("export"):
            delivery.deliver(plan, model, words, workdir, stop, steps=steps)
            if unsent := pushing.after_run(plan, workdir):
                run.unsent.append(unsent)
        train.leave_if_asked(stop, "the export is written")
        with told.part("scores") if run.judges else contextlib.nullcontext():
            judged = judging.judge_run(
                plan, run.judges, before, model, painter, workdir, steps=steps
            )
            grid_scores = judging.judge_grids(plan, judged, painter, workdir)
        page.end()
        if workdir.writes:
            workdir.keep_sources(subjects.sources(folders))
            advised = advice.of_run(plan, workdir, grid_scores)
            summary.write(plan, workdir, model, cast, classes, judged, advised)
    hosts.meet("the report is written")  # no process ends before all files are there
    logging.info("%s", ending.lines(plan, workdir, model, cast[0].instance_prompt))
    return workdir.report


def _trained(
    run: _Run,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    painter: Painter,
) -> tuple[Grid, Model]:
    """Pictures, training, pictures: those of the untouched model to judge by, the trained model."""
    plan, workdir, told, stop = run.plan, run.workdir, run.told, run.stop
    before: Grid = {}
    with told.part("pictures before training"):
        painter.grid(model.weights, "before", stop=stop)
        if run.judges:
            before = painter.judged(model.weights, "untouched", ready="before", stop=stop)
    for own in plan.to_train:  # "base", then "upscaler": the same code
        with told.part(f"training the {own.kind}"):
            trained = tuning.fine_tune(own, plan, model, cast, classes, painter, workdir, stop)
        adapter = program.adapter_of(plan, model.stages[own.kind])
        model = model.with_trained(own.kind, adapter, trained)
    train.leave_if_asked(stop, "the training is finished and saved")
    with told.part("pictures after training"):
        painter.grid(model.weights, "after", stop=stop)
    return before, model


def _opened(run: _Run, opened: setup.Opened | None) -> tuple[subjects.Folders, Model]:
    """Opens and checks all that the run needs, before anything compiles; tells its parts."""
    plan = run.plan
    # Networks, tokenizers, schedules.
    stages = setup.open_stages(plan) if opened is None else opened.stages
    folders = looked_at(plan, stages, run.workdir, run.judges)
    logging.info("%s", run.told)
    return folders, setup.load(plan, stages) if opened is None else opened.model


def looked_at(
    plan: Plan, stages: Mapping[str, Stage], workdir: Workdir, judges: Sequence[str]
) -> subjects.Folders:
    """The audited folders of a run in which all that can be known without weights is as needed.

    judges: the encoders for the scores at the end.

    Raises:
      ConfigError, AuditError, PriorError, ValueError, OSError: see `run`.
    """
    # Every problem of the words, folders, captions and masks.
    subjects.check_words(plan, stages)
    folders = subjects.audit(plan, stages)
    # Every stage's rows, leaves and rates, the export, class images and photos to compare with.
    checks.check(plan, stages, setup.make_mesh(plan), folders.photos)
    delivery.check(plan, stages, workdir)
    pushing.check(plan)
    class_images.check(plan, workdir)
    judging.check(plan, judges)
    # Room on the disk for all that is to be written.
    space.check(plan, stages, workdir)
    return folders
