"""Moments in 8 bits with real networks: of factors and of whole layers, split as their weights."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from toy_stage import optimizer

from dreambooth_jax import adapt, pipeline, train, tree
from dreambooth_jax.optim import moments

# Of first and second layers of pairs.
LORA = adapt.make(
    SimpleNamespace(
        name="lora",
        rank=8,
        alpha=None,
        targets=r"unet/mid_block/.*/(to_[qkv]|to_out/0|add_[kv]_proj|conv[12])/kernel",
        dora=False,
        then="full",
    ),
    seed=0,
)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Stage:
    return layouts.stages(tmp_path_factory.mktemp("one_level"))["base"]


@pytest.fixture(scope="module")
def factors(stage) -> dict[str, layouts.Run]:
    """Six steps of the base stage's LoRA, all moments coded."""
    return coded(stage, adapter=LORA)


def coded(stage: pipeline.Stage, **how: Any) -> dict[str, layouts.Run]:
    """Six steps on one device and with split layers, all moments in 8 bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moments, "SMALLEST", 1)
        settings = optimizer("adamw8bit", learning_rate=1e-3)
        recipe = train.Recipe(seed=0, prior_loss_weight=0.5)
        return {
            layout: layouts.trained(stage, layout, recipe, settings, steps=6, **how)
            for layout in ("one", "tensor")
        }


def test_factors_and_coded_moments_are_split_with_their_layers(factors):
    one, run = factors["one"], factors["tensor"]
    np.testing.assert_allclose(run.losses, one.losses, rtol=1e-4)
    first, second = 0, 0
    for path, leaf in run.state.trainable.items():
        parts = cut_alike(run.state, path, leaf)
        *_, layer, kind = path.replace("to_out/0", "to_out").replace("/kernel", "").split("/")
        if layer in ("to_out", "conv2"):
            assert kind != "lora_down" or parts[-2] == 2, path
            second += kind == "lora_down"
        else:
            assert kind != "lora_up" or parts[-1] == 2, path
            first += kind == "lora_up"
    assert (first, second) == (2 + 5, 2 + 1)  # of two residual blocks and an attention


def cut_alike(state: train.TrainState, path: str, leaf: jax.Array) -> tuple[int, ...]:
    """Into how many parts a leaf and the codes of its moments are cut along each axis."""
    codes = [part[path].code for part in layouts.adam_moments(state)]
    assert {code.dtype for code in codes} == {jnp.dtype("int8"), jnp.dtype("uint8")}
    (parts,) = {
        tuple(np.floor_divide(x.shape, x.addressable_shards[0].data.shape)) for x in (leaf, *codes)
    }
    return parts


def test_coded_moments_of_whole_layers_are_split_with_them(stage, tmp_path):
    full = coded(stage, rules=layouts.MIDDLE)
    one, run = full["one"], full["tensor"]
    np.testing.assert_allclose(run.losses, one.losses, rtol=1e-4)
    cut = {path: cut_alike(run.state, path, leaf) for path, leaf in run.state.trainable.items()}
    first = {path for path in cut if path.endswith(("to_q/kernel", "conv1/kernel"))}
    assert len(first) == 1 + 2  # of an attention and two residual blocks
    assert {cut[path][-1] for path in first} == {2}
    split = {path for path, parts in cut.items() if max(parts) > 1}
    assert (
        sum(run.state.trainable[path].size for path in split) > tree.count(one.state.trainable) / 2
    )
    state = layouts.restored(tmp_path, run, one, stage, rules=layouts.MIDDLE)
    _, losses = one.go_on(state, range(3, 6))
    np.testing.assert_allclose(losses, one.losses[3:6], rtol=1e-4)


def test_what_is_saved_of_split_factors_goes_on_on_one_device(factors, stage, tmp_path):
    one = factors["one"]
    state = layouts.restored(tmp_path, factors["tensor"], one, stage, adapter=LORA)
    _, losses = one.go_on(state, range(3, 6))
    np.testing.assert_allclose(losses, one.losses[3:6], rtol=1e-4)
