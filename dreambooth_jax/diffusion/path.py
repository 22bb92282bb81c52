"""Noise paths: the signal and the noise of each level, and which levels are trained and sampled.

    xt = alpha_t x0 + sigma_t noise

* `BetaTable`: a table of betas (Ho et al. 2020). A level t is a time step, 0 to T - 1, or lies
  between two, where log(sigma / alpha) is linear; the clean end is -1.
* `Flow`: the straight line from x0 to noise (Lipman et al. 2023; Esser et al. 2024). A level t is
  sigma itself, 0 (clean) to 1 (pure noise); alpha is 1 - sigma.

Levels are float32 everywhere; a path turns them into what its networks are told.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import spacing

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Density:
    """Distribution of the levels that training draws on a flow.

    name: one of `DENSITIES`, or "model": logit-normal on a flow, uniform steps on a table of betas.
    mean, spread: those of logit u for "logit_normal"; a positive mean draws noisier levels.
    scale: of "mode", -1 to 2 / (π - 2); positive prefers the middle.
    shift: s in u → s·u / (1 + (s - 1)·u); None takes the model's.
    """

    name: str = "model"
    mean: float = 0.0
    spread: float = 1.0
    scale: float = 1.29
    shift: float | None = None


MODEL_DENSITY = Density()

# Name -> quantile function of u, increasing in the probability p (Esser et al. 2024, section 3.1).
DENSITIES: dict[str, Callable[[Array, Density], Array]] = {
    "uniform": lambda p, density: p,
    "logit_normal": lambda p, density: jax.nn.sigmoid(
        density.mean + density.spread * jax.scipy.special.ndtri(p)
    ),
    "mode": lambda p, density: p - density.scale * (jnp.square(jnp.sin(jnp.pi / 2 * p)) - p),
    "cosmap": lambda p, density: 1 - 1 / (1 + jnp.tan(jnp.pi / 2 * p)),
}


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class NoisePath(abc.ABC):
    """Levels between clean data and noise, and the meaning of a network's output along them.

    The fields are keys of `scheduler_config.json`.
    """

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
    @abc.abstractmethod
    def num_steps(self) -> int:
        """T, the number of time steps by which settings name levels."""

    @abc.abstractmethod
    def alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        """alpha_t and sigma_t, float32, in the shape of the levels `t`."""

    @abc.abstractmethod
    def snr(self, t: Array) -> Array:
        """Signal-to-noise ratio alpha_t² / sigma_t², float32."""

    @abc.abstractmethod
    def told(self, t: Array) -> Array:
        """The number that the network is given for the levels `t`, float32."""

    @abc.abstractmethod
    def times(self, num_steps: int) -> np.ndarray:
        """The levels a sampler visits, float32 `[S+1]`, falling, ending at the clean end.

        Raises:
          ValueError: fewer than 1 or more than T steps.
        """

    @abc.abstractmethod
    def draw(
        self, key: Array, shape: tuple[int, ...], *, steps: tuple[int, int], density: Density
    ) -> Array:
        """Random levels for training, float32; `steps` are the first and last time step allowed."""

    @abc.abstractmethod
    def middles(self, count: int, *, steps: tuple[int, int], density: Density) -> np.ndarray:
        """The middles of `count` equally probable parts of what `draw` gives, float32 `[count]`."""

    @abc.abstractmethod
    def zero_terminal_snr(self) -> Self:
        """The same path, changed to end in pure noise (Lin et al. 2023).

        Raises:
          ValueError: it cannot be changed so.
        """

    def at(self, height: int, width: int) -> Self:
        """The path for an x0 of this height and width."""
        del height, width
        return self

    def spaced(self, name: str) -> Self:
        """The path whose samplers visit levels of another spacing; "model" is its own."""
        return self if name == "model" else dataclasses.replace(self, timestep_spacing=name)

    def _check_count(self, num_steps: int) -> None:
        if not 1 <= num_steps <= self.num_steps:
            raise ValueError(
                f"sampler steps: found {num_steps}, expected 1 to {self.num_steps} (the "
                "model's own)."
            )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class BetaTable(NoisePath):
    """A discrete variance-preserving path of `num_steps` time steps.

    alphas_cumprod: float64 `[T]`, alpha_t².
    """

    alphas_cumprod: np.ndarray

    @property
    def num_steps(self) -> int:
        """T, the number of time steps."""
        return len(self.alphas_cumprod)

    def alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        """alpha_t and sigma_t, float32, in the shape of `t`; `t = -1` is the clean end: (1, 0)."""
        alphas = np.append(np.sqrt(self.alphas_cumprod), 1.0).astype(np.float32)
        sigmas = np.append(np.sqrt(1 - self.alphas_cumprod), 0.0).astype(np.float32)
        step = self.step(t)
        part = jnp.asarray(t, jnp.float32) - step  # of the way to the next step; 0 in training
        ratios = jnp.asarray(np.minimum(self.log_ratios, 40.0).astype(np.float32))
        low, high = ratios[step], ratios[jnp.minimum(step + 1, self.num_steps - 1)]
        log_snr = -2 * (low + part * (high - low))
        between = jax.nn.sigmoid(log_snr), jax.nn.sigmoid(-log_snr)  # alpha², sigma²
        alpha = jnp.where(part > 0, jnp.sqrt(between[0]), jnp.asarray(alphas)[step])
        return alpha, jnp.where(part > 0, jnp.sqrt(between[1]), jnp.asarray(sigmas)[step])

    @property
    def log_ratios(self) -> np.ndarray:
        """log(sigma / alpha) of every time step, float64 `[T]`, rising; infinite in pure noise."""
        with np.errstate(divide="ignore"):
            return 0.5 * (np.log1p(-self.alphas_cumprod) - np.log(self.alphas_cumprod))

    def snr(self, t: Array) -> Array:
        """Signal-to-noise ratio alpha_t² / sigma_t², float32."""
        ratio = self.alphas_cumprod / np.maximum(1 - self.alphas_cumprod, 1e-20)
        return jnp.asarray(ratio.astype(np.float32))[self.step(t)]

    def step(self, t: Array) -> Array:
        """The levels as indices into a table of time steps, int32."""
        return jnp.asarray(t).astype(jnp.int32)

    def told(self, t: Array) -> Array:
        """The time step itself."""
        return t

    def times(self, num_steps: int) -> np.ndarray:
        """The time steps a sampler visits, float32 `[S+1]`, falling, ending in -1 (clean).

        They are spaced as the file says, or as `spaced`.

        Raises:
          ValueError: fewer than 1 or more than T steps; the spacing has no such levels.
        """
        self._check_count(num_steps)
        name, offset = self.timestep_spacing, self.steps_offset
        times = spacing.table_times(name, self.log_ratios, num_steps, offset=offset)
        return np.append(times, -1).astype(np.float32)

    def draw(
        self, key: Array, shape: tuple[int, ...], *, steps: tuple[int, int], density: Density
    ) -> Array:
        """Time steps, each with the same probability; `density` is for flows."""
        del density
        first, last = steps
        stop = min(last + 1, self.num_steps)
        return jax.random.randint(key, shape, first, stop).astype(jnp.float32)

    def middles(self, count: int, *, steps: tuple[int, int], density: Density) -> np.ndarray:
        """The middles of `count` equal parts of the time steps that are drawn."""
        del density
        first, last = steps
        stop = min(last + 1, self.num_steps)
        middles = first + (stop - first) * (np.arange(count) + 0.5) / count
        return middles.astype(np.int32).astype(np.float32)

    def zero_terminal_snr(self) -> "BetaTable":
        """The same, moved and scaled to end in pure noise, where its samplers start ("trailing").

        Lin et al. 2023 (arXiv:2305.08891), algorithm 1 and section 3.3.

        Raises:
          ValueError: the network predicts epsilon, which does not determine x0 in pure noise.
        """
        if self.prediction_type == "epsilon":
            raise ValueError(
                "loss.zero_terminal_snr = True needs a model whose prediction_type is "
                "'v_prediction' or 'sample'; this one's is 'epsilon', which says nothing about x0 "
                "in pure noise. Write --config.loss.zero_terminal_snr=False."
            )
        whole = self.alphas_cumprod
        ending = whole if whole[-1] == 0 else ending_in_noise(whole)
        return dataclasses.replace(self, alphas_cumprod=ending, timestep_spacing="trailing")


def ending_in_noise(alphas_cumprod: np.ndarray) -> np.ndarray:
    """The table moved and scaled to end in pure noise (Lin et al. 2023, algorithm 1)."""
    root = np.sqrt(alphas_cumprod)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


@dataclasses.dataclass(frozen=True)
class TokenShift:
    """The shift of a flow that grows with the number of tokens: μ is linear in it.

    kind: "exponential" shifts by s = exp(μ), "linear" by s = μ.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096
    kind: str = "exponential"

    def __call__(self, tokens: int, num_steps: int | None) -> float:
        """The shift s for a sample of `tokens` tokens, in sampling and in training alike."""
        del num_steps
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        mu = self.base_shift + slope * (tokens - self.base_tokens)
        return math.exp(mu) if self.kind == "exponential" else mu


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Flow(NoisePath):
    """The straight path `xt = (1 - sigma) x0 + sigma noise`; a level is sigma.

    Levels are drawn and visited as u in [0, 1], shifted to s·u / (1 + (s - 1)·u), which adds ln s
    to the logit of u.

    Fields:
      num_steps: T; time steps are thousandths where it is 1000, and the network is told T·sigma.
      shift: s, where `token_shift` is None.
      token_shift: (tokens, number of sampling steps or None in training) -> s.
      shift_terminal: the last level a sampler visits before the clean end, or None.
      timestep_spacing: of u: "trailing" from 1 to 1/S; "linspace" from 1 to 1/T, which is shifted
        once more where the shift is fixed, as the scheduler's class has it. Of sigma, between the
        same two ends as "linspace": "karras" and "exponential".
      patch: rows and columns of x0 in one token.
      tokens: of the sample, set by `at`.
    """

    prediction_type: str = "flow"
    clip_sample: bool = False
    timestep_spacing: str = "linspace"
    num_steps: int = 1000
    shift: float = 1.0
    token_shift: Callable[[int, int | None], float] | None = None
    shift_terminal: float | None = None
    patch: int = 2
    tokens: int | None = None

    def alpha_sigma(self, t: Array) -> tuple[Array, Array]:
        """1 - sigma and sigma, float32."""
        sigma = jnp.asarray(t, jnp.float32)
        return 1 - sigma, sigma

    def snr(self, t: Array) -> Array:
        """Signal-to-noise ratio (1 - sigma)² / sigma², float32; finite at the clean end."""
        alpha, sigma = self.alpha_sigma(t)
        return jnp.square(alpha / jnp.maximum(sigma, 1e-8))

    def told(self, t: Array) -> Array:
        """T·sigma: 1000 in pure noise; not a whole number."""
        return jnp.asarray(t, jnp.float32) * self.num_steps

    def at(self, height: int, width: int) -> "Flow":
        """The path for an x0 of this height and width, whose tokens a `token_shift` counts."""
        tokens = (height // self.patch) * (width // self.patch)
        return dataclasses.replace(self, tokens=tokens)

    def shift_of(self, num_steps: int | None = None) -> float:
        """The shift s of a sampler with `num_steps` steps, or of training (None)."""
        if self.token_shift is None:
            return self.shift
        if self.tokens is None:
            raise ValueError("this flow's shift depends on the size: call at(height, width) first.")
        return self.token_shift(self.tokens, num_steps)

    def times(self, num_steps: int) -> np.ndarray:
        """The levels a sampler visits, float32 `[S+1]`, falling from 1 to 0.

        Raises:
          ValueError: fewer than 1 or more than T steps.
        """
        self._check_count(num_steps)
        shift, name = self.shift_of(num_steps), self.timestep_spacing
        if name not in ("linspace", "trailing", *spacing.BY_SIGMA):
            raise ValueError(
                f"sampler.spacing = {name!r} is for tables of betas; this model is a flow. Write "
                "--config.sampler.spacing=model."
            )
        last = 1 / num_steps
        if name != "trailing":
            last = 1 / self.num_steps
            last = last if self.token_shift is not None else _shifted(last, shift)
        levels = _shifted(np.linspace(1, last, num_steps), shift)
        if self.shift_terminal and levels[-1] < 1:
            levels = 1 - (1 - levels) * (1 - self.shift_terminal) / (1 - levels[-1])
        if name in spacing.BY_SIGMA:
            levels = spacing.BY_SIGMA[name](levels[0], levels[-1], num_steps)
        return np.append(levels, 0).astype(np.float32)

    def draw(
        self, key: Array, shape: tuple[int, ...], *, steps: tuple[int, int], density: Density
    ) -> Array:
        """Levels from `density`, cut off outside steps/T to (last + 1)/T."""
        low, high = self._probabilities(steps, density)
        return self._quantile(jax.random.uniform(key, shape, minval=low, maxval=high), density)

    def middles(self, count: int, *, steps: tuple[int, int], density: Density) -> np.ndarray:
        """The levels at the middles of `count` equally probable parts of the density."""
        low, high = self._probabilities(steps, density)
        p = low + (high - low) * (np.arange(count) + 0.5) / count
        return np.asarray(self._quantile(jnp.asarray(p, jnp.float32), density))

    def zero_terminal_snr(self) -> "Flow":
        """Refused: a flow ends in pure noise as it is.

        Raises:
          ValueError: always.
        """
        raise ValueError(
            "loss.zero_terminal_snr = True is for tables of betas; this model is a flow, which "
            "ends in pure noise as it is. Write --config.loss.zero_terminal_snr=False."
        )

    def _quantile(self, p: Array, density: Density) -> Array:
        name = "logit_normal" if density.name == "model" else density.name
        shift = self.shift_of() if density.shift is None else density.shift
        return _shifted(DENSITIES[name](p, density), shift)

    def _probabilities(self, steps: tuple[int, int], density: Density) -> tuple[float, float]:
        """The probabilities of a level below the first and below the end of the last step."""
        first, last = steps
        bounds = [first / self.num_steps, min((last + 1) / self.num_steps, 1.0)]
        found = [0.0, 1.0]
        with jax.ensure_compile_time_eval():
            for i, bound in enumerate(bounds):
                if bound in (0, 1):
                    continue
                low, high = 0.0, 1.0
                for _ in range(24):
                    middle = (low + high) / 2
                    below = float(self._quantile(jnp.float32(middle), density)) < bound
                    low, high = (middle, high) if below else (low, middle)
                found[i] = (low + high) / 2
        # Both ends of a normal variable lie at infinity.
        return max(found[0], 1e-6), min(found[1], 1 - 1e-6)


def _shifted(u: Any, shift: float) -> Any:
    """Returns u with ln(shift) added to its logit."""
    return shift * u / (1 + (shift - 1) * u)
