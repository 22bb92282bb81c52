"""Scores of the pictures of a run: loads the encoders, compares, writes `scores.json`."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from jax.sharding import Mesh

from dreambooth_jax import config as configs
from dreambooth_jax import files, hosts, turns
from dreambooth_jax.config import Plan
from dreambooth_jax.data import audit
from dreambooth_jax.data.inspection import Photo
from dreambooth_jax.data.prompts import is_of_class, mentions
from dreambooth_jax.data.subject import Words
from dreambooth_jax.evaluate import by_prompt, encoders, measures, scores
from dreambooth_jax.evaluate.encoders import EncoderError, Features
from dreambooth_jax.evaluate.pictures import Pictures
from dreambooth_jax.evaluate.scores import TUNED, UNTOUCHED, Score
from dreambooth_jax.experiment.parts import subjects
from dreambooth_jax.experiment.parts.drawing import Painter
from dreambooth_jax.experiment.parts.grids import Grid, grid_label, grids_of
from dreambooth_jax.experiment.parts.model import Model, weights_name
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results.scores import GridScore, Judged

_SMALLEST = 32  # pixels: half of it is the least side of a photo that is compared


def required(plan: Plan) -> list[str]:
    """Returns the names of the installed encoders, at least one.

    Raises:
      EncoderError: there is none, or one that is asked for by name is missing.
    """
    names = chosen(plan)
    if not names:
        raise EncoderError(
            "no evaluation encoder is installed. Write pip install 'dreambooth_jax[eval]', or name "
            f"one: --config.evaluate.encoders={list(encoders.KINDS)[:1]}, with its weights."
        )
    return names


def chosen(plan: Plan) -> list[str]:
    """Returns the encoders that the settings name; for `evaluate.encoders = ()` those installed.

    Raises:
      EncoderError: one that is asked for is missing.
      Disagreement: not all hosts have the same.
    """
    sources = _sources(plan, None)
    names = list(dict.fromkeys(plan.evaluate.encoders)) or encoders.at_hand(sources)
    encoders.check(names, sources)
    hosts.agree(
        "the judges",
        names,
        remedy="Write pip install 'dreambooth_jax[eval]' on those hosts, or name the judges that "
        "all have: --config.evaluate.encoders=…; --config.evaluate.at_end=False does without.",
    )
    return names


def at_end(plan: Plan) -> list[str]:
    """Returns the encoders for the end of a run; none when it is to end without scores.

    Raises:
      EncoderError: an encoder is named, and its weights are missing.
    """
    return chosen(plan) if plan.evaluate.at_end else []


def check(plan: Plan, names: Sequence[str]) -> None:
    """Checks, before anything compiles, that the encoders (`names`) have photos to compare with.

    Those of the subjects are checked in any case.

    Raises:
      AuditError: no photo of `evaluate.reference` can be used.
    """
    if names and plan.evaluate.reference:
        folder = files.here(files.at(plan.evaluate.reference))
        try:
            audit.audit(folder, size=_SMALLEST)
        except audit.AuditError as error:
            raise audit.AuditError(f"evaluate.reference: {error}") from error


def judge_run(
    plan: Plan,
    names: Sequence[str],
    untouched: Grid,
    model: Model,
    painter: Painter,
    workdir: Workdir,
    *,
    steps: Mapping[str, int],
) -> Judged | None:
    """Scores a run at its end, also in `scores.json`; None without encoders (`names`).

    untouched: the pictures of the untouched model.
    """
    if not names:
        return None
    grids = {UNTOUCHED: untouched}
    grids[TUNED] = painter.judged(model.weights, weights_name(dict(steps)), ready="after")
    with workdir.timed("scores"):
        judges, photos = opened(plan, names, model.mesh), photos_of(plan)
        found, _ = judge(
            plan,
            judges,
            {name: as_pictures(grid) for name, grid in grids.items()},
            photos,
            painter.words,
            workdir.root,
            about={"weights": weights_name(dict(steps))},
        )
    return Judged(found, grids, judges, photos)


def judge_grids(
    plan: Plan, judged: Judged | None, painter: Painter, workdir: Workdir
) -> dict[str, GridScore]:
    """Returns the score of each prompt grid by label, by the first encoder that makes features.

    "before" is among them. The pictures after training are those of the last stage's last step.
    Empty without such an encoder, or where no grid shows a subject.
    """
    if judged is None:
        return {}
    judge = next((one for one in judged.judges if isinstance(one, Features)), None)
    if judge is None:
        return {}
    words = painter.words
    drawn: dict[str, Grid] = {**grids_of(plan, workdir, words)}
    if "after" in drawn:
        last = plan.to_train[-1]
        drawn.setdefault(grid_label(last.kind, last.train.num_steps), drawn["after"])
        del drawn["after"]
    grids = {label: as_pictures(grid) for label, grid in drawn.items()}
    made = {label: judge.images(one.images, f"grid {label}") for label, one in grids.items()}
    photos = [judge.images(own, "photos") for own in judged.photos]
    found = {}
    for label, one in grids.items():
        likeness = [
            measures.cosine(made[label][rows], own_photos).mean()
            for each, own_photos in zip(words, photos, strict=True)
            if (rows := one.rows(each.identifier))
        ]
        drift = None
        of_class = [i for i, prompt in enumerate(one.prompts) if is_of_class(prompt, words)]
        if of_class and "before" in made:
            pairs = measures.cosine(made[label][of_class], made["before"][of_class])
            drift = float(1 - np.diag(pairs).mean())
        if likeness:
            found[label] = GridScore(float(np.mean(likeness)), drift)
    return found


def opened(plan: Plan, names: Sequence[str], mesh: Mesh) -> list[Features | encoders.Distance]:
    """Loads the encoders; skips implicitly chosen ones that fail to load."""
    strict = bool(plan.evaluate.encoders)
    opened = encoders.open_all(names, _sources(plan, mesh), strict=strict)
    hosts.agree(
        "the judges that can be opened",
        [one.name for one in opened],
        remedy="The warnings of those hosts tell why.",
    )
    return opened


def judge(
    plan: Plan,
    judges: Sequence[Features | encoders.Distance],
    sets: Mapping[str, Pictures],
    photos: Sequence[Sequence[np.ndarray]],
    words: Sequence[Words],
    folder: Path,
    *,
    about: Mapping[str, Any],
) -> tuple[list[Score], Path]:
    """The scores of each subject, by its photos and its own pictures; also in `scores.json`.

    words: of each subject; none where they are not known, and all pictures are the first one's.
    """
    found: list[Score] = []
    prompts: dict[str, list[Score]] = {}
    known: Sequence[Words | None] = words or [None]
    for each, own_photos in zip(known, photos, strict=False):
        own = {name: _of_subject(one, each, words) for name, one in sets.items()}
        told, of_prompts = by_prompt.judge(
            own,
            own_photos,
            judges,
            identifier=None if each is None else each.identifier,
            bootstrap=measures.Bootstrap(plan.evaluate.resamples, plan.seed),
        )
        if each is not None and len(words) > 1:
            of = f"{each.identifier} {each.class_noun}"
            for these in (told, *of_prompts.values()):
                these[:] = [dataclasses.replace(x, pictures=f"{x.pictures}, {of}") for x in these]
        found += told
        for prompt, scored in of_prompts.items():
            prompts.setdefault(prompt, []).extend(scored)
    logging.info("Scores:\n%s", scores.as_table(found))
    file = folder / "scores.json"
    if turns.is_first():
        about = {
            **about,
            "identifier": ", ".join(each.identifier for each in words) or None,
            "photos": sum(map(len, photos)),
            "pictures": {name: len(one) for name, one in sets.items()},
            "intervals": f"bootstrap, 95 %, {plan.evaluate.resamples} draws of prompts, pictures "
            f"and photos, seed {plan.seed}",
        }
        scores.write(file, found, about, prompts)
    return found, file


def _of_subject(pictures: Pictures, each: Words | None, words: Sequence[Words]) -> Pictures:
    """Those of a subject: that name it or, where no subject is named, no other class than its."""
    kept = []
    for i, prompt in enumerate(pictures.prompts):
        named = [x for x in words if mentions(prompt, x.identifier)]
        of_class = [x for x in words if mentions(prompt, x.class_noun)]
        nouns = [x.class_noun for x in of_class]
        if each in named if named else (not nouns or each is None or each.class_noun in nouns):
            kept.append(i)
    return Pictures([pictures.images[i] for i in kept], [pictures.prompts[i] for i in kept])


def photos_of(plan: Plan) -> list[list[np.ndarray]]:
    """The photos that each subject's pictures are compared with, as they are.

    They are decoded here, after the training: whole photos would take its memory until then.
    """
    first, *others = (subjects.photo_folder(images) for images, _, _ in configs.subjects(plan))
    given = plan.evaluate.reference
    found = []
    for folder in (files.here(files.at(given)) if given else first, *others):
        taken: list[np.ndarray] = []
        audit.audit(folder, size=_SMALLEST, take=functools.partial(_keep, taken))
        logging.info("Compared with %d photos of %s.", len(taken), folder)
        found.append(taken)
    return found


def _keep(
    taken: list[np.ndarray], photo: Photo, pixels: np.ndarray, mask: np.ndarray | None
) -> None:
    taken.append(pixels)


def _sources(plan: Plan, mesh: Mesh | None) -> dict[str, encoders.Source]:
    return {
        name: encoders.Source(
            given=getattr(plan.evaluate, name),
            cache_dir=plan.hub.cache_dir or None,
            offline=plan.hub.offline,
            batch_size=plan.evaluate.batch_size,
            mesh=mesh,
        )
        for name in encoders.KINDS
    }


def as_pictures(grid: Grid) -> Pictures:
    """Returns the images of a grid, each with its prompt."""
    prompts = [[prompt] * len(cells) for prompt, cells in grid.items()]
    return Pictures(
        list(itertools.chain.from_iterable(grid.values())), list(itertools.chain(*prompts))
    )
