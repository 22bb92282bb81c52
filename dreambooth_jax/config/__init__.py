"""Every setting of a run. `configs/*.py` start from `base_config()` and set only what differs."""

from ml_collections import ConfigDict

from dreambooth_jax.config.base import (
    CHOICES,
    RANGES,
    RESTORE_KEYS,
    RESULT_FREE_KEYS,
    STAGE_KEYS,
    base_config,
    flatten,
)
from dreambooth_jax.config.checks import ConfigError, Problem, suggest, validate
from dreambooth_jax.config.command_line import parse_flags
from dreambooth_jax.config.derived import (
    class_shares,
    draws_class_images,
    for_stage,
    from_json,
    learns_text,
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

__all__ = [
    "CHOICES",
    "RANGES",
    "RESTORE_KEYS",
    "RESULT_FREE_KEYS",
    "STAGE_KEYS",
    "ConfigDict",
    "ConfigError",
    "Problem",
    "base_config",
    "class_shares",
    "draws_class_images",
    "flatten",
    "for_stage",
    "from_json",
    "learns_text",
    "num_class_images",
    "num_grids",
    "of_run",
    "parse_flags",
    "phases",
    "restore_conflicts",
    "resume_conflicts",
    "subjects",
    "suggest",
    "to_json",
    "trainable_rules",
    "validate",
    "variant",
]
