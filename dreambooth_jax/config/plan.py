"""The settings of a run as frozen dataclasses, one per group of `base_config` and one per stage.

`config.resolve` makes them, once. Fields have the names of the settings; `config/base.py` documents
each. Below `experiment/run.py` nothing else holds settings.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dreambooth_jax.adapt import AdaptSettings
from dreambooth_jax.data.images import LARGEST
from dreambooth_jax.optim import OptimSettings

Rules = tuple[tuple[str, Any], ...]
Resolution = int | tuple[int, int]  # pixels along a side, or height and width


def is_resolution(value: Any) -> bool:
    """Returns True for a `Resolution` of 1 to `LARGEST`, and for None, which is no setting."""
    sides = value if isinstance(value, tuple) else (value, value)
    sound = len(sides) == 2 and all(type(x) is int and 0 < x <= LARGEST for x in sides)
    return value is None or sound


@dataclasses.dataclass(frozen=True)
class Hub:
    """Access to models with a hub id."""

    cache_dir: str
    offline: bool


@dataclasses.dataclass(frozen=True)
class Subject:
    """The photos and names of the subjects."""

    images: str
    class_noun: str
    identifier: str
    others: tuple[tuple[str, str, str], ...]
    captions: str
    masks: str
    strict: bool
    held_out: int
    crop: tuple[float, ...]
    crops: int
    flip: bool


@dataclasses.dataclass(frozen=True)
class Data:
    """The shapes of photos."""

    buckets: int


@dataclasses.dataclass(frozen=True)
class Prior:
    """The class images."""

    kind: str
    num_images: int | None
    images: str
    batch_size: int
    negative_prompt: str
    folder: str


@dataclasses.dataclass(frozen=True)
class Train:
    """The loop of a stage: steps, rows, and the steps between its other tasks."""

    num_steps: int
    batch_size: int
    prior_fraction: float
    accumulate: int
    remat: str
    text_encoder: bool
    text_encoder_steps: int | None
    ema_decay: float
    max_bad_steps: int
    log_every: int
    held_out_every: int
    sample_every: int
    checkpoint_every: int
    max_to_keep: int
    keep_weights_every: int

    @property
    def rows_at_once(self) -> int:
        """Rows of one forward pass: a batch, divided by `accumulate`."""
        return self.batch_size // self.accumulate


@dataclasses.dataclass(frozen=True)
class Upscaler:
    """The second stage; `sample_aug_level` is a number in the settings of a stage."""

    num_steps: int | None
    batch_size: int | None
    accumulate: int | None
    learning_rate: float | None
    aug_level: int
    sample_aug_level: int | None


@dataclasses.dataclass(frozen=True)
class Adapt(AdaptSettings):
    """The leaves that are trained, and their form."""

    train: Rules
    lora_file: str
    num_vectors: int
    initial_word: str
    inversion_steps: int | None
    inversion_learning_rate: float
    frozen_dtype: str
    assistant: str

    @property
    def assistant_file(self) -> str:
        """The file of the assistant, "" without one."""
        return "" if self.assistant == "none" else self.assistant


@dataclasses.dataclass(frozen=True)
class Loss:
    """The denoising loss."""

    first_step: int
    last_step: int
    offset_noise: float
    outside_mask: float
    zero_terminal_snr: bool
    learned_variance: str
    min_snr_gamma: float
    density: str
    logit_mean: float
    logit_std: float
    mode_scale: float
    shift: float | None


@dataclasses.dataclass(frozen=True)
class Sampler:
    """The sampler; of a stage `num_steps` and `guidance_scale` are its own."""

    name: str
    num_steps: int
    guidance_scale: float
    spacing: str
    guidance_rescale: float
    guidance_interval: tuple[float, float]
    products: str
    threshold: str
    upscaler_num_steps: int
    upscaler_guidance_scale: float


@dataclasses.dataclass(frozen=True)
class Sample:
    """The prompt grid."""

    prompts: tuple[str, ...]
    negative_prompt: str
    prompts_file: str
    loras: tuple[tuple[str, float], ...]
    num_images: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """`--mode=benchmark`."""

    data: str
    subjects: tuple[str, ...]
    num_prompts: int
    keep_checkpoints: bool
    trial_steps: int


@dataclasses.dataclass(frozen=True)
class Fleet:
    """`--mode=fleet`."""

    table: str
    at_once: int


@dataclasses.dataclass(frozen=True)
class Edit:
    """`--mode=edit`."""

    images: str
    method: str
    masks: str
    soft: bool
    outside: bool
    prompts: tuple[str, ...]
    source_prompt: str
    word: str
    strength: float | None
    cutout: str
    cross_steps: float
    self_steps: float
    words: tuple[tuple[str, float], ...]
    local_blend: str
    num_images: int
    grow: int
    feather: int
    context: float
    untouched: bool


@dataclasses.dataclass(frozen=True)
class Restore:
    """The checkpoints that the other modes take, by stage."""

    base: int | None
    upscaler: int | None


@dataclasses.dataclass(frozen=True)
class Identify:
    """`--mode=identify`."""

    tokenizer: str
    count: int
    num_images: int
    num_drawn: int


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """The evaluation, and the place of each encoder's weights."""

    at_end: bool
    encoders: tuple[str, ...]
    prompts: tuple[str, ...]
    num_images: int | None
    generated: str
    untouched: str
    reference: str
    batch_size: int
    resamples: int
    dino_vits16: str
    clip_vitb32: str
    clip_vitl14: str
    efficientnet_lite0: str
    lpips_alex: str
    lpips_vgg: str


