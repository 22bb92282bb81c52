"""Samplers: a fold of one pure rule (`rules`) over falling levels, inside one `lax.scan`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dreambooth_jax.diffusion import process, rules
from dreambooth_jax.diffusion.path import Flow, NoisePath
from dreambooth_jax.diffusion.rules import Past, Rule, Step

Array = jax.Array

SAMPLERS: dict[str, Rule] = {
    "ddpm": rules.ddpm,
    "ddim": rules.ddim,
    "euler": rules.ddim,  # in sigma / alpha, or along a flow's velocity, it is the same step
    "euler_ancestral": rules.euler_ancestral,
    "heun": rules.heun,
    "dpmpp_2m": rules.dpmpp_2m,
    "dpmpp_2m_karras": rules.dpmpp_2m,
    "dpmpp_2m_sde": rules.dpmpp_2m_sde,
    "unipc": rules.unipc,
    "lcm": rules.lcm,
}
# Sampler -> the spacing that belongs to it.
OWN_SPACING = {"dpmpp_2m_karras": "karras", "lcm": "lcm"}
# Visit every level but the first and the last twice: 2 S - 1 evaluations for S steps.
CORRECTING = ("heun",)
# Samplers for tables of betas alone.
TABLES_ONLY = ("lcm",)


def levels(name: str, path: NoisePath, num_steps: int, *, spacing: str = "model") -> np.ndarray:
    """The levels that a sampler of `SAMPLERS` visits, float32 `[S+1]`, ending at the clean end.

    A sampler that corrects its predictions has every level but the first and the last twice,
    `[2 S]`. "model" is the spacing of the sampler, where it has one of its own, or of the path.

    Raises:
      ValueError: the sampler or the spacing is not for this path, or not for so many steps.
    """
    if name in TABLES_ONLY and isinstance(path, Flow):
        raise ValueError(
            f"sampler.name = {name!r} is for tables of betas; this model is a flow. Write "
            "--config.sampler.name=euler."
        )
    own = OWN_SPACING.get(name, "model")
    if own != "model" and spacing not in ("model", own):
        raise ValueError(
            f"sampler.spacing = {spacing!r}: the sampler {name!r} has a spacing of its own, "
            f"{own!r}. Write --config.sampler.spacing=model, or take another sampler."
        )
    times = path.spaced(spacing if own == "model" else own).times(num_steps)
    return twice(times) if name in CORRECTING else times


def twice(times: np.ndarray) -> np.ndarray:
    """The levels with all but the first and the last repeated."""
    return np.concatenate([times[:1], np.repeat(times[1:-1], 2), times[-1:]])


def blended(rule: Rule, mask: Array, known: Array, noise: Array) -> Rule:
    """The rule with a known part: each step puts it back, with the noise of the level reached.

    Outside the mask the sample is `alpha_s·known + sigma_s·noise` after every step, so `known`
    itself at the clean end, bit for bit (Avrahami et al. 2023, section 4.1, with one noise).

    Args:
      mask: `[B,H,W,1]`, 1 where the sampler draws, 0 where it is known, between them a mixture.
      known, noise: `[B,H,W,C]`, the clean x0 and the noise that the sampler starts from.
    """

    def inside(x: Array, x0_hat: Array, noise_hat: Array, step: Step) -> Array:
        drawn = rule(x, x0_hat, noise_hat, step)
        kept = step.alpha_s * known + step.sigma_s * noise
        mixed = mask * drawn + (1 - mask) * kept
        return jnp.where(mask >= 1, drawn, jnp.where(mask <= 0, kept, mixed))

    return inside


def begun(
    path: NoisePath, x0: Array, noise: Array, *, times: np.ndarray, strength: Array
) -> tuple[Array, Array]:
    """The noisy start of image-to-image (Meng et al. 2022), and the step at which each row begins.

    Of S steps the last `round(S·strength)` are taken. Strength 1 starts from the noise alone,
    strength 0 returns x0.

    Args:
      x0, noise: `[B,H,W,C]`.
      times: what the sampler visits (`levels`).
      strength: float32 `[B]`, 0 to 1.
    """
    starts = np.append(np.flatnonzero(np.diff(times) < 0), len(times) - 1)  # not corrections
    count = len(starts) - 1
    begin = jnp.asarray(starts)[count - jnp.round(count * strength).astype(jnp.int32)]
    noisy = process.add_noise(path, x0, noise, jnp.asarray(times, jnp.float32)[begin])
    return jnp.where(process.along(begin == 0, x0), noise, noisy), begin


Denoise = Callable[[Array, Array], Array]
Carry = tuple[Array, Past, Past]


def _normal(keys: Array, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def first_noise(keys: Array, shape: tuple[int, ...]) -> Array:
    """The starting noise `[B, *shape]`: one key for each image, so it is the same in any batch."""
    return _normal(jax.vmap(lambda key: jax.random.fold_in(key, 0))(keys), shape)


def sample(
    denoise: Denoise,
    x: Array,
    keys: Array,
    *,
    path: NoisePath,
    rule: Rule,
    times: np.ndarray,
    threshold: Callable[[Array], Array] = lambda x0_hat: x0_hat,
    begin: Array | None = None,
) -> Array:
    """Takes noise x `[B,H,W,C]` at `times[0]` to x0 `[B,H,W,C]`.

    Args:
      denoise: (xt, t float32 `[B]`) -> the network's output `[B,H,W,C or 2C]`, guidance included.
      keys: one key for each image, `[B]`; the noise of step i comes from fold_in(key, i + 1).
      rule: one of `SAMPLERS`.
      times: float32 `[S+1]`, not rising, ending at the clean end (`levels`).
      threshold: what is done to x0_hat before it is used (`guidance.THRESHOLDS`).
      begin: int32 `[B]`, the step at which each row begins, with x at the level of that step; None
        begins all at the first.
    """
    channels = x.shape[-1]
    x = x.astype(jnp.float32)

    def body(carry: Carry, i: Array) -> tuple[Carry, None]:
        x, before, earlier = carry
        now_and_next = jnp.asarray(times, jnp.float32)[jnp.stack([i, i + 1])]
        (alpha_t, alpha_s), (sigma_t, sigma_s) = path.alpha_sigma(now_and_next)
        batch_t = jnp.full((x.shape[0],), now_and_next[0], jnp.float32)
        output = denoise(x, batch_t).astype(jnp.float32)
        x0_hat, noise_hat = process.readings(path, output[..., :channels], x, batch_t)
        x0_hat = threshold(x0_hat)
        step = Step(
            alpha_t=alpha_t,
            sigma_t=sigma_t,
            alpha_s=alpha_s,
            sigma_s=sigma_s,
            told=path.told(now_and_next[0]),
            noise=_normal(jax.vmap(lambda key: jax.random.fold_in(key, i + 1))(keys), x.shape[1:]),
            variance=output[..., channels:] if output.shape[-1] > channels else None,
            variance_type=path.variance_type,
            number=i if begin is None else process.along(i - begin, x),
            before=before,
            earlier=earlier,
            corrects=now_and_next[0] == now_and_next[1],
            is_flow=path.prediction_type == "flow",
        )
        after = rule(x, x0_hat, noise_hat, step)
        if begin is not None:
            after = jnp.where(process.along(begin <= i, x), after, x)
        return (after, Past(x0_hat, noise_hat, alpha_t, sigma_t), before), None

    zeros, one = jnp.zeros_like(x), jnp.ones((), jnp.float32)
    start = (x, Past(zeros, zeros, one, one), Past(zeros, zeros, one, one))
    count = len(times) - 1
    if begin is not None:  # steps that no row takes are not made
        return jax.lax.fori_loop(begin.min(), count, lambda i, carry: body(carry, i)[0], start)[0]
    return jax.lax.scan(body, start, jnp.arange(count))[0][0]
