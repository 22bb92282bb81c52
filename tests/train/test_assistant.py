"""A frozen LoRA beside a distilled model while it is trained, absent from all that is drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_stage
from toy_networks import Small, weights

from dreambooth_jax import adapt, generate, kernels, sharding
from dreambooth_jax import config as configs
from dreambooth_jax.adapt import lora
from dreambooth_jax.experiment.training import checks, program

ASSISTED = ("unet/pixel/kernel", "unet/time/kernel")


def config_of(**changed):
    c = configs.base_config()
    settings = {
        "stages": ("base",),
        "upscaler_model": "",
        "adapt.name": "lora",
        "adapt.rank": 2,
        "adapt.targets": ".*/kernel",
        "prior.kind": "prediction",
        "prior_loss_weight": 0.5,
        "train.num_steps": 6,
        "train.batch_size": 2,
        "optim.learning_rate": 0.02,
    }
    c.update_from_flattened_dict(settings | {k.replace("__", "."): v for k, v in changed.items()})
    return configs.resolve(c)


@pytest.fixture
def assistant(monkeypatch):
    """Factors of two kernels, as `lora_reader.read` gives them of a file."""
    flat, rng = weights(), np.random.default_rng(3)
    made = {}
    for path in ASSISTED:
        fan_in, fan_out = flat[path].shape
        made[f"{path}/{lora.DOWN}"] = rng.normal(size=(fan_in, 2)).astype(np.float32)
        made[f"{path}/{lora.UP}"] = rng.normal(size=(2, fan_out)).astype(np.float32)
    monkeypatch.setattr(program.lora_reader, "read", lambda stage, file: made)
    return made


def step_of(flat, *, file=""):
    """Two steps from these weights; returns the metrics of each, and what was trained."""
    own, stage = config_of(adapt__assistant=file).stages["base"], Small()
    tokens = {"ids": toy_stage.IDS, "mask": toy_stage.MASK}
    table = stage.encode_text(flat, tokens, dtype=np.float32)
    text = generate.Text(("the subject", "its class"), jnp.asarray(table))
    adapter = adapt.make(own.adapt, seed=0)
    trainable, frozen, recipe = program.start(own, stage, flat, text, adapter)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    run = program.step(own, stage, mesh, trainable, frozen, recipe, adapter)
    state, frozen = run.init(trainable), jax.device_put(frozen, run.frozen)
    told = []
    for _ in range(2):
        state, metrics = run.step(state, frozen, run.put_batch(toy_stage.batch(1, 1)))
        told.append(jax.tree.map(float, metrics))
    return told, jax.tree.map(np.asarray, state.trainable), adapter


def test_training_beside_it_is_training_of_the_sum(assistant):
    flat = weights()
    merged = dict(flat)
    for path in ASSISTED:
        merged[path] = flat[path] + assistant[f"{path}/lora_down"] @ assistant[f"{path}/lora_up"]
    plain, _, _ = step_of(flat)
    expected, factors, _ = step_of(merged)
    found, own, adapter = step_of(flat, file="FILE")
    for told, wanted in zip(found, expected, strict=True):
        assert told["loss"] == pytest.approx(wanted["loss"], rel=1e-4)
    assert abs(found[0]["loss"] - plain[0]["loss"]) > 1e-2
    # The class rows' target is what the model predicts with it: at first there is no error.
    assert found[0]["loss/prior"] < 1e-10
    for path, leaf in factors.items():
        np.testing.assert_allclose(own[path], leaf, rtol=1e-3, atol=1e-5)
    # What draws is the base with what was trained: the assistant is not in it.
    drawn = kernels.all_fused(adapter.combine(flat, own))
    for path in ASSISTED:
        scale = 2 / own[f"{path}/lora_up"].shape[0]
        change = scale * own[f"{path}/lora_down"] @ own[f"{path}/lora_up"]
        np.testing.assert_allclose(drawn[path], flat[path] + change, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "distilled", "message"),
    [
        ({"adapt__assistant": "FILE", "adapt__name": "full"}, "", r"adapt\.name=lora"),
        ({"adapt__assistant": "FILE", "adapt__dora": True}, "", r"adapt\.dora=False"),
        ({}, "It is distilled.", r"It is distilled\. Or write --config\.adapt\.assistant=FILE"),
        ({"adapt__assistant": "none"}, "It is distilled.", None),
        ({"adapt__assistant": "FILE"}, "It is distilled.", None),
        ({}, "", None),
    ],
)
def test_what_a_distilled_model_needs_is_checked(changed, distilled, message, assistant):
    plan = config_of(**changed)

    @dataclasses.dataclass(frozen=True, eq=False)
    class Distilled(Small):
        distilled: str = ""

    arguments = (plan, plan.stages["base"], Distilled(distilled=distilled), None)
    if message is None:
        checks._distilled(*arguments)
    else:
        with pytest.raises(ValueError, match=message):
            checks._distilled(*arguments)
