import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy_stage import optimizer

from dreambooth_jax import optim
from dreambooth_jax.optim import adam8bit, bfloat16, moments

# Those whose single steps are known beforehand; the others find their rate, or average.
PLAIN = sorted({*optim.OPTIMIZERS} - {"prodigy", "schedule_free_adamw"})


def moved(settings, grads, params, *, steps=1):
    """Params after `steps` steps with the same gradients."""
    tx = optim.make(settings, num_steps=10, is_text=lambda path: path.startswith("text_encoder"))
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


# Up to 0.001 in 10 steps, then 100 steps to a tenth of it; cos 45° = 0.7071 a quarter of the way.
@pytest.mark.parametrize(
    ("shape", "quarter", "half", "end"),
    [
        ("constant", 1, 1, 1),
        ("linear", 0.775, 0.55, 0.1),
        ("cosine", 0.1 + 0.9 * (1 + 0.70710678) / 2, 0.55, 0.1),
    ],
)
def test_learning_rates_at_warm_up_peak_and_end(shape, quarter, half, end):
    settings = optimizer(learning_rate=1e-3, warmup_steps=10, schedule=shape, final_fraction=0.1)
    rate = optim.lr_schedule(settings, num_steps=110)
    found = [float(rate(step)) for step in (0, 5, 10, 35, 60, 110)]
    expected = np.array([0, 0.5, 1, quarter, half, end])
    np.testing.assert_allclose(found, 1e-3 * expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("shape", sorted(optim.LR_SCHEDULES))
def test_without_warm_up_the_first_step_is_at_the_peak(shape):
    settings = optimizer(learning_rate=0.5, warmup_steps=0, schedule=shape)
    assert float(optim.lr_schedule(settings, num_steps=7)(0)) == 0.5


@pytest.mark.parametrize("shape", sorted(optim.LR_SCHEDULES))
def test_a_run_that_is_all_warm_up_is_finite(shape):
    settings = optimizer(learning_rate=1.0, warmup_steps=4, schedule=shape)
    rate = optim.lr_schedule(settings, num_steps=4)
    assert [float(rate(step)) for step in range(5)] == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("limit", "factor"), [(0.0, 1), (2.5, 0.5), (5.0, 1), (100.0, 1)])
def test_gradients_are_clipped_to_their_global_norm(limit, factor):
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}  # norm 5 together
    params = jax.tree.map(jnp.zeros_like, grads)
    after = moved(optimizer("sgd", learning_rate=1.0, grad_clip=limit), grads, params)
    for path, grad in grads.items():
        np.testing.assert_allclose(after[path], -factor * grad, rtol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_each_optimizer_goes_down_a_quadratic(name):
    settings = optimizer(name, learning_rate=0.05, grad_clip=1.0)
    tx = optim.make(settings, num_steps=60)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)), "bias": rng.normal(size=(3,))}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

    def loss(params):
        return (params["kernel"] ** 2).sum() + 3 * ((params["bias"]) ** 2).sum()

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), value

    _, values = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=60))(params)
    assert values[-1] < 0.05 * values[0]
    assert (np.diff(values[:10]) < 0).all()


@pytest.mark.parametrize("name", PLAIN)
def test_weight_decay_is_decoupled_and_times_the_learning_rate(name):
    # Without a gradient nothing but the decay is left: p (1 - 0.05·0.1) (1 - 0.1·0.1).
    settings = optimizer(name, warmup_steps=2, learning_rate=0.1, weight_decay=0.1, b1=0.9)
    params = {"kernel": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "bias": jnp.array([4.0])}
    after = moved(settings, jax.tree.map(jnp.zeros_like, params), params, steps=3)
    for path, leaf in params.items():
        np.testing.assert_allclose(after[path], leaf * 0.995 * 0.99, rtol=1e-6)


def test_the_first_step_of_each_update_rule():
    # Adam and Lion move by the learning rate, gradient descent by that times the gradient.
    grads, params = {"a": jnp.array([0.2, -3.0])}, {"a": jnp.array([1.0, 1.0])}
    expected = {"adamw": [0.9, 1.1], "lion": [0.9, 1.1], "sgd": [0.98, 1.3]}
    for name, after in expected.items():
        settings = optimizer(name, b1=0.9, learning_rate=0.1)
        np.testing.assert_allclose(moved(settings, grads, params)["a"], after, rtol=1e-5)