@dataclasses.dataclass(frozen=True)
class MeshSizes:
    """Devices along each axis; -1 is open."""

    data: int
    fsdp: int
    tensor: int


@dataclasses.dataclass(frozen=True)
class Sharding:
    """The split of leaves over the mesh."""

    rules: Rules
    min_bytes: int


@dataclasses.dataclass(frozen=True)
class Log:
    """Trackers and traces."""

    to: tuple[str, ...]
    project: str
    profile_at: int | None
    profile_steps: int


@dataclasses.dataclass(frozen=True)
class Compile:
    """The cache of compiled programs."""

    cache_dir: str


@dataclasses.dataclass(frozen=True)
class Precompile:
    """`--mode=precompile`."""

    topology: str
    num_slices: int
    programs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Export:
    """The exported files."""

    dtype: str
    single_file: bool
    push_to_hub: str
    private: bool
    push_part: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """All settings, group by group; `trained` are the stages to fine-tune (`config.stages`)."""

    seed: int
    dtype: str
    base_model: str
    base_settings: str
    vae_model: str
    clip_skip: int
    upscaler_model: str
    variant: str
    resolution: Resolution | None
    trained: tuple[str, ...]
    prior_loss_weight: float
    hub: Hub
    subject: Subject
    data: Data
    prior: Prior
    train: Train
    upscaler: Upscaler
    adapt: Adapt
    optim: OptimSettings
    loss: Loss
    sampler: Sampler
    sample: Sample
    benchmark: Benchmark
    fleet: Fleet
    edit: Edit
    restore: Restore
    identify: Identify
    evaluate: Evaluate
    mesh: MeshSizes
    sharding: Sharding
    log: Log
    compile: Compile
    precompile: Precompile
    export: Export


@dataclasses.dataclass(frozen=True)
class StageSettings(Settings):
    """The settings as one stage has them: the second stage's own stand in the first's places."""

    kind: str

    @property
    def is_trained(self) -> bool:
        """True where this stage is fine-tuned."""
        return self.kind in self.trained

    @property
    def model(self) -> str:
        """The name of the stage's base model."""
        return self.base_model if self.kind == "base" else self.upscaler_model

    @property
    def restore_step(self) -> int | None:
        """The step that the other modes take; None is the newest, 0 the untouched model."""
        return self.restore.base if self.kind == "base" else self.restore.upscaler


@dataclasses.dataclass(frozen=True)
class Plan(Settings):
    """The settings of a run, those of each stage, and all of them by dotted key (`flat`)."""

    stages: Mapping[str, StageSettings]
    flat: Mapping[str, Any]

    @property
    def to_train(self) -> tuple[StageSettings, ...]:
        """The settings of the stages to fine-tune, in order."""
        return tuple(self.stages[kind] for kind in self.trained)
