"""The report of a run, `report.html`, and the model card of its export."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dreambooth_jax import __version__, report, tree
from dreambooth_jax.config import Plan, StageSettings
from dreambooth_jax.data.class_images import ClassImages
from dreambooth_jax.data.prompts import is_of_class, mentions
from dreambooth_jax.data.subject import Subject, Words
from dreambooth_jax.evaluate import scores
from dreambooth_jax.evaluate.scores import TUNED, UNTOUCHED
from dreambooth_jax.experiment.parts.grids import Grid, grids_of, prompts_of
from dreambooth_jax.experiment.parts.model import Model
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import advice, galleries
from dreambooth_jax.experiment.results.advice import Advice
from dreambooth_jax.experiment.results.scores import Judged


def model_card(own: StageSettings, words: Sequence[Words], num_steps: int) -> dict[str, Any]:
    """The lines of an export's README; `num_steps` is 0 for a stage as the base model has it."""
    tuned = num_steps > 0
    steps = f"{num_steps} steps of {own.train.batch_size} rows"
    return {
        "base model": _named(own.model),
        **({"autoencoder": _named(own.vae_model)} if own.vae_model and own.kind == "base" else {}),
        **({"clip_skip": own.clip_skip} if own.clip_skip else {}),
        "instance prompt": _listed(each.instance_prompt for each in words),
        "class prompt": _listed(each.class_prompt for each in words),
        "fine-tuned": steps if tuned else "no, as the base model",
        "learning rate": own.optim.learning_rate if tuned else "none",
        "adapted": _way(own) if tuned else "none",
        "text encoder trained": bool(own.train.text_encoder) if tuned else False,
        "prior_loss_weight": own.prior_loss_weight,
        "prior": own.prior.kind if own.prior_loss_weight else "none",
        "captions": own.subject.captions if tuned else "none",
        "masks": own.subject.masks if tuned else "none",
        **({"shapes of photos": own.data.buckets} if tuned and own.data.buckets else {}),
        "seed": own.seed,
    }


def _named(model: str) -> str:
    """The name of a model for others: a hub id as it is, of a path or an address the last part."""
    private = "://" in model or model.startswith((".", "~", "/")) or Path(model).exists()
    return Path(model).name if private else model


def _way(own: StageSettings) -> str:
    name, then = own.adapt.name, own.adapt.then
    return f"{name}, then {then}" if name == "pivotal" else name