def test_adafactor_remembers_rows_and_columns_where_adam_keeps_two_copies():
    params = {"kernel": jax.ShapeDtypeStruct((512, 256), jnp.float32)}

    def size(name):
        state = jax.eval_shape(optim.make(optimizer(name), num_steps=1).init, params)
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    assert size("adamw") >= 2 * 512 * 256
    assert size("adafactor") < 2 * (512 + 256)


@pytest.mark.parametrize(("step", "expected"), [(0, 0.9), (8, 0.5), (71, 1 / 9), (10**6, 0.1)])
def test_the_average_forgets_fast_at_first_and_with_its_decay_later(step, expected):
    # From 0 towards 1: 1 - min(0.9, (1 + n) / (10 + n)).
    zero, one = {"a": jnp.zeros(2)}, {"a": jnp.ones(2)}
    found = optim.average(zero, one, jnp.int32(step), 0.9)
    np.testing.assert_allclose(found["a"], [expected] * 2, rtol=1e-5)


@pytest.mark.parametrize("name", PLAIN)
def test_text_encoders_move_at_their_own_rate(name):
    """As if each part had been trained alone with its learning rate; decay included."""
    params = {
        "text_encoder/a": jnp.array([[1.0, -2.0]]),
        "text_encoder_2/b": jnp.array([3.0]),
        "unet/text_encoder/c": jnp.array([4.0, 5.0]),
    }
    grads = {path: 0.3 * leaf for path, leaf in params.items()}
    both = {"weight_decay": 0.1, "warmup_steps": 2, "schedule": "cosine"}
    found = moved(
        optimizer(name, learning_rate=0.1, text_encoder_learning_rate=0.02, **both),
        grads,
        params,
        steps=4,
    )
    slow = moved(optimizer(name, learning_rate=0.02, **both), grads, params, steps=4)
    fast = moved(optimizer(name, learning_rate=0.1, **both), grads, params, steps=4)
    np.testing.assert_allclose(found["unet/text_encoder/c"], fast["unet/text_encoder/c"], rtol=1e-6)
    # One step is the same to rounding; later ones start from where the earlier led.
    first = moved(
        optimizer(name, learning_rate=0.1, text_encoder_learning_rate=0.02), grads, params
    )
    alone = moved(optimizer(name, learning_rate=0.02), grads, params)
    for path in ("text_encoder/a", "text_encoder_2/b"):
        np.testing.assert_allclose(first[path], alone[path], rtol=1e-6)
        np.testing.assert_allclose(found[path], slow[path], rtol=1e-3)
        assert not np.allclose(found[path], fast[path], rtol=1e-3)


def quadratic(name, *, steps, **changed):
    """Parameters, their average if there is one, and the optimum, after steps downhill with noise.

    The valley is a hundred times steeper in some directions than in others.
    """
    tx = optim.make(optimizer(name, **changed), num_steps=steps)
    rng = np.random.default_rng(0)
    best = {"w": jnp.asarray(rng.normal(size=(48, 256)), jnp.float32)}
    steep = jnp.asarray(np.exp(rng.uniform(0, np.log(100), (48, 256))), jnp.float32)
    params = jax.tree.map(jnp.zeros_like, best)

    def step(carry, key):
        params, state = carry
        noise = 0.1 * jax.random.normal(key, steep.shape)
        grads = {"w": steep * (params["w"] - best["w"]) + noise}
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    (params, state), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys))(params)
    return params, optim.evaluated(state, params), best, state


def distance(a, b):
    return float(jnp.sqrt(jnp.square(a["w"] - b["w"]).mean()))


@pytest.mark.parametrize(("name", "share"), [("adamw_bf16", 0.501), ("adamw8bit", 0.27)])
def test_fewer_bits_follow_adamw_in_a_share_of_its_memory(name, share):
    how = {"learning_rate": 0.02, "weight_decay": 1e-3, "schedule": "cosine"}
    exact, _, best, full = quadratic("adamw", steps=300, **how)
    coded, _, _, state = quadratic(name, steps=300, **how)
    start = distance({"w": jnp.zeros((48, 256))}, best)
    assert distance(exact, best) < 0.1 * start
    assert distance(coded, best) < 1.1 * distance(exact, best)
    assert distance(coded, exact) < 0.03 * start
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(s)) for s in (state, full)]
    assert sizes[0] < share * sizes[1]


