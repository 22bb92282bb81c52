"""The noise schedule: alpha_t and sigma_t of every time step, and what the network predicts.

Everything is read from `scheduler_config.json` of the model folder; a value that is not known is an
error, never a guess.

* `linear`: betas evenly spaced (Ho et al. 2020);
* `scaled_linear`: their square roots evenly spaced (Rombach et al. 2022);
* `squaredcos_cap_v2`: `alphas_cumprod(u) = cos²((u + 0.008)/1.008 · π/2)`, betas capped at 0.999
  (Nichol & Dhariwal 2021).
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

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

# How another library steps through the schedule; our samplers have settings of their own for it.
_SOLVER_KEYS = frozenset(
    "skip_prk_steps set_alpha_to_one lambda_min_clipped solver_order algorithm_type solver_type "
    "lower_order_final euler_at_final use_karras_sigmas use_exponential_sigmas use_beta_sigmas "
    "use_lu_lambdas use_flow_sigmas flow_shift final_sigmas_type interpolation_type sigma_min "
    "sigma_max timestep_type time_shift_type use_dynamic_shifting shift_terminal predict_x0 "
    "solver_p disable_corrector".split()
)
# Keys that shape alphas_cumprod.
_BETA_KEYS = frozenset(
    "num_train_timesteps beta_schedule beta_start beta_end trained_betas "
    "rescale_betas_zero_snr".split()
)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A discrete variance-preserving schedule of `num_steps` steps.

    alphas_cumprod: float64 `[T]`, alpha_t². The other fields are keys of `scheduler_config.json`.
    """

    alphas_cumprod: np.ndarray
    prediction_type: str = "epsilon"
    variance_type: str = "fixed_small"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995
    sample_max_value: float = 1.0
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    timestep_spacing: str = "leading"
    steps_offset: int = 0

    @property
    def num_steps(self) -> int:
        """T, the number of time steps."""
        return len(self.alphas_cumprod)

    def alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        """alpha_t and sigma_t, float32, in the shape of `t`; `t = -1` is the clean end: (1, 0)."""
        alphas = np.append(np.sqrt(self.alphas_cumprod), 1.0).astype(np.float32)
        sigmas = np.append(np.sqrt(1 - self.alphas_cumprod), 0.0).astype(np.float32)
        return jnp.asarray(alphas)[t], jnp.asarray(sigmas)[t]

    def snr(self, t: Array) -> Array:
        """Signal-to-noise ratio alpha_t² / sigma_t², float32."""
        ratio = self.alphas_cumprod / np.maximum(1 - self.alphas_cumprod, 1e-20)
        return jnp.asarray(ratio.astype(np.float32))[t]

    def zero_terminal_snr(self) -> "Schedule":
        """The same, moved and scaled to end in pure noise, where its samplers start ("trailing").

        Lin et al. 2023 (arXiv:2305.08891), algorithm 1 and section 3.3.

        Raises:
          ValueError: the network says epsilon, which says nothing about x0 in pure noise.
        """
        if self.prediction_type == "epsilon":
            raise ValueError(
                "loss.zero_terminal_snr = True needs a model whose prediction_type is "
                "'v_prediction' or 'sample'; this one's is 'epsilon', which says nothing about x0 "
                "in pure noise. Write --config.loss.zero_terminal_snr=False."
            )
        whole = self.alphas_cumprod
        ending = whole if whole[-1] == 0 else _zero_terminal_snr(whole)
        return dataclasses.replace(self, alphas_cumprod=ending, timestep_spacing="trailing")

    def times(self, num_steps: int) -> np.ndarray:
        """The time steps a sampler visits, int32 `[S+1]`, falling, ending in -1 (clean).

        They are spaced as the file says.

        Raises:
          ValueError: fewer than 1 or more than T steps.
        """
        total = self.num_steps
        if not 1 <= num_steps <= total:
            raise ValueError(
                f"sampler steps: found {num_steps}, expected 1 to {total} (the schedule's own)."
            )
        if self.timestep_spacing == "leading":
            steps = np.arange(num_steps)[::-1] * (total // num_steps)
            times = steps + min(self.steps_offset, total - 1 - steps[0])
        elif self.timestep_spacing == "linspace":
            times = np.linspace(0, total - 1, num_steps).round()[::-1]
        else:
            # Cut, because rounding lets some numbers of steps yield one value too many.
            times = np.round(np.arange(total, 0, -total / num_steps)[:num_steps]) - 1
        return np.append(times, -1).astype(np.int32)


def _zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """The same moved and scaled to end in pure noise (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def from_config(raw: Mapping[str, Any]) -> Schedule:
    """The schedule that `scheduler_config.json` describes.

    Raises:
      ValueError: all keys or values that are not known, in one message.
    """
    fields = {field.name for field in dataclasses.fields(Schedule)}
    problems = []
    for key, choices in (
        ("beta_schedule", tuple(BETAS)),
        ("prediction_type", PREDICTION_TYPES),
        ("variance_type", (None, *VARIANCE_TYPES)),
        ("timestep_spacing", SPACINGS),
    ):
        value = raw.get(key, choices[0])
        if value not in choices:
            near = difflib.get_close_matches(str(value), [str(c) for c in choices], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            problems.append(f"{key} = {value!r}; known: {', '.join(map(repr, choices))}.{hint}")
    known = fields | _BETA_KEYS | _SOLVER_KEYS
    for key, value in raw.items():
        if key not in known and not key.startswith("_"):
            problems.append(f"{key} = {value!r}; the key is not known")
    if problems:
        raise ValueError("scheduler_config.json cannot be honoured:\n  " + "\n  ".join(problems))

    count = raw.get("num_train_timesteps", 1000)
    if raw.get("trained_betas") is not None:
        betas = np.asarray(raw["trained_betas"], np.float64)
    else:
        make = BETAS[raw.get("beta_schedule", "linear")]
        betas = make(count, raw.get("beta_start", 1e-4), raw.get("beta_end", 0.02))
    zero = raw.get("rescale_betas_zero_snr", False)
    alphas_cumprod = np.cumprod(1 - betas)
    alphas_cumprod = _zero_terminal_snr(alphas_cumprod) if zero else alphas_cumprod
    if alphas_cumprod[-1] <= 0 and raw.get("prediction_type", "epsilon") == "epsilon":
        raise ValueError(
            "scheduler_config.json: rescale_betas_zero_snr with prediction_type 'epsilon' cannot "
            "work: at the last step the sample is pure noise and epsilon says nothing about x0. "
            "Use 'v_prediction' or 'sample'."
        )
    values = {key: raw[key] for key in fields if raw.get(key) is not None}
    # Only these two families clip to [-1, 1] when their file does not say; the others know no such
    # key.
    clips = str(raw.get("_class_name", "DDPM")).startswith(("DDPM", "DDIM"))
    return Schedule(alphas_cumprod=alphas_cumprod, **{"clip_sample": clips, **values})
