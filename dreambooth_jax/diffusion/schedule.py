"""The noise path that a `scheduler_config.json` describes.

The file is judged by the class that wrote it: a class that is not implemented is an error, and so
is a value that is not known; a key that is missing has that class's default.

* `linear`: betas evenly spaced (Ho et al. 2020);
* `scaled_linear`: their square roots evenly spaced (Rombach et al. 2022);
* `squaredcos_cap_v2`: `alphas_cumprod(u) = cos²((u + 0.008)/1.008 · π/2)`, betas capped at 0.999
  (Nichol & Dhariwal 2021).
"""

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dreambooth_jax.diffusion.path import (
    BetaTable,
    Flow,
    NoisePath,
    TokenShift,
    ending_in_noise,
)

# Values of a table's file; a flow's network predicts the velocity, "flow".
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "learned_range")
SPACINGS = ("leading", "linspace", "trailing")


def _cosine_betas(num_steps: int, beta_start: float, beta_end: float) -> np.ndarray:
    del beta_start, beta_end  # this schedule has no end points
    u = np.arange(num_steps + 1) / num_steps
    remaining = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - remaining[1:] / remaining[:-1], 0.999)


BETAS: dict[str, Callable[[int, float, float], np.ndarray]] = {
    "linear": lambda n, start, end: np.linspace(start, end, n),
    "scaled_linear": lambda n, start, end: np.linspace(start**0.5, end**0.5, n) ** 2,
    "squaredcos_cap_v2": _cosine_betas,
}

_COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "clip_sample": False,
}
_CLIPPING = {"timestep_spacing": "leading", "clip_sample": True}
_SMALL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012}
_FEW_STEPS = {"beta_schedule": "scaled_linear", "timestep_spacing": "leading", **_SMALL_BETAS}
# Class of the scheduler -> its defaults, where they are not the common ones.
TABLES: dict[str, dict[str, Any]] = {
    "DDPMScheduler": _CLIPPING,
    "DDPMParallelScheduler": _CLIPPING,
    "DDIMScheduler": _CLIPPING,
    "DDIMParallelScheduler": _CLIPPING,
    "PNDMScheduler": {"timestep_spacing": "leading"},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "HeunDiscreteScheduler": _SMALL_BETAS,
    "KDPM2DiscreteScheduler": _SMALL_BETAS,
    "KDPM2AncestralDiscreteScheduler": _SMALL_BETAS,
    "DPMSolverSDEScheduler": _SMALL_BETAS,
    "DPMSolverMultistepScheduler": {},
    "DPMSolverSinglestepScheduler": {},
    "UniPCMultistepScheduler": {},
    "DEISMultistepScheduler": {},
    "SASolverScheduler": {},
    "LCMScheduler": _FEW_STEPS,
    "TCDScheduler": _FEW_STEPS,
}
FLOW = "FlowMatchEulerDiscreteScheduler"

# How another library steps through the schedule; our samplers have settings of their own for it.
_SOLVER_KEYS = frozenset(
    "skip_prk_steps set_alpha_to_one lambda_min_clipped solver_order algorithm_type solver_type "
    "lower_order_final euler_at_final use_karras_sigmas use_exponential_sigmas use_beta_sigmas "
    "use_lu_lambdas use_flow_sigmas flow_shift final_sigmas_type interpolation_type sigma_min "
    "sigma_max timestep_type time_shift_type use_dynamic_shifting shift_terminal predict_x0 "
    "solver_p disable_corrector noise_sampler_seed original_inference_steps timestep_scaling "
    "tau_func predictor_order corrector_order".split()
)
# Keys that shape alphas_cumprod.
_BETA_KEYS = frozenset(
    "num_train_timesteps beta_schedule beta_start beta_end trained_betas "
    "rescale_betas_zero_snr".split()
)
# Numbers of any file: whether they are whole, and from what to what. Published steps are 1000.
_NUMBERS: dict[str, tuple[bool, float, float]] = {
    "num_train_timesteps": (True, 1, 10**5),
    "steps_offset": (True, 0, 100),
    "sample_max_value": (False, 0, 10**6),
    "clip_sample_range": (False, 1e-6, 10**6),
    "shift": (False, 1e-6, 10**3),
    "base_shift": (False, -10, 10),
    "max_shift": (False, -10, 10),
    "base_image_seq_len": (True, 1, 10**7),
    "max_image_seq_len": (True, 1, 10**7),
    "shift_terminal": (False, 0, 1),
}
_SWITCHES = (
    "clip_sample",
    "thresholding",
    "rescale_betas_zero_snr",
    "use_dynamic_shifting",
)
_SHOWN = 60  # characters of a value
# Key of a table's file -> the only value that keeps it a table of betas.
_ONLY: dict[str, Any] = {"use_flow_sigmas": False, "timestep_type": "discrete"}
_FLOW_KEYS = frozenset(
    "num_train_timesteps shift use_dynamic_shifting base_shift max_shift base_image_seq_len "
    "max_image_seq_len shift_terminal time_shift_type".split()
)
# Keys of a flow's file that would make another path of it.
_FLOW_OFF = (
    "invert_sigmas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "stochastic_sampling",
)


