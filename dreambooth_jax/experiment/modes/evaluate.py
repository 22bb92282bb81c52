"""`--mode=evaluate`: scores a run's pictures, or those of a folder."""

from collections.abc import Sequence
from pathlib import Path

from dreambooth_jax import config as configs
from dreambooth_jax import export, files
from dreambooth_jax.config import ConfigDict, Plan
from dreambooth_jax.data.subject import Words
from dreambooth_jax.evaluate import pictures
from dreambooth_jax.evaluate.scores import TUNED, UNTOUCHED
from dreambooth_jax.experiment.modes.sample import reopened, restored
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.model import weights_name
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import judging


def evaluate(config: ConfigDict, folder: Path) -> Path:
    """Scores a run's pictures, or those of `evaluate.generated`; returns `scores.json` in `folder`.

    Raises:
      ConfigError, CheckpointError, EncoderError, ValueError, OSError: what was found, expected,
        and what to do.
    """
    plan = configs.resolve(config)
    folder = files.at(folder)
    names = judging.required(plan)
    if plan.evaluate.generated:
        return _of_folders(plan, folder, names)
    workdir = Workdir.of_run(folder, plan)
    photos = judging.photos_of(plan)
    model, words = reopened(plan, workdir)
    painter = Painter(plan, model, words, workdir)
    tuned, steps = restored(plan, model, workdir)
    grids = {UNTOUCHED: painter.judged(model.weights, UNTOUCHED, ready="before")}
    if steps:
        whole = {own.kind: own.train.num_steps for own in plan.to_train}
        ready = "after" if steps == whole else None
        grids[TUNED] = painter.judged(tuned.weights, weights_name(steps), ready=ready)
    about = {"weights": weights_name(steps)}
    return judging.judge(
        plan,
        judging.opened(plan, names, model.mesh),
        {name: judging.as_pictures(grid) for name, grid in grids.items()},
        photos,
        words,
        folder,
        about=about,
    )[1]


def _of_folders(plan: Plan, folder: Path, names: Sequence[str]) -> Path:
    """Scores the pictures of one folder against the photos of another; needs no base model."""
    mesh = setup.make_mesh(plan)
    photos = judging.photos_of(plan)
    generated = pictures.read(plan.evaluate.generated)
    asked = [(word, noun) for _, noun, word in configs.subjects(plan)]
    if any(word == "auto" for word, _ in asked):
        told = export.words_in(folder / "export" / "base") or export.words_in(folder / "export")
        asked = [(each["identifier"], each["class_noun"]) for each in told]
    words = [Words.of(identifier=word, class_noun=noun) for word, noun in asked]
    about = {"generated": plan.evaluate.generated}
    sets = {"generated": generated}
    if plan.evaluate.untouched:
        about["untouched"] = plan.evaluate.untouched
        sets = {UNTOUCHED: pictures.read(plan.evaluate.untouched), TUNED: generated}
    judges = judging.opened(plan, names, mesh)
    return judging.judge(plan, judges, sets, photos, words, folder, about=about)[1]
