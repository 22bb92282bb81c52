"""The step of many subjects: each is that of one alone, on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_stage

from dreambooth_jax import optim, sharding, train
from dreambooth_jax.adapt import FULL
from dreambooth_jax.train import fleet

RECIPE = train.Recipe(seed=3, prior_loss_weight=0.5)
SUBJECTS = 8


def parts():
    """The optimizer, and states, tables of texts and batches of subjects that differ."""
    tx = optim.make(toy_stage.optimizer(), num_steps=10)
    flat = toy_stage.weights()
    rng = np.random.default_rng(0)
    states, tables, batches = [], [], []
    for k in range(SUBJECTS):
        own = {path: x + rng.normal(size=x.shape).astype(np.float32) for path, x in flat.items()}
        rules = (("text_encoder/.*", False), (".*", True))
        trainable, _ = FULL.init(own, rules)
        states.append(fleet.first_state(trainable, RECIPE, tx))
        table = rng.normal(size=(2, 3, toy_stage.WIDTH)).astype(np.float32)
        tables.append({"table": table})
        batches.append(toy_stage.batch(1, 1, seed=k))
    return tx, states, tables, batches


@pytest.mark.parametrize("devices", [1, 8])
def test_subjects_together_are_each_as_alone_and_a_device_has_its_own_alone(devices):
    tx, states, tables, batches = parts()
    mesh = fleet.mesh_of(jax.devices()[:devices], subjects=SUBJECTS)
    assert mesh.shape["data"] == devices
    step = fleet.compiled(toy_stage.Toy(), RECIPE, FULL, tx, mesh=mesh)
    together = fleet.stacked(states, mesh)
    for leaf in jax.tree.leaves(together):
        (size,) = {shard.data.size for shard in leaf.addressable_shards}
        assert size * devices == leaf.size  # an eighth of the subjects' state on each of 8
    beside = fleet.stacked(tables, mesh)
    for _ in range(2):
        together, metrics = step(together, {}, beside, fleet.stacked(batches, mesh))
    for leaf in jax.tree.leaves(together):
        assert len({shard.index[0].start for shard in leaf.addressable_shards}) == devices
    alone = jax.jit(
        lambda state, table, batch: train.step.train_step(
            state,
            {"weights": {}, **table},
            batch,
            stage=toy_stage.Toy(),
            recipe=RECIPE,
            adapter=FULL,
            tx=tx,
        )
    )
    for k in range(SUBJECTS):
        state = states[k]
        for _ in range(2):
            state, expected = alone(state, tables[k], batches[k])
        np.testing.assert_allclose(metrics["loss"][k], expected["loss"], rtol=1e-5)
        found = fleet.of_subject(together, k)
        assert int(found.step) == 2
        for path, leaf in state.trainable.items():
            np.testing.assert_allclose(found.trainable[path], leaf, rtol=1e-4, atol=1e-5)


def test_tables_of_fewer_texts_are_filled_up():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    tables = [jnp.ones((2, 3)), 2 * jnp.ones((4, 3))]
    found = np.asarray(fleet.stacked(tables, mesh))
    assert found.shape == (2, 4, 3)
    np.testing.assert_array_equal(found[0], np.ones((4, 3)))


def test_tables_of_fewer_tokens_are_filled_up_with_masked_ones():
    """Z-Image's captions are padded to the next 32 tokens, so subjects' tables may differ."""
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    tables = [
        {"text": np.full((2, 3, 5), 7.0), "mask": np.ones((2, 3), np.int32)},
        {"text": np.full((1, 6, 5), 9.0), "mask": np.ones((1, 6), np.int32)},
    ]
    found = jax.tree.map(np.asarray, fleet.stacked(tables, mesh))
    assert found["text"].shape == (2, 2, 6, 5)
    assert found["mask"].tolist() == [[[1, 1, 1, 0, 0, 0]] * 2, [[1] * 6] * 2]
    assert (found["text"][0, :, :3] == 7).all() and (found["text"][0, :, 3:] == 0).all()
    assert (found["text"][1] == 9).all()


@pytest.mark.parametrize(
    ("count", "at_once", "sizes"), [(15, 8, [8, 7]), (9, 4, [3, 3, 3]), (2, 8, [2]), (0, 8, [])]
)
def test_rounds_are_nearly_equal_and_hold_each_once(count, at_once, sizes):
    found = fleet.rounds(count, at_once=at_once)
    assert [len(part) for part in found] == sizes
    assert sorted(number for part in found for number in part) == list(range(count))


@pytest.mark.parametrize(
    ("count", "at_once", "devices", "expected"),
    [
        (15, 8, 1, 5),  # three rounds of 5: with 8 one place of 16 is trained for nothing
        (15, 8, 8, 8),  # two rounds of one subject a device
        (13, 8, 1, 7),
        (7, 8, 4, 8),  # two a device; 7 would be one device's
        (2, 8, 1, 2),
        (4, 4, 1, 4),
        (1, 1, 8, 1),
    ],
)
def test_all_rounds_are_of_one_size_with_the_fewest_places_in_vain(
    count, at_once, devices, expected
):
    assert fleet.places(count, at_once=at_once, devices=devices) == expected


@pytest.mark.parametrize(
    ("subjects", "devices", "used"), [(8, 8, 8), (6, 8, 6), (7, 4, 1), (6, 4, 3)]
)
def test_as_many_devices_share_the_subjects_as_divide_them(subjects, devices, used):
    mesh = fleet.mesh_of(jax.devices()[:devices], subjects=subjects)
    assert mesh.size == used
