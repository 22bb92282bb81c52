"""The train step with real networks, of a single level: compiling is what takes the time here."""

import collectives
import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from layouts import LAYOUTS, TABLE, Run, adam_moments, restored, trained, unet_alone
from toy_stage import batch, bits, optimizer, start

from dreambooth_jax import pipeline, train, tree


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pipeline.Stage]:
    return layouts.stages(tmp_path_factory.mktemp("one_level"))


@pytest.fixture(scope="module")
def runs(stages) -> dict[str, Run]:
    """Twenty steps of the base stage, each with another batch, in all layouts."""
    recipe = train.Recipe(seed=0, prior_loss_weight=0.5, ema_decay=0.99)
    settings = optimizer(learning_rate=1e-3, grad_clip=1.0)
    return {
        layout: trained(stages["base"], layout, recipe, settings, steps=20) for layout in LAYOUTS
    }


def test_one_device_eight_devices_and_split_weights_give_the_same_losses_and_weights(runs, stages):
    one, start = runs["one"], unet_alone(stages["base"])
    assert len(set(one.losses)) == 20
    for layout in ("data", "fsdp", "tensor"):
        np.testing.assert_allclose(runs[layout].losses, one.losses, rtol=1e-4)
        # Adam steps by the sign where a gradient is all rounding: of all changes together.
        trained = runs[layout].state.trainable
        off = sum(
            np.square(np.subtract(x, trained[p])).sum() for p, x in one.state.trainable.items()
        )
        moved = sum(np.square(x - start[p]).sum() for p, x in one.state.trainable.items())
        assert off < 1e-4 * moved, layout


