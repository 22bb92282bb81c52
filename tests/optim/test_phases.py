"""Phases: leaves that rest, bit for bit, and leaves that begin late as if it were step 0."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_stage
from toy_stage import IDS, MASK, batch, optimizer

from dreambooth_jax import config as configs
from dreambooth_jax import optim, sharding, train
from dreambooth_jax.adapt import FULL

TEXT, TIME, REST = "text_encoder/.*", "unet/time", ".*"


def is_text(path: str) -> bool:
    return path.startswith("text_encoder/")


TOKENS = {"ids": IDS, "mask": MASK}


def phase_table(*rows):
    return tuple(optim.Phase(*row) for row in rows)


def steps_of(name, phases, *, count, decay=0.0, **changed):
    """The states before and after each of `count` steps, on the host."""
    settings = optimizer(name, **{"grad_clip": 0.5, "learning_rate": 0.01} | changed)
    recipe = train.Recipe(seed=0, ema_decay=decay, phases=phases)
    trainable, frozen = FULL.init(toy_stage.weights(), ((".*", True),))
    # What arithmetic would not leave alone: -0 + 0 is 0, and denormals are flushed.
    trainable["text_encoder/embedding"][0, :2] = [-0.0, 1e-40]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    run = train.compiled(
        trainable,
        {"weights": frozen},
        stage=toy_stage.Toy(),
        recipe=recipe,
        adapter=FULL,
        tx=optim.make(settings, num_steps=count, phases=phases),
        mesh=mesh,
        rules=((".*", "fsdp"),),
        min_bytes=0,
    )
    state = run.init(trainable)
    states = [jax.tree.map(np.array, state)]
    for step in range(count):
        state, _ = run.step(
            state, {"weights": frozen}, run.put_batch(batch(2, 2, seed=step) | TOKENS)
        )
        states.append(jax.tree.map(np.array, state))
    return states


def moments(state, path):
    """What the update rule remembers of a leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    return [leaf.tobytes() for keys, leaf in leaves if path in jax.tree_util.keystr(keys)]


@pytest.mark.parametrize(("name", "rate"), [("adamw", 0.01), ("prodigy", 1.0)])
def test_a_leaf_outside_of_its_phase_does_not_change_by_a_bit(name, rate):
    table = phase_table((TEXT, 0, 2), (TIME, 2, 5), (REST, 0, 5))
    states = steps_of(name, table, count=5, decay=0.9, weight_decay=0.1, learning_rate=rate)
    trained = {"text_encoder/embedding": "++---", "unet/time": "--+++", "unet/pixel": "+++++"}
    for path, steps in trained.items():
        for step, mark in enumerate(steps):
            before, after = states[step], states[step + 1]
            kept = moments(before, path) == moments(after, path)
            value = before.trainable[path].tobytes() == after.trainable[path].tobytes()
            assert (kept and value) if mark == "-" else not kept, (path, step)
            assert moments(after, path)
    first = [state.ema["unet/time"].tobytes() for state in states[:3]]
    assert first == [states[0].trainable["unet/time"].tobytes()] * 3
    # The average of one that rests goes on towards it.
    text = "text_encoder/embedding"
    away = [np.abs(s.ema[text] - s.trainable[text]).max() for s in states[2:]]
    assert away[-1] < 0.1 * away[0] + 1e-6


@pytest.mark.parametrize("rate", [None, 0.003])
@pytest.mark.parametrize("name", ["adamw", "adamw_bf16", "adamw8bit", "lion", "sgd"])
def test_a_late_phase_is_a_run_of_its_own(name, rate):
    """The same gradients from step 5 on give what they give from step 0 on."""
    rng = np.random.default_rng(0)
    params = {"unet/a": rng.normal(size=(64, 64)).astype(np.float32)}
    grads = [{"unet/a": rng.normal(size=(64, 64)).astype(np.float32)} for _ in range(8)]
    how = {"schedule": "cosine", "warmup_steps": 3, "weight_decay": 0.1, "learning_rate": 0.01}

    def last(tx, grads, first):
        tx = optax.with_extra_args_support(tx)
        values, state = params, tx.init(params)
        for step, grad in enumerate(grads, first):
            updates, state = tx.update(grad, state, values, step=step)
            values = optax.apply_updates(values, updates)
        return values["unet/a"]

    alone = optim.make(
        optimizer(name, **how | ({"learning_rate": rate} if rate else {})), num_steps=8
    )
    table = phase_table((REST, 5, 13, rate))
    late = optim.make(optimizer(name, **how), num_steps=13, phases=table)
    noise = [{"unet/a": grads[0]["unet/a"] * 100}] * 5  # before the phase nothing matters
    np.testing.assert_allclose(last(late, noise + grads, 0), last(alone, grads, 0), rtol=1e-6)