def from_config(raw: Mapping[str, Any]) -> NoisePath:
    """The path that `scheduler_config.json` describes; without `_class_name` it is DDPM's.

    Raises:
      ValueError: the class is not implemented; or all keys or values that are not known, in one
        message.
    """
    name = raw.get("_class_name", "DDPMScheduler")
    if name == FLOW:
        return _flow(raw)
    if name not in TABLES:
        near = difflib.get_close_matches(str(name), [*TABLES, FLOW], n=1, cutoff=0.8)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"scheduler_config.json: found _class_name = {name!r}, expected a table of betas "
            f"({', '.join(TABLES)}) or a flow ({FLOW}).{hint} Save the model with one of these "
            "schedulers if it was trained with the same noise, or take another base model."
        )
    return _table({**_COMMON, **TABLES[name], **{k: v for k, v in raw.items() if v is not None}})


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ValueError("scheduler_config.json cannot be honoured:\n  " + "\n  ".join(problems))


def _unknown(raw: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    return [
        f"{key} = {value!r}; the key is not known"
        for key, value in raw.items()
        if key not in known and not key.startswith("_")
    ]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _wrong_numbers(raw: Mapping[str, Any]) -> list[str]:
    """The problems of numbers of any path that are none, or out of range."""
    found = []
    for key, (whole, low, high) in _NUMBERS.items():
        value = raw.get(key)
        sound = type(value) is int if whole else _is_number(value)
        if value is not None and not (sound and low <= value <= high):
            kind = "a whole number" if whole else "a number"
            found.append(f"{key} = {_shown(value)}; expected {kind} from {low:g} to {high:g}")
    switches = [key for key in _SWITCHES if raw.get(key) is not None]
    found += [
        f"{key} = {_shown(raw[key])}; expected true or false"
        for key in switches
        if not isinstance(raw[key], bool)
    ]
    return found


def _table(raw: Mapping[str, Any]) -> BetaTable:
    fields = {field.name for field in dataclasses.fields(BetaTable)} - {"alphas_cumprod"}
    problems = []
    for key, choices in (
        ("beta_schedule", tuple(BETAS)),
        ("prediction_type", PREDICTION_TYPES),
        ("variance_type", VARIANCE_TYPES),
        ("timestep_spacing", SPACINGS),
    ):
        value = raw.get(key, choices[0])
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            if "flow" in str(value):
                hint = f" A flow is read from the file of a {FLOW}, with its shift."
            problems.append(f"{key} = {value!r}; known: {', '.join(map(repr, choices))}.{hint}")
    for key, only in _ONLY.items():
        if raw.get(key, only) != only:
            problems.append(
                f"{key} = {raw[key]!r}; with it the levels are not those of a table of betas: "
                f"expected {only!r}. A flow is read from the file of a {FLOW}, with its shift."
            )
    trained = raw.get("trained_betas")
    for key in ("beta_start", "beta_end", "dynamic_thresholding_ratio"):
        if key in raw and not (_is_number(raw[key]) and 0 <= raw[key] <= 1):
            problems.append(f"{key} = {_shown(raw[key])}; expected a number from 0 to 1")
    if trained is not None and not (
        isinstance(trained, list)
        and trained
        and all(_is_number(beta) and 0 <= beta <= 1 for beta in trained)
    ):
        problems.append("trained_betas: expected a list of numbers from 0 to 1")
    problems += _wrong_numbers(raw)
    _refuse(problems + _unknown(raw, frozenset(fields | _BETA_KEYS | _SOLVER_KEYS)))

    if trained is not None:
        betas = np.asarray(trained, np.float64)
    else:
        make = BETAS[raw["beta_schedule"]]
        betas = make(raw["num_train_timesteps"], raw["beta_start"], raw["beta_end"])
    alphas_cumprod = np.cumprod(1 - betas)
    if raw.get("rescale_betas_zero_snr", False):
        alphas_cumprod = ending_in_noise(alphas_cumprod)
    if alphas_cumprod[-1] <= 0 and raw["prediction_type"] == "epsilon":
        raise ValueError(
            "scheduler_config.json: rescale_betas_zero_snr with prediction_type 'epsilon' cannot "
            "work: at the last step the sample is pure noise and epsilon says nothing about x0. "
            "Use 'v_prediction' or 'sample'."
        )
    return BetaTable(
        alphas_cumprod=alphas_cumprod, **{key: raw[key] for key in fields if key in raw}
    )


def _flow(raw: Mapping[str, Any]) -> Flow:
    problems = [
        f"{key} = {raw[key]!r}; expected false: with it the levels are not those of a flow from "
        "data to noise that is implemented. Set it to false if the model was trained without."
        for key in _FLOW_OFF
        if raw.get(key)
    ]
    problems += _wrong_numbers(raw)
    kind = raw.get("time_shift_type") or "exponential"
    if kind not in ("exponential", "linear"):
        problems.append(f"time_shift_type = {kind!r}; known: 'exponential', 'linear'.")
    _refuse(problems + _unknown(raw, _FLOW_KEYS | frozenset(_FLOW_OFF)))

    def given(key: str, default: Any) -> Any:
        return default if raw.get(key) is None else raw[key]

    usual = TokenShift()
    by_tokens = TokenShift(
        base_shift=float(given("base_shift", usual.base_shift)),
        max_shift=float(given("max_shift", usual.max_shift)),
        base_tokens=int(given("base_image_seq_len", usual.base_tokens)),
        max_tokens=int(given("max_image_seq_len", usual.max_tokens)),
        kind=kind,
    )
    if by_tokens.base_tokens == by_tokens.max_tokens:
        found = f"base_image_seq_len = max_image_seq_len = {by_tokens.max_tokens}"
        _refuse([f"{found}; expected two numbers of tokens"])
    return Flow(
        num_steps=int(given("num_train_timesteps", 1000)),
        shift=float(given("shift", 1.0)),
        token_shift=by_tokens if raw.get("use_dynamic_shifting") else None,
        shift_terminal=raw.get("shift_terminal") or None,
    )
