"""Settings resolved once: from a ConfigDict to the frozen dataclasses of `plan`."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from dreambooth_jax.config.base import STAGE_KEYS, flatten
from dreambooth_jax.config.checks import check
from dreambooth_jax.config.plan import Plan, Settings, StageSettings
from dreambooth_jax.config.problems import raise_all

_UNTOUCHED_LEVEL = 250  # noise on the low-res input at which IF's own pipeline samples


def resolve(config: ConfigDict | Mapping[str, Any]) -> Plan:
    """Returns the settings of a run and of each of its stages, all of them checked.

    config: a configuration, or its settings by dotted key (`flatten`).

    Raises:
      ConfigError: the message lists all problems, each with what to write instead.
    """
    flat = flatten(config)
    raise_all(check(flat))
    kinds = ("base", "upscaler") if flat["upscaler_model"] else ("base",)
    stages = {kind: StageSettings(kind=kind, **_fields(_of_stage(flat, kind))) for kind in kinds}
    return Plan(
        stages=types.MappingProxyType(stages),
        flat=types.MappingProxyType(flat),
        **_fields(flat),
    )


def changed(plan: Plan, settings: Mapping[str, Any]) -> Plan:
    """Returns the plan with other values for settings by dotted key, resolved anew.

    Raises:
      ConfigError: as `resolve`.
    """
    return resolve({**plan.flat, **settings})


def _of_stage(flat: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The settings by dotted key as one stage reads them.

    `upscaler.sample_aug_level` becomes a number: where it is None, the level of the fine-tuning,
    or, where the upscaler is not trained, the level at which IF's pipeline samples.
    """
    own = dict(flat)
    if kind == "upscaler":
        own |= {first: flat[key] for key, first in STAGE_KEYS.items() if flat[key] is not None}
    if own["upscaler.sample_aug_level"] is None:
        trained = "upscaler" in flat["stages"]
        own["upscaler.sample_aug_level"] = (
            flat["upscaler.aug_level"] if trained else _UNTOUCHED_LEVEL
        )
    return own


_GROUPS: dict[str, Any] = {
    field.name: field.type
    for field in dataclasses.fields(Settings)
    if dataclasses.is_dataclass(field.type)
}


def _fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Settings` from settings by dotted key."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        if field.name in _GROUPS:
            start = f"{field.name}."
            own = {
                k.removeprefix(start): _frozen(x) for k, x in flat.items() if k.startswith(start)
            }
            values[field.name] = _GROUPS[field.name](**own)
        else:
            values[field.name] = _frozen(flat["stages" if field.name == "trained" else field.name])
    return values


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
