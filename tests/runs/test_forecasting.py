"""--mode=precompile and the estimate of memory: what is compiled is what trains, on any devices.

The compiler here is that of CPUs; test_precompile has that of TPUs.
"""

import json

import commands
import jax
import numpy as np
import pytest

from dreambooth_jax import chips, families, flops, precompile, sharding, train, tree
from dreambooth_jax import config as configs
from dreambooth_jax.experiment.modes import precompile as forecasting
from dreambooth_jax.experiment.parts import drawing as painter
from dreambooth_jax.experiment.training import memory as budget
from dreambooth_jax.experiment.training import shapes

LORA = {"adapt__name": "lora", "adapt__rank": 2}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    return commands.cascade(tmp_path_factory)


@pytest.fixture
def without_weights(stages, tmp_path):
    """The same models' configuration files alone."""
    folders = {}
    for kind, folder in stages.items():
        folders[kind] = tmp_path / "architecture" / kind
        for file in folder.rglob("*config.json"):
            if file.parent.name != "tokenizer":
                target = folders[kind] / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(file.read_text())
        index = (folder / "model_index.json").read_text()
        (folders[kind] / "model_index.json").write_text(index)
    return folders


@pytest.fixture
def two_devices(monkeypatch):
    monkeypatch.setattr(precompile, "topology", lambda name, num_slices: jax.devices()[:2])


def unet_bytes(folder, kind):
    stage = families.open_stage(str(folder), kind=kind, shapes_only=True)
    return tree.nbytes(tree.prefixed(stage.abstract, "unet"))


def test_a_forecast_needs_configuration_files_alone_and_ends_with_what_does_not_fit(
    without_weights, two_devices, tmp_path, monkeypatch
):
    small = chips.Chip("toy", memory=2.0**20, flops=1e9, bandwidth=1e9)
    monkeypatch.setattr(chips, "of", lambda device: small)
    c = commands.config(without_weights, stages=("upscaler",), sharding__min_bytes=0)
    c.precompile.programs = ("train",)
    with pytest.raises(forecasting.DoesNotFit, match=r"upscaler: train step.*GiB of 0\.00"):
        commands.here(forecasting.forecast, c, tmp_path)
    (step,) = json.loads((tmp_path / "precompile.json").read_text())
    assert not step["fits"]
    assert step["program"] == "upscaler: train step, 4 row(s)"
    state = 3 * unet_bytes(without_weights["upscaler"], "upscaler")  # and two moments
    pictures = 4 * (16 * 16 + 8 * 8) * 3 * 4  # of four rows, at both sizes, float32
    texts = step["arguments"] - state - pictures
    assert 0 < texts < 2**20  # embeddings of a few prompts, counters
    assert step["aliased"] > state
    assert step["least_seconds"] == max(step["operations"], step["moved"]) / 1e9


def test_drawing_is_forecast_for_both_stages(without_weights):
    c = commands.config(without_weights)
    mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])
    opened = {
        kind: families.open_stage(str(folder), kind=kind, shapes_only=True)
        for kind, folder in without_weights.items()
    }
    made = {
        kind: forecasting.PROGRAMS["sample"](configs.resolve(c), kind, opened, mesh)
        for kind in opened
    }
    assert [name for name, _, _ in made.values()] == [
        "base: draw, 1 row(s)",
        "upscaler: draw, 1 row(s)",
    ]
    for kind, (_, program, args) in made.items():
        traced = program.trace(*args)
        assert traced.out_info.shape == (2, *opened[kind].size, 3)
        steps = {"base": c.sampler.num_steps, "upscaler": c.sampler.upscaler_num_steps}[kind]
        one_step = flops.count(jax.make_jaxpr(one_prediction(opened[kind], c))())
        guided = 2 if kind == "base" else 1
        assert flops.count(traced.jaxpr) == pytest.approx(
            steps * guided * one_step, rel=0.05
        )  # and what enlarges pictures


def test_a_fleet_s_step_is_that_of_each_subject_beside_one_base(without_weights, tmp_path):
    settings = LORA | {"fleet__at_once": 6, "stages": ("base",), "train__batch_size": 2}
    c = commands.config(without_weights, **settings)
    plan = configs.resolve(c)
    opened = {
        "base": families.open_stage(str(without_weights["base"]), kind="base", shapes_only=True)
    }
    on = {n: sharding.make_mesh(data=n, devices=jax.devices()[:n]) for n in (1, 2)}
    made = {
        what: forecasting.PROGRAMS[what](plan, "base", opened, on[n])
        for what, n in (("train", 1), ("fleet", 2))
    }
    name, program, args = made["fleet"]
    assert name == "base: fleet, 3 x 2 row(s)"
    states, weights, *own = args
    for leaf in jax.tree.leaves([states, own]):
        assert leaf.shape[0] == 6
        assert leaf.sharding.shard_shape(leaf.shape)[0] == 3
    for leaf in jax.tree.leaves(weights):
        assert leaf.sharding.is_fully_replicated
    assert tree.nbytes(weights) >= unet_bytes(without_weights["base"], "base")
    alone = flops.count(made["train"][1].trace(*made["train"][2]).jaxpr)
    assert flops.count(program.trace(*args).jaxpr) == pytest.approx(6 * alone, rel=1e-6)

    c.adapt.name, c.precompile.programs = "full", ("fleet",)
    with pytest.raises(ValueError, match=r"--config\.adapt\.name=lora or textual_inversion"):
        commands.here(forecasting.forecast, c, tmp_path)


