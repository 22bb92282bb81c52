"""Facts that follow from settings, `config.json`, conflicts with an earlier start's settings."""

import fnmatch
import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from absl import logging
from ml_collections import ConfigDict

from dreambooth_jax import adapt, files, untrusted
from dreambooth_jax.config.base import (
    HOST_KEYS,
    RESTORE_KEYS,
    RESULT_FREE_KEYS,
    base_config,
    flatten,
)
from dreambooth_jax.config.checks import check
from dreambooth_jax.config.plan import Plan, Settings, StageSettings
from dreambooth_jax.config.problems import ConfigError, raise_all, suggest
from dreambooth_jax.config.resolve import resolve
from dreambooth_jax.data.batches import split_rows
from dreambooth_jax.optim import Phase

Saved: TypeAlias = ConfigDict | Mapping[str, Any]  # a configuration, or its settings by dotted key
# Default number of class images.
SHOWN_TIMES, FEWEST, MOST = 4, 50, 1000
_MEND = (
    "It is a run's record of its settings: put back a copy of it, or remove it to start with the "
    "settings of the command line."
)


def trainable_rules(own: Settings, *, denoiser: str, text: str) -> tuple[tuple[str, bool], ...]:
    """Returns `adapt.train`, after a rule for the text encoders where `train.text_encoder` is set.

    Args:
      denoiser: component that stands for `{denoiser}`.
      text: regex of the text encoders' leaves.
    """
    extra = ((text, True),) if own.train.text_encoder else ()
    rules = ((path.replace("{denoiser}", denoiser), on) for path, on in own.adapt.train)
    return (*extra, *rules)


def subjects(config: Settings) -> tuple[tuple[str, str, str], ...]:
    """(images, class noun, identifier) of each subject, the first one first."""
    first = config.subject
    return ((first.images, first.class_noun, first.identifier), *first.others)


def class_shares(config: Settings) -> dict[str, float]:
    """Returns the share of each class noun in the class rows: subjects take turns."""
    nouns = [noun for _, noun, _ in subjects(config)]
    return {noun: nouns.count(noun) / len(nouns) for noun in nouns}


def draws_class_images(config: Settings) -> bool:
    """Returns True where a run trains on class images drawn by the untouched base."""
    from_base = config.prior.kind == "images" and not config.prior.images
    return config.prior_loss_weight > 0 and from_base