def test_second_moments_of_bfloat16_fall_as_they_should():
    """With b2 = 0.999 and no gradient to 0.999^n; the nearest number would never change."""
    tx = moments.scale_by_adam(0.9, 0.999, 1e-8, coding=bfloat16.BFLOAT16)
    ones = {"w": jnp.ones((64, 64))}
    _, state = jax.jit(tx.update)(ones, tx.init(ones))
    none = jax.tree.map(jnp.zeros_like, ones)
    state, _ = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: (tx.update(none, s)[1], None), state, length=1000)
    )(state)
    assert state.nu["w"].dtype == state.mu["w"].dtype == jnp.bfloat16
    left = np.asarray(state.nu["w"], np.float64) / (0.001 * 0.999**1000)
    assert abs(left.mean() - 1) < 0.01
    assert 0.01 < left.std() < 0.1  # each by itself, by noise that averages out


def test_rounding_at_random_keeps_numbers_of_bfloat16_and_others_on_average():
    rng = np.random.default_rng(0)
    exact = jnp.asarray(rng.normal(size=4096), jnp.bfloat16)
    noise = moments.random_bits((300, 4096), jnp.uint32(3)) >> 16
    same = jax.vmap(lambda n: bfloat16.round_at_random(exact.astype(jnp.float32), n))(noise[:9])
    assert (same == exact[None]).all()
    x = jnp.float32(-1.001)  # between -1 and -1.0078125, 12.8 % of the way
    found = np.asarray(bfloat16.round_at_random(jnp.full((300, 4096), x), noise), np.float64)
    assert set(np.unique(found)) == {-1.0078125, -1.0}
    np.testing.assert_allclose(found.mean(), x, atol=5 * 0.0026 / np.sqrt(found.size))


def test_codes_keep_magnitudes_over_five_decades():
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.uniform(np.log(1e-3), 0, (8, 512)))
    m = jnp.asarray(rng.choice([-1, 1], sizes.shape) * sizes, jnp.float32)
    found = adam8bit.decode_signed(adam8bit.encode_signed(m))
    assert (jnp.sign(found) == jnp.sign(m)).all()
    # Codes at x have a distance of 2 √x / 127: half of that, in units of the largest.
    assert (np.abs(found - m) <= np.sqrt(sizes) / 127 + 2e-5).all()
    v = jnp.asarray(sizes**2, jnp.float32)
    seeds = jax.random.bits(jax.random.key(0), (400,))
    many = jax.vmap(lambda seed: adam8bit.decode_positive(adam8bit.encode_positive(v, seed)))(seeds)
    many = np.asarray(many)
    np.testing.assert_allclose(many.mean(0), v, rtol=0.06)  # right on average
    assert (np.abs(many / np.asarray(v)[None] - 1) < 1).all()
    zero = adam8bit.encode_positive(jnp.zeros((2, 256)), seeds[0])
    assert not np.asarray(adam8bit.decode_positive(zero)).any()


def test_what_rounds_up_or_down_is_uniform_and_another_for_each_place_and_step():
    seeds = jax.random.bits(jax.random.key(1), (2,))
    found = np.stack([moments.uniform((20, 4000), seed) for seed in seeds])
    assert found.min() >= 0 and found.max() < 1
    for values in (found[0], found[1], found[0][:, ::2], found[0][:5]):
        counts = np.histogram(values, 100, (0, 1))[0]
        expected = values.size / 100
        # χ² with 99 degrees of freedom: standard deviation 14.
        assert abs((np.square(counts - expected) / expected).sum() - 99) < 5 * 14
    pairs = [
        (found[0], found[1]),
        (found[0][:, 1:], found[0][:, :-1]),
        (found[0][1:], found[0][:-1]),
    ]
    for one, other in pairs:
        correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(one.size)


@pytest.mark.parametrize("name", ["adamw_bf16", "adamw8bit"])
def test_small_leaves_keep_their_moments_and_move_as_in_adamw(name):
    params = {"bias": jnp.linspace(-1, 1, 7)}
    grads = {"bias": jnp.linspace(0.1, 2, 7)}
    how = {"learning_rate": 0.05, "weight_decay": 0.1}
    exact = moved(optimizer("adamw", **how), grads, params, steps=9)
    found = moved(optimizer(name, **how), grads, params, steps=9)
    np.testing.assert_allclose(found["bias"], exact["bias"], rtol=1e-5)


def test_prodigy_finds_its_learning_rate_and_schedule_free_its_average():
    start = quadratic("sgd", steps=1, learning_rate=1e-9)
    far = distance(start[0], start[2])
    found, none, best, _ = quadratic("prodigy", steps=600, learning_rate=1.0)
    assert none is None
    assert distance(found, best) < 0.1 * far
    last, average, best, _ = quadratic("schedule_free_adamw", steps=300, learning_rate=0.02)
    assert distance(average, best) < 0.1 * far
    assert not np.array_equal(last["w"], average["w"])
