"""Rules of edits: pairs of a source and its edit in one batch, inversion, amounts by region.

All are combinators over a sampler's rule. Rows of a pair stand beside each other, the source first.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import process, sampler
from dreambooth_jax.diffusion.path import NoisePath
from dreambooth_jax.diffusion.sampler import Denoise, Rule, Step

Array = jax.Array


def _pairs(x: Array) -> tuple[Array, Array]:
    """Sources and edits, of rows `[2P,…]`."""
    both = x.reshape(-1, 2, *x.shape[1:])
    return both[:, 0], both[:, 1]


def _rows(source: Array, edit: Array) -> Array:
    return jnp.stack([source, edit], 1).reshape(-1, *source.shape[1:])


def of_rows(rule: Rule, rows: Mapping[str, Array], noise: Array, levels: Array) -> Rule:
    """The rule as the rows of a batch ask for it.

    Args:
      rows: `follow` `[2P,H,W,C]`, an x0 along which sources run (`followed`); `differ`
        `[2P,H,W,1]`, where edits differ from their sources (`beside`); `mask` and `known`
        (`sampler.blended`), or `amounts` and, but for edits of sources, `known` (`by_amount`).
        Those that are there apply in this order.
      noise: `[B,H,W,C]`, that the sampler starts from.
      levels: of the sampler (`ratios`).
    """
    if "follow" in rows:
        rule = followed(rule, rows["follow"])
    if "differ" in rows:
        rule = beside(rule, rows["differ"])
    if "mask" in rows:
        rule = sampler.blended(rule, rows["mask"], rows["known"], noise)
    if "amounts" in rows:
        rule = by_amount(rule, rows["amounts"], rows.get("known"), noise, levels)
    return rule


def followed(rule: Rule, known: Array) -> Rule:
    """The rule on pairs whose source runs along noised copies of a known x0, and so ends in it.

    With x* along that path, the step's error on the source is c = x*_s - Φ(x*_t); the edit is moved
    by the same: x_s = Φ(x_t) + c. An edit with its source's prompt so ends in x0 for any network
    and any rule. The noise of x* is drawn anew at each level (edit-friendly inversion,
    Huberman-Spiegelglas et al. 2023); on a flow with `ddim` that is FlowEdit (Kulikov et al. 2024).

    Args:
      known: `[2P,H,W,C]`, x0 of both rows of a pair.
    """

    def inside(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
        drawn = rule(x, x0_hat, noise_hat, step)
        source, edit = _pairs(drawn)
        along, _ = _pairs(step.alpha_s * known + step.sigma_s * step.noise)
        # In this order equal rows give the path itself, bit for bit.
        return _rows(along, along + (edit - source))

    return inside


def retraced(rule: Rule, trajectory: Array, levels: Array) -> Rule:
    """The rule on pairs whose source runs back along a trajectory, and so ends where it began.

    The edit is left alone: it shares its source's attention (direct inversion, Ju et al. 2023).

    Args:
      trajectory: `[S+1,P,H,W,C]` of the sources, as `inverted` returns it.
      levels: float32 `[S+1]`, the ratio alpha / sigma of each of its levels.
    """

    def inside(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
        _, edit = _pairs(rule(x, x0_hat, noise_hat, step))
        return _rows(trajectory[_index(levels, step.alpha_s, step.sigma_s)], edit)

    return inside


def beside(rule: Rule, mask: Array) -> Rule:
    """The rule on pairs whose edit differs from its source inside a mask alone.

    mask: `[2P,H,W,1]`, 1 where the edit is itself, 0 where it is its source.
    """

    def inside(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
        source, edit = _pairs(rule(x, x0_hat, noise_hat, step))
        share = _pairs(mask)[1]
        mixed = source + share * (edit - source)
        return _rows(source, jnp.where(share >= 1, edit, mixed))

    return inside


def by_amount(rule: Rule, amounts: Array, known: Array | None, noise: Array, levels: Array) -> Rule:
    """The rule with a known part whose share of the steps is given for each pixel.

    A pixel of amount m takes the last S·m of S steps; before, it is the known x0 with the noise of
    the level (Levin & Fried 2023). Equal amounts are image-to-image of that strength.

    Args:
      amounts: `[B,H,W,1]` in [0, 1].
      known, noise: `[B,H,W,C]`. None: the edits of pairs are their sources before, which run along
        the known x0 with other noise at every level.
      levels: float32 `[S+1]`, the ratio alpha / sigma of each level (`ratios`).
    """
    count = len(levels) - 1

    def inside(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
        drawn = rule(x, x0_hat, noise_hat, step)
        if known is None:
            source, _ = _pairs(drawn)
            kept = _rows(source, source)
        else:
            kept = step.alpha_s * known + step.sigma_s * noise
        begin = count - jnp.round(count * amounts)
        return jnp.where(begin <= _index(levels, step.alpha_t, step.sigma_t), drawn, kept)

    return inside


def ratios(path: NoisePath, times: np.ndarray) -> Array:
    """The ratio alpha / sigma float32 `[S+1]` of levels, each once; rising, infinite at the end."""
    each = np.unique(np.asarray(times, np.float32))[::-1]
    alpha, sigma = path.alpha_sigma(jnp.asarray(each))
    return jnp.where(sigma > 0, alpha / jnp.where(sigma > 0, sigma, 1), jnp.inf)


def _index(levels: Array, alpha: Array, sigma: Array) -> Array:
    """The number of a level among those of a sampler, int32."""
    ratio = jnp.where(sigma > 0, alpha / jnp.where(sigma > 0, sigma, 1), jnp.inf)
    # Between two levels: rounding does not matter.
    between = jnp.sqrt(jnp.maximum(levels[:-1], 1e-6) * jnp.minimum(levels[1:], 1e12))
    return (ratio > between).sum().astype(jnp.int32)


def inverted(
    denoise: Denoise, x0: Array, *, path: NoisePath, times: np.ndarray, rounds: int = 0
) -> Array:
    """DDIM's trajectory from x0 up to `times[0]`, `[S+1,B,H,W,C]`; the last one is x0.

    Each step up reads the noise at the level of arrival from where it starts (Mokady et al. 2023,
    Song et al. 2021, section 4.3), then `rounds` times from where it arrived: what DDIM makes of it
    on the way down differs from x0 at order rounds + 1.

    Args:
      denoise: as for `sampler.sample`, without guidance.
      times: what the sampler visits, `[S+1]`, falling.
    """
    table = jnp.asarray(times, jnp.float32)

    def up(x: Array, i: Array) -> tuple[Array, Array]:
        (alpha_t, alpha_s), (sigma_t, sigma_s) = path.alpha_sigma(table[jnp.stack([i, i + 1])])
        batch_t = jnp.full((x.shape[0],), table[i], jnp.float32)

        def arrival(_: Array, y: Array) -> Array:
            output = denoise(y, batch_t).astype(jnp.float32)[..., : x.shape[-1]]
            noise_hat = process.readings(path, output, y, batch_t)[1]
            return alpha_t * (x - sigma_s * noise_hat) / alpha_s + sigma_t * noise_hat

        y = jax.lax.fori_loop(0, rounds + 1, arrival, x)
        return y, y

    x0 = x0.astype(jnp.float32)
    _, rising = jax.lax.scan(up, x0, jnp.arange(len(times) - 2, -1, -1))
    return jnp.concatenate([rising[::-1], x0[None]])
