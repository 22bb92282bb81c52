"""One train step of every flow family as settings ask for it: what learns, and what stays.

Two subjects with prompts of two lengths, prior preservation by pictures and by prediction, min-SNR,
accumulation, text encoders; on 8 devices as on one.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax import families, generate, kernels, pipeline, sharding
from dreambooth_jax.data.batches import StepTokens
from dreambooth_jax.data.subject import Words
from dreambooth_jax.experiment.parts import subjects
from dreambooth_jax.experiment.parts.model import Model, as_tuned
from dreambooth_jax.experiment.training import program
from dreambooth_jax.families import flux2

pytest.importorskip("diffusers", reason="makes the small models: extra `parity`")
import flows
import qwen_pipelines

WORDS = [
    Words.of(identifier="<zib>", class_noun="dog"),
    Words.of(identifier="<quux>", class_noun="teddy bear in a box"),
]
PROMPTS = [x for each in WORDS for x in (each.instance_prompt, each.class_prompt)]
COMMON = {
    "upscaler_model": "",
    "stages": ("base",),
    "adapt.rank": 2,
    "prior_loss_weight": 0.5,
    "train.num_steps": 4,
    "train.batch_size": 4,
    "optim.learning_rate": 1e-3,
}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "snr": ("sd3 without t5", {"adapt.name": "lora", "loss.min_snr_gamma": 5.0}),
    "words": ("sd3", {"adapt.name": "textual_inversion", "prior_loss_weight": 0.0}),
    "text": ("flux dev", {"adapt.name": "lora", "train.text_encoder": True}),
    "lora": ("z_image", {"adapt.name": "lora", "prior.kind": "prediction"}),
    "full": ("klein", {"adapt.name": "full", "prior.kind": "prediction", "train.accumulate": 2}),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Stage and weights of a small model by its family's name, made once."""

    @functools.cache
    def of(name):
        make = flows.make if name in flows.CLASSES else qwen_pipelines.make
        folder = make(tmp_path_factory.mktemp("flow") / "model", name)
        stage = families.open_stage(str(folder), kind="base", resolution=16)
        return stage, pipeline.read_weights(stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flux2, "READ", qwen_pipelines.READ)
        yield of


def table_of(stage, flat):
    """Random embeddings of the prompts, in the form that the family has them."""
    tokens, rng = stage.tokens(["", *PROMPTS]), np.random.default_rng(0)
    encode = functools.partial(stage.encode_text, dtype=jnp.float32)
    table = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32), jax.eval_shape(encode, flat, tokens)
    )
    if hasattr(table, "mask"):  # of Z-Image, whose captions differ in length
        assert len({*tokens["mask"].sum(1)}) > 2
        table = table._replace(mask=tokens["mask"].astype(np.float32))
    return table


@dataclasses.dataclass(frozen=True)
class Result:
    stage: Any
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    told: list[dict[str, float]]


def trained(opened, cell, *, mesh=None):
    """Three times the same step, and all weights before and after."""
    name, changed = CELLS[cell]
    c = configs.base_config()
    c.update_from_flattened_dict(COMMON | changed | (mesh or {}))
    plan = configs.resolve(c)
    own = plan.stages["base"]
    stage, flat = opened(name)
    sizes = dataclasses.asdict(plan.mesh) if mesh else {"data": 1, "fsdp": 1, "tensor": 1}
    devices = jax.devices()[: math.prod(sizes.values())]
    on = sharding.make_mesh(**sizes, devices=devices)
    model = subjects.with_new_words(plan, Model({"base": stage}, {"base": flat}, {}, on), WORDS)
    stage, flat = as_tuned(plan, model.stages["base"]), model.weights["base"]
    adapter = program.adapter_of(plan, stage)
    text = generate.Text(("", *PROMPTS), table_of(stage, flat))
    trainable, frozen, recipe = program.start(own, stage, flat, text, adapter)
    run = program.step(own, stage, on, trainable, frozen, recipe, adapter)
    state, frozen = run.init(trainable), jax.device_put(frozen, run.frozen)

    rng, count = np.random.default_rng(1), own.train.batch_size
    batch = {
        "mean": rng.normal(size=(count, *stage.sample_shape)).astype(np.float32),
        "std": rng.uniform(0.1, 0.2, (count, *stage.sample_shape)).astype(np.float32),
        "prompt": np.array([1, 2, 3, 4], np.int32),  # subject and class of each, in turn
        "is_prior": np.array([False, True, False, True]) & (own.prior_loss_weight > 0),
    }
    if configs.learns_text(own):
        every = stage.tokens(text.prompts, keep=[each.identifier for each in WORDS])
        batch |= StepTokens(every, np.arange(1, 5), count).of(batch["prompt"])
    told = []
    for _ in range(3):
        state = dataclasses.replace(state, step=jnp.int32(0))
        state, metrics = run.step(state, frozen, run.put_batch(batch))
        told.append(jax.tree.map(float, metrics))
    final = {path: sharding.fetch(leaf) for path, leaf in state.trainable.items()}
    after = kernels.all_fused(adapter.combine(dict(flat), final))
    return Result(stage, flat, {path: np.asarray(x) for path, x in after.items()}, told)


@pytest.fixture(scope="module")
def results(opened):
    return functools.cache(lambda cell: trained(opened, cell))


@pytest.mark.parametrize("cell", list(CELLS))
def test_a_family_learns_what_it_is_asked_to(cell, results):
    result, (_, changed) = results(cell), CELLS[cell]
    losses = [each["loss"] for each in result.told]
    assert np.isfinite(losses).all() and losses[2] < losses[0], losses
    assert result.told[-1]["bad_steps"] == 0
    prior = result.told[0]["loss/prior"]
    if changed.get("prior.kind") == "prediction":  # the target is what is predicted, at first
        assert prior < 1e-8
    else:
        assert (prior > 0) == (changed.get("prior_loss_weight", 1) > 0)

    before, after = result.before, result.after
    moved = {path for path in before if before[path].tobytes() != after[path].tobytes()}
    kernels_moved = {path for path in moved if path.endswith("/kernel")}
    denoiser = {p for p in before if p.startswith("transformer/") and p.endswith("/kernel")}
    match cell:
        case "full":
            assert kernels_moved == denoiser
            assert all(path.startswith("transformer/") for path in moved)
        case "words":
            assert moved == {*result.stage.new_rows} and len(moved) == 3
            for path, ids in result.stage.new_rows.items():
                rows = np.flatnonzero((before[path] != after[path]).any(1))
                assert [*rows] == sorted(ids)
        case "text":  # CLIP alone, not T5
            assert {path.partition("/")[0] for path in moved} == {"transformer", "text_encoder"}
            assert moved == kernels_moved
        case "lora":
            assert moved < denoiser
            assert all(path.startswith("transformer/layers/") for path in moved)
        case "snr":
            assert moved < denoiser
            assert all(path.startswith("transformer/transformer_blocks/") for path in moved)


def test_8_devices_take_the_steps_of_one(opened, results):
    """Rows, parameters and layers are split; the text and the picture make 349 tokens."""
    mesh = {"mesh.data": 2, "mesh.fsdp": 2, "mesh.tensor": 2, "sharding.min_bytes": 0}
    found, expected = trained(opened, "snr", mesh=mesh), results("snr")
    for a, b in zip(found.told, expected.told, strict=True):
        for name in ("loss", "loss/prior", "grad_norm"):
            assert math.isclose(a[name], b[name], rel_tol=1e-4), (name, a, b)
