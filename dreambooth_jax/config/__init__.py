"""Every setting of a run. `configs/*.py` start from `base_config()` and set only what differs."""

from ml_collections import ConfigDict

from dreambooth_jax.config import library
from dreambooth_jax.config.base import (
    CHOICES,
    HOST_KEYS,
    RANGES,
    RESULT_FREE_KEYS,
    STAGE_KEYS,
    base_config,
    flatten,
)
from dreambooth_jax.config.checks import validate
from dreambooth_jax.config.command_line import parse_flags
from dreambooth_jax.config.derived import (
    class_shares,
    draws_class_images,
    free_to_restore,
    from_json,
    learns_text,
    more_steps,
    num_class_images,
    num_grids,
    of_run,
    phases,
    restore_conflicts,
    resume_conflicts,
    subjects,
    to_json,
    trainable_rules,
    variant,
)
from dreambooth_jax.config.flow_lora import flow_lora
from dreambooth_jax.config.plan import Plan, Settings, StageSettings
from dreambooth_jax.config.problems import ConfigError, Problem, suggest
from dreambooth_jax.config.resolve import changed, resolve

__all__ = [
    "CHOICES",
    "HOST_KEYS",
    "RANGES",
    "RESULT_FREE_KEYS",
    "STAGE_KEYS",
    "ConfigDict",
    "ConfigError",
    "Plan",
    "Problem",
    "Settings",
    "StageSettings",
    "base_config",
    "changed",
    "class_shares",
    "draws_class_images",
    "flatten",
    "flow_lora",
    "free_to_restore",
    "from_json",
    "learns_text",
    "library",
    "more_steps",
    "num_class_images",
    "num_grids",
    "of_run",
    "parse_flags",
    "phases",
    "resolve",
    "restore_conflicts",
    "resume_conflicts",
    "subjects",
    "suggest",
    "to_json",
    "trainable_rules",
    "validate",
    "variant",
]