def one_prediction(stage, c):
    """The network once, for the two pictures of a batch."""
    x = np.zeros((2, *stage.sample_shape), np.float32)
    level = np.zeros(2, np.int32)
    extra = {"condition": x, "noise_level": level} if stage.kind == "upscaler" else {}
    params = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in stage.abstract.items()}
    text = np.zeros((2, 77, 32), np.float32)
    return lambda: stage.predict(params, x, level, text, **extra)


class Enough(Exception):
    """The loop was reached."""


@pytest.mark.parametrize(
    "changed",
    [
        {"train__text_encoder": True, "train__accumulate": 2},
        {"prior_loss_weight": 1.0, "prior__kind": "prediction", **LORA, "adapt__dora": True},
    ],
)
def test_what_is_forecast_is_what_trains(stages, changed, tmp_path, monkeypatch):
    reached = []

    def fit(run, state, frozen, batch_at, **others):
        reached.append((run, state, frozen, run.put_batch(batch_at(0))))
        raise Enough

    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(painter.Painter, "grid", lambda self, weights, label, stop=None: None)
    settings = {"stages": ("base",), "prior_loss_weight": 0.0, "train__batch_size": 16}
    settings |= {"subject__identifier": "zib"}  # a forecast has no weights to choose one by
    c = commands.config(stages, **settings | changed)
    with pytest.raises(Enough):
        commands.run_here(c, tmp_path / "run")
    ((run, *args),) = reached

    opened = {kind: families.open_stage(str(folder), kind=kind) for kind, folder in stages.items()}
    step = shapes.step_of(configs.resolve(c), "base", opened, run.mesh)
    assert jax.tree.structure(step.args) == jax.tree.structure(tuple(args))
    for shape, array in zip(jax.tree.leaves(step.args), jax.tree.leaves(args), strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype)
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)
    assert str(step.run.step.trace(*step.args).jaxpr) == str(run.step.trace(*args).jaxpr)


def test_an_estimate_adds_up_and_names_what_helps(without_weights, monkeypatch):
    opened = {
        "base": families.open_stage(str(without_weights["base"]), kind="base", shapes_only=True)
    }
    mesh = sharding.make_mesh(data=2, devices=jax.devices()[:2])

    def estimate(mesh=mesh, **changed):
        c = commands.config(without_weights, sharding__min_bytes=0, **changed)
        return budget.estimate(configs.resolve(c), "base", opened, mesh)

    plain, unet = estimate(), unet_bytes(without_weights["base"], "base")
    assert plain.parameters == plain.gradients == unet
    np.testing.assert_allclose(plain.optimizer, 2 * unet, rtol=1e-3)  # and a counter
    parts = estimate(train__accumulate=4)
    assert parts.activations == pytest.approx(plain.activations / 4, rel=0.05)
    assert estimate(train__remat="blocks").activations < plain.activations / 2
    halves = estimate(sharding.make_mesh(data=1, fsdp=2, devices=jax.devices()[:2]))
    assert 0.5 * unet <= halves.parameters < 0.6 * unet
    low_rank = estimate(**LORA)
    assert low_rank.frozen > unet
    assert low_rank.gradients < 0.2 * unet

    # Gradients come while activations go; their sums over parts are there all the time.
    assert plain.total == unet + plain.optimizer + plain.frozen + plain.activations
    assert parts.total == plain.total - plain.activations + max(unet, parts.activations) + unet

    c = commands.config(without_weights, sharding__min_bytes=0)
    run = shapes.step_of(configs.resolve(c), "base", opened, mesh).run
    assert "will probably not fit" not in budget.line(configs.resolve(c), "base", opened, run)
    monkeypatch.setattr(budget, "memory_of", lambda device: plain.total - 1)
    told = budget.line(configs.resolve(c), "base", opened, run)
    assert "will probably not fit" in told
    for setting in ("train.remat=blocks", "mesh.fsdp=2", "adapt.name=lora"):
        assert setting in told.partition("Any of these would make it fit:")[2]
    monkeypatch.setattr(budget, "memory_of", lambda device: 1.0)
    monkeypatch.setattr(budget, "estimate", lambda *args: plain)
    assert "Use several." in budget.line(configs.resolve(c), "base", opened, run)
