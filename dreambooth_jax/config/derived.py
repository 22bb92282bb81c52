"""What follows from a configuration: a stage's settings, `config.json`, whether a run may go on."""

import fnmatch
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from dreambooth_jax import adapt, files
from dreambooth_jax.config.base import (
    RESTORE_KEYS,
    RESULT_FREE_KEYS,
    STAGE_KEYS,
    base_config,
    flatten,
)
from dreambooth_jax.config.checks import ConfigError, check, raise_all, suggest
from dreambooth_jax.data.batches import split_rows
from dreambooth_jax.optim import Phase

# Class images that are drawn when nobody says how many.
SHOWN_TIMES, FEWEST, MOST = 4, 50, 1000


def for_stage(config: ConfigDict, stage: str) -> ConfigDict:
    """The settings of one stage: those of the second stage stand where the first stage's are read.

    `upscaler.sample_aug_level` becomes a number: left at `None` it is the level of the fine-tuning,
    or, when the upscaler stays as it was, 250, the level at which IF's pipeline samples.
    """
    stage_config = config.copy_and_resolve_references()
    flat = flatten(config)
    if stage == "upscaler":
        chosen = {first: flat[key] for key, first in STAGE_KEYS.items() if flat[key] is not None}
        stage_config.update_from_flattened_dict(chosen)
    if flat["upscaler.sample_aug_level"] is None:
        trained = "upscaler" in config.stages
        stage_config.upscaler.sample_aug_level = config.upscaler.aug_level if trained else 250
    return stage_config.lock()


def trainable_rules(config: ConfigDict) -> tuple[tuple[str, bool], ...]:
    """`adapt.train`, after a rule for the text encoders when `train.text_encoder` asks for it."""
    extra = (("text_encoder.*", True),) if config.train.text_encoder else ()
    return extra + tuple(config.adapt.train)


def subjects(config: ConfigDict) -> tuple[tuple[str, str, str], ...]:
    """(images, class noun, identifier) of each subject, the first one first."""
    first = config.subject
    return ((first.images, first.class_noun, first.identifier), *first.others)


def class_shares(config: ConfigDict) -> dict[str, float]:
    """Of each class noun its share of the class rows: subjects take turns."""
    nouns = [noun for _, noun, _ in subjects(config)]
    return {noun: nouns.count(noun) / len(nouns) for noun in nouns}


def draws_class_images(config: ConfigDict) -> bool:
    """Whether a run trains on class images that the untouched base draws."""
    from_base = config.prior.kind == "images" and not config.prior.images
    return config.prior_loss_weight > 0 and from_base


def num_grids(config: ConfigDict) -> int:
    """Prompt grids of a run: before, on the way, after."""
    every = config.train.sample_every
    steps = [for_stage(config, kind).train.num_steps for kind in config.stages]
    return 2 + (sum(n // every for n in steps) if every else 0)


def num_class_images(config: ConfigDict, *, share: float = 1.0) -> tuple[int, str]:
    """How many class images to draw of a class, and why, for the log.

    Where the settings leave it open, as many as are shown about 4 times each in the stage that
    shows most: 200 in 800 steps of one class row, which is what most people use. Ruiz et al. 2022
    have about 1000 for about 1000 steps and say that less can be used: not more than that, not
    less than 50, never more than are shown.

    share: of the class rows that are this class's, where several subjects take turns.
    """
    if config.prior.num_images is not None:
        return config.prior.num_images, f"prior.num_images is {config.prior.num_images}, as set."
    shown = {}
    for stage in config.stages:
        c = for_stage(config, stage)
        _, rows = split_rows(c.train.batch_size, prior_fraction=c.train.prior_fraction)
        told = f"{c.train.num_steps} steps × {rows} class {'row' if rows == 1 else 'rows'}"
        told += "" if share == 1 else f" × {share:.2g} of them"
        shown[stage] = math.ceil(c.train.num_steps * rows * share), told
    rows, told = max(shown.values())
    number = min(max(math.ceil(rows / SHOWN_TIMES), FEWEST), MOST, rows)
    return number, (
        f"prior.num_images is {number}: {told}, each shown about {rows / number:.3g} times "
        f"({FEWEST} to {MOST}, {SHOWN_TIMES} times where that fits)."
    )


def learns_text(config: ConfigDict) -> bool:
    """Whether embeddings of prompts change while a run trains."""
    return config.train.text_encoder or adapt.makes_words(config.adapt)


def phases(stage_config: ConfigDict) -> tuple[Phase, ...]:
    """Which leaves are trained when (`optim.phases`), of a stage's settings; () is all, always."""
    c, steps = stage_config, stage_config.train.num_steps
    table, first = [], 0
    if c.adapt.name == "pivotal":
        first = c.adapt.inversion_steps or steps // 2
        table.append(
            Phase(f".*/{adapt.textual_inversion.ROWS}", 0, first, c.adapt.inversion_learning_rate)
        )
    if c.train.text_encoder and (c.train.text_encoder_steps or steps) < steps:
        table.append(Phase("text_encoder.*", first, c.train.text_encoder_steps))
    return (*table, Phase(".*", first, steps)) if table else ()


def variant(arg: str, known: Sequence[str]) -> str:
    """The word after the colon of `--config=file.py:word`, "" when there is none.

    Raises:
      ConfigError: the file knows no such word.
    """
    if arg and arg not in known:
        raise ConfigError(f"no variant {arg!r}, only {', '.join(known)}. {suggest(arg, known)}")
    return arg


def to_json(config: ConfigDict) -> str:
    """The configuration as text for `config.json`; `from_json` reads it back."""
    return json.dumps(config.to_dict(), indent=2, ensure_ascii=False) + "\n"


def from_json(text: str) -> ConfigDict:
    """A locked configuration from the text of a `config.json`; a key that it lacks has its default.

    Raises:
      ConfigError: the text is no JSON object, or holds a setting that `validate` refuses.
    """
    try:
        flat = {key: _tuples(value) for key, value in flatten(json.loads(text)).items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"config.json is not a JSON object: {error}") from error
    config = base_config()
    merged = flatten(config) | flat
    raise_all(check(merged))
    config.update_from_flattened_dict(merged)
    return config


def resume_conflicts(saved: ConfigDict, now: ConfigDict) -> list[str]:
    """One line for each setting that differs and would change the result of a continued run."""
    return [line for key, line in _differences(saved, now) if not _matches(key, RESULT_FREE_KEYS)]


def restore_conflicts(saved: ConfigDict, now: ConfigDict) -> list[str]:
    """One line for each setting that differs and without which checkpoints make no sense."""
    return [line for key, line in _differences(saved, now) if _matches(key, RESTORE_KEYS)]


def _differences(saved: ConfigDict, now: ConfigDict) -> Iterator[tuple[str, str]]:
    before, after = flatten(saved), flatten(now)
    for key in before | after:
        old, new = before.get(key), after.get(key)
        if old != new:
            yield key, f"{key}: the run was started with {old!r}, now it is {new!r}"


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def of_run(folder: str) -> ConfigDict:
    """The settings that the run in `folder` was started with last.

    Raises:
      ConfigError: there is no run in it.
    """
    file = files.at(folder) / "config.json"
    if not folder or not file.is_file():
        raise ConfigError(
            f"no run in {folder!r}: {file} is not there. Write --config=configs/of_run.py:WORKDIR."
        )
    return from_json(file.read_text())


def _tuples(value: Any) -> Any:
    """Lists of a JSON file as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
