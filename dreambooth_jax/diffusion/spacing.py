"""Spacings: the levels a sampler visits, of a number of steps.

* `leading`, `linspace`, `trailing`: whole time steps of a table (Lin et al. 2023, table 2);
* `karras`: even in sigma^(1/7) (Karras et al. 2022, equation 5);
* `exponential`: even in log sigma (the same paper's limit of a large exponent);
* `lcm`: the steps at which consistency models are distilled (Luo et al. 2023, section 4.3).
"""

from collections.abc import Callable

import numpy as np

_RHO = 7.0
DISTILLED = 50  # time steps of a table that a consistency model is distilled at


def _karras(first: float, last: float, num_steps: int) -> np.ndarray:
    roots = np.linspace(first ** (1 / _RHO), last ** (1 / _RHO), num_steps)
    return roots**_RHO


# Name -> falling numbers `[S]` from the first to the last.
BY_SIGMA: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "karras": _karras,
    "exponential": lambda first, last, num_steps: np.geomspace(first, last, num_steps),
}


def _leading(total: int, num_steps: int, offset: int) -> np.ndarray:
    steps = np.arange(num_steps)[::-1] * (total // num_steps)
    return steps + min(offset, total - 1 - steps[0])


def _linspace(total: int, num_steps: int, offset: int) -> np.ndarray:
    del offset
    return np.linspace(0, total - 1, num_steps).round()[::-1]


def _trailing(total: int, num_steps: int, offset: int) -> np.ndarray:
    del offset
    # Cut, because rounding lets some numbers of steps yield one value too many.
    return np.round(np.arange(total, 0, -total / num_steps)[:num_steps]) - 1


def _lcm(total: int, num_steps: int, offset: int) -> np.ndarray:
    del offset
    count = min(DISTILLED, total)
    if num_steps > count:
        raise ValueError(
            f"sampler steps: found {num_steps}, expected 1 to {count} with the sampler 'lcm', for "
            "which 4 to 8 are usual. Write --config.sampler.num_steps=4."
        )
    distilled = (np.arange(count)[::-1] + 1) * (total // count) - 1
    return distilled[np.linspace(0, count, num_steps, endpoint=False).astype(int)]


# Name -> (T, S, offset) -> falling time steps `[S]` of a table.
WHOLE_STEPS: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
    "lcm": _lcm,
}


def table_times(
    name: str, log_ratios: np.ndarray, num_steps: int, *, offset: int = 0
) -> np.ndarray:
    """Falling time steps `[S]` of a table; those that `BY_SIGMA` spaces lie between whole ones.

    log_ratios: rising log(sigma / alpha) `[T]`; offset: of "leading".

    Raises:
      ValueError: the table ends in pure noise, whose ratio is infinite; too many steps for "lcm".
    """
    if name in WHOLE_STEPS:
        return WHOLE_STEPS[name](len(log_ratios), num_steps, offset)
    if not np.isfinite(log_ratios[-1]):
        raise ValueError(
            f"sampler.spacing = {name!r} has no levels on a schedule that ends in pure noise. "
            "Write --config.sampler.spacing=trailing."
        )
    first, last = (float(np.exp(log_ratios[at])) for at in (-1, 0))
    ratios = BY_SIGMA[name](first, last, num_steps)
    return np.interp(np.log(ratios), log_ratios, np.arange(len(log_ratios)))
