"""What the pictures of a run, or of any folder, are worth: `scores.json` and its table."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from dreambooth_jax import config as configs
from dreambooth_jax import export, files, hosts
from dreambooth_jax.data import audit, images
from dreambooth_jax.data.prompts import is_of_class, mentions
from dreambooth_jax.data.subject import Words
from dreambooth_jax.evaluate import by_prompt, encoders, measures, pictures, scores
from dreambooth_jax.evaluate.encoders import EncoderError, Features
from dreambooth_jax.evaluate.pictures import Pictures
from dreambooth_jax.evaluate.scores import TUNED, UNTOUCHED, Score
from dreambooth_jax.experiment import setup, subjects
from dreambooth_jax.experiment.judged import Judged, Worth
from dreambooth_jax.experiment.model import Model
from dreambooth_jax.experiment.modes import named, reopened, restored
from dreambooth_jax.experiment.painter import Grid, Painter, grids_of
from dreambooth_jax.experiment.workdir import Workdir

_SMALLEST = 32  # pixels: half of it is the least side of a photo that is compared


def evaluate(config: ConfigDict, folder: Path) -> Path:
    """Scores a run's pictures, or those of `evaluate.generated`; returns `scores.json` in `folder`.

    Raises:
      ConfigError, CheckpointError, EncoderError, ValueError, OSError: what was found, expected,
        and what to do.
    """
    folder = files.at(folder)
    names = required(config)
    if config.evaluate.generated:
        return _of_folders(config, folder, names)
    workdir = Workdir.of_run(folder, config)
    photos = _photos(config)
    model, words = reopened(config, workdir)
    painter = Painter(config, model, words, workdir)
    tuned, steps = restored(config, model, workdir)
    grids = {UNTOUCHED: painter.judged(model.weights, UNTOUCHED, ready="before")}
    if steps:
        whole = {kind: configs.for_stage(config, kind).train.num_steps for kind in config.stages}
        ready = "after" if steps == whole else None
        grids[TUNED] = painter.judged(tuned.weights, named(steps), ready=ready)
    about = {"weights": named(steps)}
    return _judge(
        config,
        _opened(config, names, model.mesh),
        {name: _as_pictures(grid) for name, grid in grids.items()},
        photos,
        words,
        folder,
        about=about,
    )[1]


def required(config: ConfigDict) -> list[str]:
    """The judges, at least one, whose weights are at hand.

    Raises:
      EncoderError: there is none, or one that is asked for by name is missing.
    """
    names = chosen(config)
    if not names:
        raise EncoderError(
            "no judge is at hand. Write pip install 'dreambooth_jax[eval]', or name one: "
            f"--config.evaluate.encoders={list(encoders.KINDS)[:1]}, with its weights."
        )
    return names


def chosen(config: ConfigDict) -> list[str]:
    """The judges that are asked for; with `evaluate.encoders = ()` those at hand.

    Raises:
      EncoderError: one that is asked for is missing.
      Disagreement: not all hosts have the same.
    """
    sources = _sources(config, None)
    names = list(dict.fromkeys(config.evaluate.encoders)) or encoders.at_hand(sources)
    encoders.check(names, sources)
    hosts.agree(
        "the judges",
        names,
        remedy="Write pip install 'dreambooth_jax[eval]' on those hosts, or name the judges that "
        "all have: --config.evaluate.encoders=…; --config.evaluate.at_end=False does without.",
    )
    return names


def at_end(config: ConfigDict) -> list[str]:
    """The judges of the end of a run; none when it is to end without scores.

    Raises:
      EncoderError: judges are asked for by name, and their weights are missing.
    """
    return chosen(config) if config.evaluate.at_end else []


def judge_run(
    config: ConfigDict,
    names: Sequence[str],
    untouched: Grid,
    model: Model,
    painter: Painter,
    workdir: Workdir,
    *,
    steps: Mapping[str, int],
) -> Judged:
    """The scores of a run that ends now, also in its `scores.json`; `untouched` is from before."""
    grids = {UNTOUCHED: untouched}
    grids[TUNED] = painter.judged(model.weights, named(dict(steps)), ready="after")
    with workdir.timed("scores"):
        judges, photos = _opened(config, names, model.mesh), _photos(config)
        found, _ = _judge(
            config,
            judges,
            {name: _as_pictures(grid) for name, grid in grids.items()},
            photos,
            painter.words,
            workdir.root,
            about={"weights": named(dict(steps))},
        )
    return Judged(found, grids, judges, photos)


def judge_grids(
    config: ConfigDict, judged: Judged | None, painter: Painter, workdir: Workdir
) -> dict[str, Worth]:
    """What the prompt grids on the way are worth, by label, by the first judge that makes features.

    "before" is among them. Nothing without such a judge, or where the grids do not show a subject.
    """
    if judged is None:
        return {}
    judge = next((one for one in judged.judges if isinstance(one, Features)), None)
    if judge is None:
        return {}
    words = painter.words
    drawn = grids_of(config, workdir, words)
    grids = {label: _as_pictures(grid) for label, grid in drawn.items() if label != "after"}
    made = {label: judge.images(one.images, f"grid {label}") for label, one in grids.items()}
    photos = [judge.images(own, "photos") for own in judged.photos]
    found = {}
    for label, one in grids.items():
        likeness = [
            measures.cosine(made[label][rows], own_photos).mean()
            for each, own_photos in zip(words, photos, strict=True)
            if (rows := one.rows(each.identifier))
        ]
        moved = None
        of_class = [i for i, prompt in enumerate(one.prompts) if is_of_class(prompt, words)]
        if of_class and "before" in made:
            pairs = measures.cosine(made[label][of_class], made["before"][of_class])
            moved = float(1 - np.diag(pairs).mean())
        if likeness:
            found[label] = Worth(float(np.mean(likeness)), moved)
    return found


def _of_folders(config: ConfigDict, folder: Path, names: Sequence[str]) -> Path:
    """Scores the pictures of one folder against the photos of another; needs no base model."""
    mesh = setup.make_mesh(config)
    photos = _photos(config)
    generated = pictures.read(config.evaluate.generated)
    asked = [(word, noun) for _, noun, word in configs.subjects(config)]
    if any(word == "auto" for word, _ in asked):
        told = export.words_in(folder / "export" / "base") or export.words_in(folder / "export")
        asked = [(each["identifier"], each["class_noun"]) for each in told]
    words = [Words.of(identifier=word, class_noun=noun) for word, noun in asked]
    about = {"generated": config.evaluate.generated}
    sets = {"generated": generated}
    if config.evaluate.untouched:
        about["untouched"] = config.evaluate.untouched
        sets = {UNTOUCHED: pictures.read(config.evaluate.untouched), TUNED: generated}
    judges = _opened(config, names, mesh)
    return _judge(config, judges, sets, photos, words, folder, about=about)[1]


def _opened(
    config: ConfigDict, names: Sequence[str], mesh: Mesh
) -> list[Features | encoders.Distance]:
    """The judges, ready; of those that nobody named the ones that can be opened."""
    strict = bool(config.evaluate.encoders)
    opened = encoders.open_all(names, _sources(config, mesh), strict=strict)
    hosts.agree(
        "the judges that can be opened",
        [one.name for one in opened],
        remedy="The warnings of those hosts tell why.",
    )
    return opened


def _judge(
    config: ConfigDict,
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
            bootstrap=measures.Bootstrap(config.evaluate.resamples, config.seed),
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
    if jax.process_index() == 0:
        about = {
            **about,
            "identifier": ", ".join(each.identifier for each in words) or None,
            "photos": sum(map(len, photos)),
            "pictures": {name: len(one) for name, one in sets.items()},
            "intervals": f"bootstrap, 95 %, {config.evaluate.resamples} draws of prompts, pictures "
            f"and photos, seed {config.seed}",
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


def _photos(config: ConfigDict) -> list[list[np.ndarray]]:
    """The photos that each subject's pictures are compared with, as they are."""
    first, *others = (subjects.photo_folder(images) for images, _, _ in configs.subjects(config))
    given = config.evaluate.reference
    found = []
    for folder in (files.here(files.at(given)) if given else first, *others):
        kept = audit.audit(folder, size=_SMALLEST).kept
        logging.info("Compared with %d photos of %s.", len(kept), folder)
        found.append([images.read(photo.path) for photo in kept])
    return found


def _sources(config: ConfigDict, mesh: Mesh | None) -> dict[str, encoders.Source]:
    return {
        name: encoders.Source(
            given=config.evaluate[name],
            cache_dir=config.hub.cache_dir or None,
            offline=config.hub.offline,
            batch_size=config.evaluate.batch_size,
            mesh=mesh,
        )
        for name in encoders.KINDS
    }


def _as_pictures(grid: Grid) -> Pictures:
    prompts = [[prompt] * len(cells) for prompt, cells in grid.items()]
    return Pictures(
        list(itertools.chain.from_iterable(grid.values())), list(itertools.chain(*prompts))
    )