def num_grids(plan: Plan) -> int:
    """Prompt grids of a run: before, on the way, after."""
    every = plan.train.sample_every
    steps = [own.train.num_steps for own in plan.to_train]
    return 2 + (sum(n // every for n in steps) if every else 0)


def num_class_images(plan: Plan, *, share: float = 1.0) -> tuple[int, str]:
    """Returns the number of class images of a class, and the reason, for the log.

    Where the settings leave it open, as many as are shown about 4 times each in the stage that
    shows most: 200 in 800 steps of one class row, which is what most people use. Ruiz et al. 2022
    have about 1000 for about 1000 steps and say that less can be used: not more than that, not
    less than 50, never more than are shown.

    share: of the class rows that are this class's, where several subjects take turns.
    """
    if plan.prior.num_images is not None:
        return plan.prior.num_images, f"prior.num_images is {plan.prior.num_images}, as set."
    shown = {}
    for c in plan.to_train:
        _, rows = split_rows(c.train.batch_size, prior_fraction=c.train.prior_fraction)
        told = f"{c.train.num_steps} steps × {rows} class {'row' if rows == 1 else 'rows'}"
        told += "" if share == 1 else f" × {share:.2g} of them"
        shown[c.kind] = math.ceil(c.train.num_steps * rows * share), told
    rows, told = max(shown.values())
    number = min(max(math.ceil(rows / SHOWN_TIMES), FEWEST), MOST, rows)
    return number, (
        f"prior.num_images is {number}: {told}, each shown about {rows / number:.3g} times "
        f"({FEWEST} to {MOST}, {SHOWN_TIMES} times where that fits)."
    )


def learns_text(config: Settings) -> bool:
    """Returns True where embeddings of prompts change during training."""
    return config.train.text_encoder or adapt.makes_words(config.adapt)


def phases(own: StageSettings, *, text: str) -> tuple[Phase, ...]:
    """Returns the phases of a stage (`optim.phases`); () trains all leaves in every step.

    text: regex of the text encoders' leaves.
    """
    c, steps = own, own.train.num_steps
    table, first = [], 0
    if c.adapt.name == "pivotal":
        first = c.adapt.inversion_steps or steps // 2
        table.append(
            Phase(f".*/{adapt.textual_inversion.ROWS}", 0, first, c.adapt.inversion_learning_rate)
        )
    if c.train.text_encoder and (c.train.text_encoder_steps or steps) < steps:
        table.append(Phase(text, first, c.train.text_encoder_steps or steps))
    return (*table, Phase(".*", first, steps)) if table else ()


def variant(arg: str, known: Sequence[str]) -> str:
    """The word after the colon of `--config=file.py:word`, "" when there is none.

    Raises:
      ConfigError: the file knows no such word.
    """
    if arg and arg not in known:
        raise ConfigError(f"no variant {arg!r}, only {', '.join(known)}. {suggest(arg, known)}")
    return arg


def to_json(config: ConfigDict | Mapping[str, Any]) -> str:
    """The configuration, or its settings by dotted key, as text for `config.json`.

    `from_json` reads it back.
    """
    nested: dict[str, Any] = {}
    for key, value in flatten(config).items():
        group, _, leaf = key.rpartition(".")
        (nested.setdefault(group, {}) if group else nested)[leaf] = value
    return json.dumps(nested, indent=2, ensure_ascii=False) + "\n"


def from_json(text: str, *, file: str = "config.json") -> ConfigDict:
    """A locked configuration from the text of a `config.json`; a key that it lacks has its default.

    file: the name in messages.

    Raises:
      ConfigError: the text is no JSON object, or holds a setting that `validate` refuses.
    """
    try:
        found = untrusted.parsed(text, file, remedy=_MEND)
    except untrusted.FileError as error:
        raise ConfigError(f"{error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} is not a JSON object {{…}} of settings. {_MEND}")
    config = base_config()
    merged = flatten(config) | _renamed({key: _tuples(x) for key, x in flatten(found).items()})
    if problems := check(merged):
        try:
            raise_all(problems)
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from error
    config.update_from_flattened_dict(merged)
    return config


def _renamed(found: dict[str, Any]) -> dict[str, Any]:
    """Settings as an earlier version wrote them under the names of today."""
    if (before := found.pop("log.tensorboard", None)) is not None:
        found.setdefault("log.to", ("jsonl", "tensorboard") if before is True else ("jsonl",))
    return found


_STEPS = ("train.num_steps", "upscaler.num_steps")


def more_steps(saved: Saved, now: Saved) -> tuple[tuple[str, ...], str]:
    """Returns the keys by which a run may go on for more steps, and the reason where it may not.

    Nothing of the steps that are done may depend on their number: neither the learning rates, nor
    the step at which something ceases to be trained, nor the class images.

    Args:
      saved: the settings of the steps that are done, `now` those of more of them.
    """
    before, after = ({k: _tuples(x) for k, x in flatten(each).items()} for each in (saved, now))
    if all(before.get(key) == after.get(key) for key in _STEPS):
        return (), ""
    try:
        old, new = resolve(before), resolve(after)
    except ConfigError:  # of another version of this program
        return (), ""
    steps = [[own.train.num_steps for own in plan.to_train] for plan in (old, new)]
    if len(steps[0]) != len(steps[1]) or any(x > y for x, y in zip(*steps, strict=True)):
        return (), "there are fewer steps than before"
    if new.optim.schedule != "constant":
        return (), f"optim.schedule = {new.optim.schedule!r} ends at the last step"
    if new.adapt.name == "pivotal" and not new.adapt.inversion_steps:
        return (), "adapt.inversion_steps is half of all steps"
    if new.train.text_encoder_steps and new.train.text_encoder_steps >= min(steps[0]):
        return (), "train.text_encoder_steps was never reached"
    if not draws_class_images(new):
        return _STEPS, ""
    for share in class_shares(new).values():
        counts = [num_class_images(plan, share=share)[0] for plan in (old, new)]
        if counts[0] != counts[1]:
            return (), (
                f"{counts[1]} class images belong to so many steps; "
                f"--config.prior.num_images={counts[0]} keeps those that there are"
            )
    return (*_STEPS, "prior.num_images"), ""


def resume_conflicts(saved: Saved, now: Saved) -> list[str]:
    """One line for each setting that differs and would change the result of a continued run.

    More steps do not, under the conditions of `more_steps`.
    """
    longer, why = more_steps(saved, now)
    free = (*RESULT_FREE_KEYS, *longer)
    return [
        f"{line} ({why})" if why and key in _STEPS else line
        for key, line in _differences(saved, now)
        if not _matches(key, free)
    ]


def restore_conflicts(saved: Saved, now: Saved) -> list[str]:
    """One line for each setting that differs and without which checkpoints make no sense."""
    return [line for key, line in _differences(saved, now) if _matches(key, RESTORE_KEYS)]


def free_to_restore(now: Mapping[str, Any]) -> list[str]:
    """Patterns of settings by which a restored checkpoint may differ from today's.

    Those that change no result are among them under the names of earlier versions, too.
    """
    return [*RESULT_FREE_KEYS, *(key for key in now if not _matches(key, RESTORE_KEYS))]


def _differences(saved: Saved, now: Saved) -> Iterator[tuple[str, str]]:
    before, after = flatten(saved), flatten(now)
    for key in before | after:
        old, new = before.get(key), after.get(key)
        if old != new:
            yield key, f"{key}: the run was started with {old!r}, now it is {new!r}"


def _matches(key: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)


def of_run(folder: str) -> ConfigDict:
    """The settings that the run in `folder` was started with last, but for `HOST_KEYS`.

    The folder may be another's: what it says of places where compiled programs are loaded from, or
    where files are written, is not taken.

    Raises:
      ConfigError: there is no run in it.
    """
    file = files.at(folder) / "config.json"
    if not folder or not file.is_file():
        raise ConfigError(
            f"no run in {folder!r}: {file} is not there. Write --config=configs/of_run.py:WORKDIR."
        )
    config, default = from_json(untrusted.text(file), file=str(file)), flatten(base_config())
    for key, value in flatten(config).items():
        if key in HOST_KEYS and value != default[key]:
            logging.warning(
                "%s: %s = %r belongs to the host that the run was started on and is not taken from "
                "a run's folder; write --config.%s=%s to use it.",
                *(file, key, value, key, shlex.quote(str(value))),
            )
            config.update_from_flattened_dict({key: default[key]})
    return config


def _tuples(value: Any) -> Any:
    """Lists of a JSON file as the tuples they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