def test_a_leaf_that_rests_has_no_share_in_the_norm():
    """Gradient descent at rate 1 moves by the norm that the gradient is clipped to."""
    table = phase_table((TEXT, 0, 1), (REST, 0, 3))
    states = steps_of("sgd", table, count=2, grad_clip=0.01, learning_rate=1.0)
    for before, after in itertools.pairwise(states):
        moved = {p: after.trainable[p] - before.trainable[p] for p in after.trainable}
        size = np.sqrt(sum(np.square(x).sum() for x in moved.values()))
        np.testing.assert_allclose(size, 0.01, rtol=1e-3)
    assert not moved["text_encoder/embedding"].any()


def test_the_text_encoder_s_own_rate_is_for_leaves_whose_phase_has_none():
    params = {p: jnp.ones(3) for p in ("text_encoder/t/new_rows", "text_encoder/a", "unet/a")}
    table = phase_table((".*/new_rows", 0, 9, 0.5), (REST, 0, 9))
    settings = optimizer("sgd", learning_rate=0.1, text_encoder_learning_rate=0.02)
    tx = optim.make(settings, num_steps=9, phases=table, is_text=is_text)
    updates, _ = tx.update(params, tx.init(params), params, step=jnp.int32(0))
    found = {path: -float(x[0]) for path, x in updates.items()}
    expected = {"text_encoder/t/new_rows": 0.5, "text_encoder/a": 0.02, "unet/a": 0.1}
    assert found == pytest.approx(expected)


def test_every_leaf_needs_a_phase():
    with pytest.raises(ValueError, match=r"no phase matches 'unet/a'"):
        optim.active(phase_table((TEXT, 0, 2)), {"unet/a": 0}, jnp.int32(0))


def settled(**changed):
    c = configs.base_config()
    c.update_from_flattened_dict({key.replace("__", "."): x for key, x in changed.items()})
    return configs.phases(configs.resolve(c).stages["base"], text=TEXT)


def test_the_phases_of_a_configuration():
    usual = functools.partial(settled, train__num_steps=100)
    assert usual() == usual(train__text_encoder=True) == ()
    assert usual(train__text_encoder=True, train__text_encoder_steps=100) == ()
    stopped = usual(train__text_encoder=True, train__text_encoder_steps=30)
    assert stopped == ((TEXT, 0, 30, None), (".*", 0, 100, None))
    pivotal = usual(adapt__name="pivotal", adapt__inversion_learning_rate=0.1)
    assert pivotal == ((".*/new_rows", 0, 50, 0.1), (".*", 50, 100, None))
    both = usual(
        adapt__name="pivotal",
        adapt__inversion_steps=20,
        train__text_encoder=True,
        train__text_encoder_steps=60,
    )
    assert [tuple(p[:3]) for p in both] == [
        (".*/new_rows", 0, 20),
        (TEXT, 20, 60),
        (".*", 20, 100),
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train__text_encoder_steps": 5},
            r"train\.text_encoder_steps = 5.*train\.text_encoder=True",
        ),
        ({"adapt__name": "pivotal", "adapt__inversion_steps": 1000}, r"num_steps=2000"),
        (
            {"adapt__name": "pivotal", "train__num_steps": 1},
            r"adapt\.inversion_steps = None.*num_steps=2",
        ),
        (
            {"adapt__name": "pivotal", "optim__warmup_steps": 501},
            r"at most the 500 steps of a phase",
        ),
        (
            {"adapt__name": "pivotal", "optim__name": "schedule_free_adamw"},
            r"adapt\.name = 'pivotal'",
        ),
        (
            {
                "adapt__name": "pivotal",
                "train__text_encoder": True,
                "train__text_encoder_steps": 500,
            },
            r"text_encoder_steps = 500.*text_encoder_steps=750",
        ),
        (
            {
                "train__text_encoder": True,
                "train__text_encoder_steps": 5,
                "optim__warmup_steps": 6,
            },
            r"optim\.warmup_steps = 6: expected at most the 5 steps of the text encoder",
        ),
    ],
)
def test_what_cannot_be_is_told_with_what_to_write(changed, message):
    with pytest.raises(configs.ConfigError, match=message):
        settled(**changed)