@dataclasses.dataclass(frozen=True)
class Told:
    """All that the report shows: the run's settings, folder and model, and what came of it."""

    plan: Plan
    workdir: Workdir
    model: Model
    cast: Sequence[Subject]
    classes: Sequence[ClassImages]
    judged: Judged | None = None
    advised: Sequence[Advice] = ()

    @functools.cached_property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the grid."""
        return prompts_of(self.plan, self.cast)

    @functools.cached_property
    def grids(self) -> dict[str, Grid]:
        """The grids by label, in the order in which they were drawn."""
        return grids_of(self.plan, self.workdir, self.cast, all_seeds=("before", "after"))

    @functools.cached_property
    def called(self) -> dict[str, str]:
        """Name of each grid for readers, by label: "after 100 steps" for "base-000100"."""
        several = len(self.plan.to_train) > 1
        names = {"before": "before", "after": "after"}
        for label in self.grids:
            kind, _, step = label.rpartition("-")
            if kind:
                names[label] = f"after {int(step)} steps" + (f", {kind}" if several else "")
        return names

    def photo(self, prompt: str) -> list[np.ndarray]:
        """A photo of the subject that a prompt names; none where it names none."""
        named = [each for each in self.cast if mentions(prompt, each.identifier)]
        return [each.shown(each.pixels)[0] for each in named[:1]]

    @functools.cached_property
    def seconds(self) -> dict[str, float]:
        """Seconds by part of the run."""
        return self.workdir.timings()


def write(
    plan: Plan,
    workdir: Workdir,
    model: Model,
    cast: Sequence[Subject],
    classes: Sequence[ClassImages],
    judged: Judged | None = None,
    advised: Sequence[Advice] = (),
) -> Path:
    """Writes `report.html`, the last file of a run, and returns its path."""
    now = time.time()
    line = time.strftime("Finished at %Y-%m-%d %H:%M:%S.", time.localtime(now))
    told = Told(plan, workdir, model, cast, classes, judged, advised)
    return written(told, report.State("finished", line, now))


def written(told: Told, state: report.State) -> Path:
    """Writes `report.html` of a run in this state."""
    cast, workdir = told.cast, told.workdir
    last = next(reversed(told.grids.values()), {})
    listed = _listed(f"{len(each.photos)} photos of {each.class_prompt}" for each in cast)
    report.build(
        workdir.report,
        title=_listed(each.instance_prompt for each in cast),
        subtitle=f"DreamBooth, {listed}. dreambooth_jax {__version__}.",
        facts=_facts(told),
        sections=[section for make in SECTIONS for section in make(told)],
        highlight=[each.identifier for each in cast],
        cover=[last[p][0] for p in told.prompts[:4] if p in last],
        state=state,
    )
    return workdir.report


def _facts(told: Told) -> list[tuple[str, str]]:
    """The line of numbers below the title."""
    trained = sum(tree.count(leaves) for leaves in told.model.trained.values())
    mesh = told.model.mesh
    return [
        ("photos", str(sum(len(each.photos) for each in told.cast))),
        ("class images", str(sum(map(len, told.classes)))),
        ("steps", " + ".join(str(own.train.num_steps) for own in told.plan.to_train)),
        ("trained parameters", f"{trained / 1e6:.1f} M" if trained else "–"),
        ("devices", f"{mesh.size} {mesh.devices.flat[0].platform}"),
        ("minutes", f"{sum(told.seconds.values()) / 60:.1f}"),
    ]


def _before_and_after(told: Told) -> Iterator[Any]:
    names = _listed(repr(each.identifier) for each in told.cast)
    labels = [*told.grids]
    if not labels:
        return
    shown = labels if len(labels) == 1 else [labels[0], labels[-1]]
    yield report.Comparison(
        {"after": "Before and after", "before": "Before training"}.get(shown[-1], "Before and now"),
        f"The same prompts and seeds, drawn by the untouched model and by the fine-tuned one. "
        f"What the photos show is called {names}.",
        rows=list(told.prompts),
        columns=[told.called[label] for label in shown],
        cells=[[told.grids[label][p] for label in shown] for p in told.prompts],
        photos=[told.photo(p) for p in told.prompts],
    )


def _scores(told: Told) -> Iterator[Any]:
    """The scores, and the class images before and after."""
    if told.judged is None:
        return
    grids = told.judged.grids
    prompts = [prompt for prompt in grids[TUNED] if is_of_class(prompt, told.cast)]
    yield report.Table(
        "Scores",
        "Means with 95 % bootstrap intervals over prompts, pictures and photos; in scores.json "
        "with what each of them means. The photos among themselves are what the subject's "
        "similarity can reach. Numbers of different encoders cannot be compared.",
        rows=scores.rows(told.judged.scores),
        header=scores.HEADER,
        collapsed=True,
    )
    yield report.Comparison(
        "Drift of the class",
        "Prompts without a subject's word, the same seeds: the less they changed, the better "
        "the class was kept.",
        rows=prompts,
        columns=[UNTOUCHED, TUNED],
        cells=[[grids[name][p] for name in (UNTOUCHED, TUNED)] for p in prompts],
        collapsed=True,
    )


def _training_pictures(told: Told) -> Iterator[Any]:
    for each in told.cast:
        yield from galleries.of_photos(each, alone=len(told.cast) == 1)
    for found in told.classes:
        yield galleries.of_class_images(found, alone=len(told.classes) == 1)


def _steps(told: Told) -> Iterator[Any]:
    for each in told.advised:
        header, *rows = advice.table(each, held_out=told.plan.subject.held_out > 0)
        if len(header) == 1:  # nothing was measured
            continue
        yield report.Table(
            f"Which step, {each.kind}" if len(told.advised) > 1 else "Which step",
            advice.sentence(each),
            rows=rows,
            header=header,
            command=advice.command(each, told.workdir),
        )


def _losses(told: Told) -> Iterator[Any]:
    lines = told.workdir.scalars()
    for kind in told.plan.trained:
        curves = report.series(lines, f"{kind}/loss/*", f"{kind}/held_out/*")
        names = _losses_called(held_out=told.plan.subject.held_out > 0)
        yield report.Curves(
            f"Loss, {kind}" if len(told.plan.trained) > 1 else "Loss",
            "Mean squared error of what the network predicts, of photos and class images apart. "
            + _SAME_NOISE[told.plan.subject.held_out > 0],
            series={
                names.get(name, name): points
                for name, points in (
                    (name.removeprefix(f"{kind}/"), points) for name, points in curves.items()
                )
            },
        )


_SAME_NOISE = {
    True: "With the same noise every time it can be compared from step to step.",
    False: "With the same noise every time it can be compared from step to step; of photos that "
    "are trained on it falls also where they are learned by heart: --config.subject.held_out=1 "
    "keeps one back.",
}


def _losses_called(*, held_out: bool) -> dict[str, str]:
    """Names of the curves; only photos that are not trained on are held out."""
    photos = "held-out photos" if held_out else "photos"
    return {
        "loss/subject": "photos",
        "loss/prior": "class images",
        "held_out/subject": f"{photos}, same noise",
        "held_out/prior": "class images, same noise",
    }


def _over_training(told: Told) -> Iterator[Any]:
    grids = told.grids
    if len(grids) > 2:
        yield report.Comparison(
            "Over training",
            "The first picture of each prompt, the same seed at every step.",
            rows=list(told.prompts),
            columns=[told.called[label] for label in grids],
            cells=[[grids[label][p][:1] for label in grids] for p in told.prompts],
            photos=[told.photo(p) for p in told.prompts],
            slider=True,
        )


def _records(told: Told) -> Iterator[Any]:
    """The audit of the photos, timings, files and settings."""
    own = (each.own for each in told.classes if each.own is not None)
    yield report.Text(
        "Photo audit",
        "\n".join(str(folder.audit) for folder in (*told.cast, *own)),
        preformatted=True,
        collapsed=True,
    )
    yield report.Table(
        "Timings",
        "Seconds of each part, over all starts of this run.",
        rows=[(name, f"{value:.1f}") for name, value in told.seconds.items()],
        header=("part", "seconds"),
        collapsed=True,
    )
    yield report.Table(
        "Files",
        "Beside this report.",
        rows=_files(told.workdir),
        header=("what", "where"),
        collapsed=True,
    )
    yield report.Table(
        "Settings",
        "All of them, as in config.json.",
        rows=[(key, repr(value)) for key, value in told.plan.flat.items()],
        header=("key", "value"),
        collapsed=True,
    )


# The sections of the page in order; each yields one or more, or none.
SECTIONS: tuple[Callable[[Told], Iterator[Any]], ...] = (
    _before_and_after,
    _over_training,
    _steps,
    _losses,
    _scores,
    _training_pictures,
    _records,
)


def _listed(words: Iterable[str]) -> str:
    """Each once, with commas between them."""
    return ", ".join(dict.fromkeys(words))


def _files(workdir: Workdir) -> list[tuple[str, str]]:
    found: Mapping[str, str] = {
        "the fine-tuned model (diffusers format)": "export/",
        "the pictures of this report": "samples/",
        "class images and their manifest": "prior/",
        "checkpoints": "checkpoints/",
        "trained weights of other steps": "kept_weights/",
        "numbers": "metrics.jsonl",
        "trained parameters of the first stage": "parameters_base.txt",
        "scores": "scores.json",
        "settings": "config.json",
    }
    return [(what, where) for what, where in found.items() if (workdir.root / where).exists()]
