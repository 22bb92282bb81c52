"""LoRA and DoRA: what they add, that they add nothing at first, and the files that others open."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import adapt, kernels
from dreambooth_jax.families.unet import LORA_TARGETS

EVERYTHING = ((".*", True),)


def settings(**changed):
    usual = {"name": "lora", "rank": 4, "alpha": None, "targets": ".*", "dora": False}
    return SimpleNamespace(**(usual | changed))


@pytest.fixture
def weights(rng):
    shapes = {
        "unet/attn/to_q/kernel": (6, 8),
        "unet/attn/to_out/0/kernel": (8, 6),
        "unet/conv/kernel": (3, 3, 5, 7),
        "unet/conv/bias": (7,),
        "unet/norm/scale": (7,),
        "text_encoder/attn/q_proj/kernel": (6, 6),
        "text_encoder/shared/embedding": (9, 6),
    }
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.mark.parametrize("rank", [1, 4, 100])
def test_at_first_the_weights_are_those_of_the_base_bit_for_bit(rank, weights):
    adapter = adapt.make(settings(rank=rank), seed=0)
    trainable, frozen = adapter.init(weights, EVERYTHING)
    assert frozen == weights
    merged = kernels.all_fused(adapter.combine(frozen, trainable))
    assert merged.keys() == weights.keys()
    assert all(
        np.asarray(merged[path]).tobytes() == leaf.tobytes() for path, leaf in weights.items()
    )
    ranks = {
        path: min(rank, *shape)
        for path, shape in [("unet/attn/to_q/kernel", (6, 8)), ("unet/conv/kernel", (45, 7))]
    }
    for path, r in ranks.items():
        assert trainable[f"{path}/lora_up"].shape == (r, weights[path].shape[-1])
        assert trainable[f"{path}/lora_down"].shape == (*weights[path].shape[:-1], r)


def test_only_chosen_kernels_get_factors(weights):
    rules = (("unet/.*", True), (".*", False))
    adapter = adapt.make(settings(targets=LORA_TARGETS), seed=0)
    trainable, _ = adapter.init(weights, rules)
    chosen = {path.rpartition("/")[0] for path in trainable}
    assert chosen == {"unet/attn/to_q/kernel", "unet/attn/to_out/0/kernel"}
    everywhere, _ = adapter.init(weights, EVERYTHING)
    assert "text_encoder/attn/q_proj/kernel/lora_up" in everywhere
    # A kernel's first values are its own: choosing others as well does not change them.
    same = "unet/attn/to_q/kernel/lora_down"
    np.testing.assert_array_equal(trainable[same], everywhere[same])
    with pytest.raises(ValueError, match=r"adapt\.targets = 'nothing'.*choose no kernel"):
        adapt.make(settings(targets="nothing"), seed=0).init(weights, rules)


def test_the_change_is_alpha_over_rank_times_the_product(weights, rng):
    adapter = adapt.make(settings(alpha=6.0), seed=0)
    trainable, frozen = adapter.init(weights, EVERYTHING)
    trained = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in trainable.items()}
    merged = kernels.all_fused(adapter.combine(frozen, trained))
    down, up = (np.float64(trained[f"unet/conv/kernel/{n}"]) for n in ("lora_down", "lora_up"))
    expected = weights["unet/conv/kernel"] + 6 / 4 * np.einsum("hwir,ro->hwio", down, up)
    np.testing.assert_allclose(merged["unet/conv/kernel"], expected, rtol=1e-4, atol=1e-4)
    # As a convolution it is the small one after the large one.
    x = rng.normal(size=(2, 5, 5, 5)).astype(np.float32)

    def conv(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)

    straight = conv(x, weights["unet/conv/kernel"])
    side = conv(
        conv(x, trained["unet/conv/kernel/lora_down"]),
        trained["unet/conv/kernel/lora_up"][None, None],
    )
    np.testing.assert_allclose(
        conv(x, merged["unet/conv/kernel"]), straight + 1.5 * side, atol=2e-3
    )


def test_dora_gives_each_output_channel_its_trained_length(weights, rng):
    adapter = adapt.make(settings(dora=True), seed=0)
    trainable, frozen = adapter.init(weights, EVERYTHING)
    merged = kernels.all_fused(adapter.combine(frozen, trainable))
    for path, leaf in weights.items():
        np.testing.assert_allclose(merged[path], leaf, rtol=2e-6)
    trained = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in trainable.items()}
    kernel = kernels.fused(adapter.combine(frozen, trained)["unet/attn/to_q/kernel"])
    lengths = trained["unet/attn/to_q/kernel/dora_length"]
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), np.abs(lengths), rtol=1e-5)
    plain = {path: x for path, x in trained.items() if "dora" not in path}
    without = adapt.make(settings(), seed=0).combine(frozen, plain)
    straight = kernels.fused(without["unet/attn/to_q/kernel"])
    length = np.linalg.norm(kernel, axis=0) * np.linalg.norm(straight, axis=0)
    np.testing.assert_allclose((kernel * straight).sum(0) / length, np.sign(lengths), rtol=1e-5)


def test_the_first_step_moves_the_second_factor_alone(weights):
    adapter = adapt.make(settings(), seed=0)
    trainable, frozen = adapter.init(weights, EVERYTHING)

    def loss(trainable):
        merged = kernels.all_fused(adapter.combine(frozen, trainable))
        return sum(jnp.square(leaf + 1).sum() for leaf in merged.values())

    for path, grad in jax.grad(loss)(trainable).items():
        assert bool(np.abs(grad).max() > 0) == path.endswith("lora_up"), path


def test_several_changes_of_a_kernel_are_their_sum(weights, rng):
    path, other = "unet/conv/kernel", "unet/attn/to_q/kernel"
    adapter = adapt.make(settings(targets=path, alpha=2.0), seed=0)
    trainable, frozen = adapter.init(weights, EVERYTHING)
    trainable = {key: x + 0.3 for key, x in trainable.items()}
    tuned = adapter.combine(frozen, trainable)

    def factors(*shape):
        return rng.normal(size=(*shape[:-1], 2)), rng.normal(size=(2, shape[-1]))

    first, second, third = factors(3, 3, 5, 7), factors(3, 3, 5, 7), factors(6, 8)
    found = adapt.lora.changed(tuned, {path: first, other: third})
    found = adapt.lora.changed(found, {path: second})
    own = 2.0 / 4 * np.tensordot(trainable[f"{path}/lora_down"], trainable[f"{path}/lora_up"], 1)
    expected = weights[path] + own + np.tensordot(*first, 1) + np.tensordot(*second, 1)
    np.testing.assert_allclose(kernels.fused(found[path]), expected, atol=1e-5)
    np.testing.assert_allclose(
        kernels.fused(found[other]), weights[other] + np.tensordot(*third, 1), atol=1e-5
    )
    same = [key for key in weights if key not in (path, other)]
    assert all(found[key] is tuned[key] for key in same)
    assert kernels.fused(tuned[path]).shape == expected.shape  # the model itself is as it was


def test_nothing_is_added_to_dora(weights):
    adapter = adapt.make(settings(targets="unet/conv/kernel", dora=True), seed=0)
    trainable, frozen = adapter.init(weights, EVERYTHING)
    tuned = adapter.combine(frozen, trainable)
    change = {"unet/conv/kernel": (np.ones((3, 3, 5, 1)), np.ones((1, 7)))}
    with pytest.raises(ValueError, match="DoRA"):
        adapt.lora.changed(tuned, change)