def test_weights_moments_and_averages_are_really_split(runs):
    state = runs["fsdp"].state
    per_device = {"whole": 0, "split": 0}
    for path, leaf in state.trainable.items():
        moments = [leaf, state.ema[path], *(part[path] for part in adam_moments(state))]
        here = {shard.data.nbytes for copy in moments for shard in copy.addressable_shards}
        assert here in ({leaf.nbytes}, {leaf.nbytes // 8}), path
        per_device["whole" if here == {leaf.nbytes} else "split"] += leaf.nbytes
    assert per_device["split"] > 10 * per_device["whole"]
    assert {leaf.nbytes < 1024 for leaf in state.trainable.values()} == {True, False}


def parts_of(run: Run) -> dict[str, list[collectives.Collective]]:
    """What the devices of a layout tell each other in one step, by kind."""
    given = run.program.put_batch(batch(5, 3, size=8))
    program = run.program.step.lower(run.program.state, run.frozen, given).compile()
    by_kind = {kind: [] for kind in collectives.KINDS}
    for one in collectives.of(program):
        by_kind[one.kind].append(one)
    return by_kind


def test_devices_tell_each_other_no_more_than_they_must(runs):
    trained = runs["one"].state.trainable
    numbers = tree.count(trained)

    # Rows alone are split: sums of gradients and of the loss, and nothing else.
    found = parts_of(runs["data"])
    assert [kind for kind, ones in found.items() if ones] == ["all-reduce"]
    summed = sum(one.numbers for one in found["all-reduce"])
    assert numbers <= summed < 1.01 * numbers

    # ZeRO-3: weights are gathered for the way forward and again for the way back, and no pixel is.
    found = parts_of(runs["fsdp"])
    gathered = sum(one.numbers for one in found["all-gather"])
    frozen = tree.count(runs["fsdp"].frozen["weights"])
    assert 0.9 * numbers < gathered < 2 * (numbers + frozen)
    summed = sum(one.numbers for one in found["all-reduce"] + found["reduce-scatter"])
    assert summed < 1.1 * numbers
    pixels = 8 * 8 * 16  # of one row; what a row has of time and text is smaller
    swapped = [one for kind in ("all-to-all", "collective-permute") for one in found[kind]]
    assert all(one.numbers < pixels for one in swapped)

    # A pair of layers ends in a sum, on the way forward and on the way back. Nothing with positions
    # is gathered but what a projection of joined inputs hands back.
    found = parts_of(runs["tensor"])
    positions = (4, 8, 8), (4, 64), (2, 8, 8), (2, 64)  # rows of a device, or of two
    sums = [one for one in found["all-reduce"] if any(s[:-1] in positions for s in one.shapes)]
    blocks = 5 + 3  # residual blocks and attentions: 1 down, 2 in the middle … and 2 up
    assert blocks <= len(sums) <= 2 * blocks + 4
    whole = [one for one in found["all-gather"] if any(s[:-1] in positions for s in one.shapes)]
    assert len(whole) <= 2
    assert all("transpose" in one.operation for one in whole)


def test_chosen_leaves_train_and_the_others_stay_bit_for_bit(runs, stages):
    weights = unet_alone(stages["base"])
    for run in runs.values():
        frozen, trainable = run.frozen["weights"], run.state.trainable
        assert frozen.keys() | trainable.keys() == weights.keys()
        assert {path.split("/")[1] for path in frozen} == {"conv_in", "time_embedding"}
        assert bits(frozen) == bits({path: weights[path] for path in frozen})
        still = [p for p, leaf in trainable.items() if np.array_equal(leaf, weights[p])]
        assert still == []
        np.testing.assert_array_equal(run.frozen["table"], TABLE)


def test_a_resumed_run_with_split_weights_is_the_uninterrupted_one(runs, stages, tmp_path):
    run = runs["fsdp"]
    state, _ = run.go_on(restored(tmp_path, run, run, stages["base"]), range(3, 6))
    assert bits(state) == run.at_six


def test_what_is_saved_of_split_layers_goes_on_in_another_layout(runs, stages, tmp_path):
    then = runs["fsdp"]
    state = restored(tmp_path, runs["tensor"], then, stages["base"])
    _, losses = then.go_on(state, range(3, 6))
    np.testing.assert_allclose(losses, runs["one"].losses[3:6], rtol=1e-4)


def test_an_upscaler_gives_the_same_losses_on_one_device_and_on_eight(stages):
    losses = {}
    flat = unet_alone(stages["upscaler"])
    for layout in ("one", "fsdp"):
        program, state, frozen = start(
            train.Recipe(seed=0, aug_levels=(0, 300)),
            optimizer(learning_rate=1e-3),
            stage=stages["upscaler"],
            flat=flat,
            rules=(("unet/(conv_in|mid_block)/.*", True), (".*", False)),
            mesh=LAYOUTS[layout],
            table=TABLE,
            min_bytes=1024,
        )
        losses[layout] = []
        for step in range(3):
            given = batch(4, 4, seed=step, size=16)
            given["low_res"] = batch(4, 4, seed=100 + step, size=8)["mean"]
            state, metrics = program.step(state, frozen, program.put_batch(given))
            losses[layout].append(float(metrics["loss"]))
    np.testing.assert_allclose(losses["fsdp"], losses["one"], rtol=1e-4)


def test_everything_at_once_is_the_sum_of_rows_taken_one_by_one(stages):
    # Prior, trained text encoder, min-SNR, accumulation, split rows and split weights together.
    stage = stages["base"]
    flat = pipeline.read_weights(stage)
    recipe = train.Recipe(seed=0, prior_loss_weight=0.7, min_snr_gamma=5.0, accumulate=2)
    everything = ((".*", True),)
    program, state, frozen = start(
        recipe,
        optimizer("sgd", learning_rate=1.0),
        stage=stage,
        flat=flat,
        rules=everything,
        mesh=(2, 2),
        min_bytes=1024,
    )
    given = batch(3, 5, size=8)
    tokens = stage.tokenizer.encode(["a zib bird", "a bird"], keep="zib")
    drawn = jax.tree.map(np.asarray, train.draw(stage, recipe, given, 0))
    state, metrics = program.step(state, frozen, program.put_batch(given | tokens))

    remaining = stage.path.alphas_cumprod[drawn["t"].astype(int)]
    weight = np.minimum(remaining / (1 - remaining), 5) / (remaining / (1 - remaining))
    share = np.where(given["is_prior"], 0.7 / 5, 1 / 3) * weight

    @jax.jit
    def row_loss(params, xt, noise, t, words):
        def squared_error(params):
            text = stage.encode_text(params, words, dtype=jnp.float32)
            return ((stage.predict(params, xt, t, text)[..., :3] - noise) ** 2).mean()

        return jax.value_and_grad(squared_error)(params)

    total, gradients = 0.0, {path: np.zeros(leaf.shape) for path, leaf in flat.items()}
    for row, prompt in enumerate(given["prompt"]):
        one = slice(row, row + 1)
        xt = np.sqrt(remaining[row]) * given["mean"][one]
        xt += np.sqrt(1 - remaining[row]) * drawn["noise"][one]
        words = {name: tokens[name][prompt : prompt + 1] for name in ("ids", "mask")}
        value, slopes = row_loss(flat, jnp.float32(xt), drawn["noise"][one], drawn["t"][one], words)
        total += share[row] * float(value)
        for path, slope in slopes.items():
            gradients[path] += share[row] * np.float64(slope)

    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-4)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
    np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-3)
    assert state.trainable.keys() == flat.keys()
    for path, gradient in gradients.items():
        change = flat[path] - np.float64(state.trainable[path])
        off = np.linalg.norm(change - gradient)
        # Some biases are undone by a normalization: all of their gradient is rounding.
        assert off <= 1e-3 * np.linalg.norm(gradient) + 1e-6 * norm, path
    words = [path for path in gradients if path.startswith("text_encoder/")]
    assert all(np.abs(gradients[path]).max() > 0 for path in words)
