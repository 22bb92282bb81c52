"""Edits as algebra: what any network must give, and closed forms on Gaussian data."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import editing, path, process, sampler, schedule

STEPS, SIZE = 6, (3, 3, 2)
TABLE = schedule.from_config({"clip_sample": False, "prediction_type": "epsilon"})
FLOW = path.Flow()
KEYS = jnp.stack([jax.random.key(n) for n in (3, 3)])  # a pair shares its noise
# As users' loops are, beside which those of tests/conftest.py give rows of one picture other bits.
UNOPTIMISED = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True}


def network(words: np.ndarray | jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """An arbitrary network: rows differ by a number of their own, as prompts do."""
    mix = jnp.asarray(np.random.default_rng(2).normal(size=(2, 2)), jnp.float32)
    own = jnp.asarray(words, jnp.float32)[:, None, None, None]

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        moved = jnp.roll(x, 1, 1) @ mix + own + t[:, None, None, None] / 1000
        return jnp.sin(moved) + 0.3 * x

    return denoise


def x0_of(rows: int = 2) -> jax.Array:
    one = np.random.default_rng(1).normal(size=(1, *SIZE)).astype(np.float32)
    return jnp.asarray(np.repeat(one, rows, 0))


def drawn(
    rule: Callable[..., jax.Array],
    x: jax.Array,
    words: np.ndarray,
    *,
    noise_path: path.NoisePath = TABLE,
    **how,
) -> np.ndarray:
    return np.asarray(program(rule, noise_path)(words, x, KEYS[: len(x)], **how))


@functools.cache
def program(rule: Callable[..., jax.Array], noise_path: path.NoisePath) -> Callable[..., jax.Array]:
    """The jitted sampler of words, x and keys; compiled once for each rule and path."""
    times = noise_path.times(STEPS)

    def run(words: jax.Array, x: jax.Array, keys: jax.Array, **how) -> jax.Array:
        named = {"path": noise_path, "rule": rule, "times": times}
        return sampler.sample(network(words), x, keys, **named, **how)

    return jax.jit(run, compiler_options=UNOPTIMISED)


@pytest.mark.parametrize("name", list(sampler.SAMPLERS))
def test_an_edit_with_its_source_s_prompt_is_the_source_bit_for_bit(name):
    x0 = x0_of()
    noise = sampler.first_noise(KEYS, SIZE)
    rule = editing.followed(sampler.SAMPLERS[name], x0)
    times = TABLE.times(STEPS)
    x, begin = sampler.begun(TABLE, x0, noise, times=times, strength=jnp.full(2, 0.67))
    assert int(begin[0]) == 2
    same = drawn(rule, x, np.array([0.4, 0.4]), begin=begin)
    np.testing.assert_array_equal(same, x0)
    other = drawn(rule, x, np.array([0.4, 1.9]), begin=begin)
    np.testing.assert_array_equal(other[0], x0[0])
    assert np.abs(other[1] - x0[1]).max() > 0.1  # another prompt moves


@pytest.mark.parametrize("kind", ["differ", "amounts"])
def test_what_an_edit_keeps_is_its_source_at_every_step(kind):
    """With equal prompts all of it is x0, though the network mixes what is kept and what is not."""
    x0, noise, times = x0_of(), sampler.first_noise(KEYS, SIZE), TABLE.times(STEPS)
    where = np.full((2, 3, 3, 1), 0.4, np.float32)
    where[:, :2] = 1
    rows = {"follow": x0, kind: jnp.asarray(where)}
    rule = editing.of_rows(sampler.SAMPLERS["ddim"], rows, noise, editing.ratios(TABLE, times))
    same = drawn(rule, noise, np.array([0.4, 0.4]))
    np.testing.assert_array_equal(same, x0)
    other = drawn(rule, noise, np.array([0.4, 1.9]))
    np.testing.assert_array_equal(other[0], x0[0])
    assert np.abs(other[1] - x0[1]).max() > 0.1


def test_on_a_flow_it_is_flow_edit():
    """z += (s - t)(v(z + x_src - x0; edit) - v(x_src; source)), written out."""
    x0, times = x0_of(), FLOW.times(STEPS)
    noise = sampler.first_noise(KEYS, SIZE)
    words = np.array([0.4, 1.9])
    x, begin = sampler.begun(FLOW, x0, noise, times=times, strength=jnp.full(2, 0.67))
    rule = editing.followed(sampler.SAMPLERS["ddim"], x0)
    found = drawn(rule, x, words, noise_path=FLOW, begin=begin)
    velocity, z = network(words), np.array(x0[:1])
    sigma = np.asarray(FLOW.alpha_sigma(jnp.asarray(times))[1])
    fresh = noise[:1]
    for i in range(2, STEPS):
        t, s = sigma[i], sigma[i + 1]
        along = (1 - t) * x0[:1] + t * fresh
        both = jnp.concatenate([along, z + along - x0[:1]])
        v = np.asarray(velocity(both, jnp.full(2, times[i])))
        z = z + (s - t) * (v[1:] - v[:1])
        fresh = jax.random.normal(jax.random.fold_in(KEYS[0], i + 1), SIZE)[None]
    np.testing.assert_allclose(found[1:], z, atol=1e-5)
    np.testing.assert_array_equal(found[0], x0[0])


def test_an_edit_differs_from_its_source_inside_a_mask_alone():
    mask = np.zeros((2, 3, 3, 1), np.float32)
    mask[:, :2] = 1
    noise = sampler.first_noise(KEYS, SIZE)
    rule = editing.beside(sampler.SAMPLERS["ddim"], jnp.asarray(mask))
    source, edit = drawn(rule, noise, np.array([0.4, 1.9]))
    np.testing.assert_array_equal(source[2:], edit[2:])
    assert np.abs(source[:2] - edit[:2]).min() > 1e-4
    plain = drawn(sampler.SAMPLERS["ddim"], noise, np.array([0.4, 1.9]))
    np.testing.assert_array_equal(source, plain[0])
    nowhere = editing.beside(sampler.SAMPLERS["ddim"], jnp.zeros((2, 3, 3, 1)))
    np.testing.assert_array_equal(
        drawn(nowhere, noise, np.array([0.4, 1.9])), np.stack([plain[0], plain[0]])
    )
    everywhere = editing.beside(sampler.SAMPLERS["ddim"], jnp.ones((2, 3, 3, 1)))
    np.testing.assert_array_equal(drawn(everywhere, noise, np.array([0.4, 1.9])), plain)


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_one_amount_everywhere_is_image_to_image(steps):
    x0, noise, times = x0_of(), sampler.first_noise(KEYS, SIZE), TABLE.times(STEPS)
    amount = steps / STEPS
    rule = sampler.SAMPLERS["ddim"]
    soft = editing.by_amount(
        rule, jnp.full((2, 3, 3, 1), amount), x0, noise, editing.ratios(TABLE, times)
    )
    words = np.array([0.4, 1.9])
    x, begin = sampler.begun(TABLE, x0, noise, times=times, strength=jnp.full(2, amount))
    expected = drawn(rule, x, words, begin=begin)
    np.testing.assert_allclose(drawn(soft, noise, words), expected, atol=1e-5)


def test_amounts_of_0_and_1_are_a_mask():
    x0, noise = x0_of(), sampler.first_noise(KEYS, SIZE)
    mask = np.zeros((2, 3, 3, 1), np.float32)
    mask[:, 1] = 1
    levels = editing.ratios(TABLE, TABLE.times(STEPS))
    rule = sampler.SAMPLERS["ddim"]
    words = np.array([0.4, 1.9])
    soft = drawn(editing.by_amount(rule, jnp.asarray(mask), x0, noise, levels), noise, words)
    np.testing.assert_array_equal(soft[:, [0, 2]], x0[:, [0, 2]])
    blended = drawn(sampler.blended(rule, jnp.asarray(mask), x0, noise), noise, words)
    np.testing.assert_allclose(soft, blended, atol=1e-6)


MEAN, SPREAD = 0.3, 0.5
SPACED = {
    spacing: schedule.from_config(
        {"clip_sample": False, "prediction_type": "epsilon", "timestep_spacing": spacing}
    )
    for spacing in ("leading", "trailing")
}


def there_and_back(table: path.NoisePath, *, steps: int, rounds: int) -> float:
    """The largest error of x0 ~ N(mean, spread²), whose noise in x is known in closed form."""

    def gaussian(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = (value[:, None, None, None] for value in table.alpha_sigma(t))
        return sigma * (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)

    times, x0 = table.times(steps), MEAN + SPREAD * x0_of(1)

    def run(x0: jax.Array) -> tuple[jax.Array, jax.Array]:
        up = editing.inverted(gaussian, x0, path=table, times=times, rounds=rounds)
        rule = sampler.SAMPLERS["ddim"]
        return up, sampler.sample(gaussian, up[0], KEYS[:1], path=table, rule=rule, times=times)

    up, back = jax.jit(run, compiler_options=UNOPTIMISED)(x0)
    np.testing.assert_array_equal(up[-1], x0)
    return float(np.abs(back - x0).max())


# Rounds -> steps between which the error is far above float32's rounding.
COUNTS = {0: [20, 40, 80, 160], 1: [20, 40, 80, 160], 2: [20, 40, 80, 160], 4: [10, 20, 40]}


@pytest.mark.parametrize("spacing", list(SPACED))
@pytest.mark.parametrize("rounds", list(COUNTS))
def test_ddim_s_inversion_comes_back_at_the_order_of_its_rounds(rounds, spacing):
    counts = COUNTS[rounds]
    errors = [there_and_back(SPACED[spacing], steps=n, rounds=rounds) for n in counts]
    order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    told = ", ".join(f"{error:.1e}" for error in errors)
    print(f"{rounds} rounds, {spacing}: order {order:.2f}; errors {told} of {counts} steps")
    assert abs(order - (rounds + 1)) < 0.15 * (rounds + 1), (order, errors)


@pytest.mark.parametrize("spacing", list(SPACED))
def test_with_many_rounds_it_is_exact(spacing):
    """The fixed point is the step of DDIM backwards: 20 steps lose no more than rounding."""
    error = there_and_back(SPACED[spacing], steps=20, rounds=40)
    assert error < 1e-5 < there_and_back(SPACED[spacing], steps=20, rounds=2)


def test_a_source_that_is_retraced_ends_where_it_began():
    x0, times = x0_of(), TABLE.times(STEPS)
    words = np.array([0.4, 1.9])
    up = editing.inverted(network(words[:1]), x0[:1], path=TABLE, times=times)
    x = jnp.repeat(up[0], 2, 0)
    rule = editing.retraced(sampler.SAMPLERS["ddim"], up, editing.ratios(TABLE, times))
    source, edit = drawn(rule, x, words)
    np.testing.assert_array_equal(source, x0[0])
    alone = drawn(sampler.SAMPLERS["ddim"], x, words)
    np.testing.assert_array_equal(edit, alone[1])


def test_ratios_tell_levels_apart():
    times = TABLE.times(50)
    ratios = np.asarray(editing.ratios(TABLE, times))
    assert (np.diff(ratios[:-1]) > 0).all() and np.isinf(ratios[-1])
    alpha, sigma = TABLE.alpha_sigma(jnp.asarray(times, jnp.float32))
    found = [int(editing._index(ratios, a, s)) for a, s in zip(alpha, sigma, strict=True)]
    assert found == list(range(51))
    noisy = process.add_noise(TABLE, x0_of(1), jnp.zeros((1, *SIZE)), jnp.asarray(times[:1]))
    np.testing.assert_allclose(noisy, alpha[0] * x0_of(1), atol=1e-6)
