"""The ways to train, each with each other one: where peers break.

Every cell is a configuration that `validate` and `program.start` turn into a step on a toy stage:
its loss falls, what is to change changes, everything else stays bit for bit. By default enough
cells run that every pair of choices occurs; `pytest -m matrix` runs all.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_stage
from toy_networks import KERNELS, NEW, TABLE, Small, weights
from toy_stage import IDS, MASK

from dreambooth_jax import adapt, generate, kernels, sharding
from dreambooth_jax import config as configs
from dreambooth_jax.data.batches import split_rows
from dreambooth_jax.experiment.training import program

CHOICES: dict[str, tuple[Any, ...]] = {
    "prior": ("off", "images", "prediction"),
    "adapt": ("full", "lora", "textual_inversion", "pivotal"),
    "text": (False, True),
    "min_snr": (0.0, 5.0),
    "variance": ("fixed", "trained"),
    "accumulate": (1, 2),
    "batch_size": (1, 2),
}
Cell = dict[str, Any]
CELLS = [dict(zip(CHOICES, values, strict=True)) for values in itertools.product(*CHOICES.values())]
PIVOT = 3  # steps of inversion


def refused(cell: Cell) -> str | None:
    """Why a cell cannot be: what its error says; None for one that can."""
    if cell["adapt"] == "textual_inversion" and cell["text"]:
        return "train.text_encoder = True.*trains embeddings alone"
    if cell["batch_size"] == 1 and cell["prior"] != "off":
        return "train.batch_size = 1.*a row for the subject and one for its class"
    if cell["batch_size"] < cell["accumulate"]:
        return "train.batch_size = 1.*a multiple of train.accumulate = 2"
    return None


POSSIBLE = [cell for cell in CELLS if refused(cell) is None]


def pairs(cell: Cell) -> set[tuple[tuple[str, Any], ...]]:
    return set(itertools.combinations(cell.items(), 2))


def covering(cells: list[Cell]) -> list[Cell]:
    """Cells in which every pair that occurs in `cells` occurs: the most new pairs first."""
    left = set().union(*map(pairs, cells))
    chosen = []
    while left:
        best = max(cells, key=lambda cell: len(left & pairs(cell)))
        left -= pairs(best)
        chosen.append(best)
    return chosen


def named(cell: Cell) -> str:
    return "-".join(f"{value}" for value in cell.values())


def test_the_cells_that_run_by_default_cover_all_pairs_that_can_be():
    assert len(CELLS) == 3 * 4 * 2**5
    # By hand: 7 of 8 pairs of way to adapt and text encoder; of prior, accumulation and rows
    # 3 · 2 with two rows and 1 with one; min-SNR and the learned variance go with all.
    assert len(POSSIBLE) == 7 * (3 * 2 + 1) * 2 * 2
    found = set().union(*map(pairs, covering(POSSIBLE)))
    for (name, values), (other, more) in itertools.combinations(CHOICES.items(), 2):
        for pair in itertools.product(values, more):
            two = dict(zip((name, other), pair, strict=True))
            there = tuple(two.items()) in found
            cannot_be = two in (
                {"adapt": "textual_inversion", "text": True},
                {"prior": "images", "batch_size": 1},
                {"prior": "prediction", "batch_size": 1},
                {"accumulate": 2, "batch_size": 1},
            )
            assert there != cannot_be, two
    assert len(covering(POSSIBLE)) < len(POSSIBLE) / 5


def config_of(cell: Cell) -> configs.ConfigDict:
    c = configs.base_config()
    c.stages, c.upscaler_model = ("base",), ""
    c.prior_loss_weight = 0.0 if cell["prior"] == "off" else 0.5
    c.prior.kind = "prediction" if cell["prior"] == "prediction" else "images"
    c.adapt.name, c.adapt.then, c.adapt.rank = cell["adapt"], "lora", 2
    c.adapt.targets = ".*/kernel"
    c.adapt.inversion_steps, c.adapt.inversion_learning_rate = PIVOT, 0.02
    c.train.text_encoder = cell["text"]
    c.train.num_steps = 2 * PIVOT
    c.train.accumulate, c.train.batch_size = cell["accumulate"], cell["batch_size"]
    c.loss.min_snr_gamma, c.loss.learned_variance = cell["min_snr"], cell["variance"]
    c.optim.learning_rate = 0.02
    configs.validate(c)
    return c


@pytest.mark.parametrize("cell", [c for c in CELLS if refused(c)], ids=named)
def test_a_cell_that_cannot_be_is_an_error_that_says_why(cell):
    with pytest.raises(configs.ConfigError, match=refused(cell)):
        config_of(cell)


def check(cell: Cell) -> None:
    c, stage, flat = config_of(cell), Small(), weights()
    own = configs.resolve(c).stages["base"]
    learns_words = cell["adapt"] in ("textual_inversion", "pivotal")
    new_rows = {TABLE: (NEW,)} if learns_words else {}
    ids = np.where(IDS[0, 0] == IDS, NEW, IDS) if learns_words else IDS
    tokens = {"ids": ids.astype(np.int32), "mask": MASK}
    table = stage.encode_text(flat, tokens, dtype=np.float32)
    adapter = adapt.make(own.adapt, seed=0, new_rows=new_rows)
    text = generate.Text(("the subject", "its class"), jnp.asarray(table))
    trainable, frozen, recipe = program.start(own, stage, flat, text, adapter)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    run = program.step(own, stage, mesh, trainable, frozen, recipe, adapter)
    state, frozen = run.init(trainable), jax.device_put(frozen, run.frozen)
    fraction = c.train.prior_fraction if c.prior_loss_weight else 0
    counts = split_rows(c.train.batch_size, prior_fraction=fraction)
    batch = toy_stage.batch(*counts) | (tokens if configs.learns_text(c) else {})

    # The same draws again and again: the loss of a step that is repeated must fall. Of pivotal
    # tuning the first step trains the word, the other one what is around it.
    first_of_all = None
    for step in (0, PIVOT) if cell["adapt"] == "pivotal" else (0,):
        losses = []
        for _ in range(4):
            state = dataclasses.replace(state, step=jnp.int32(step))
            state, metrics = run.step(state, frozen, run.put_batch(batch))
            first_of_all = first_of_all or jax.tree.map(float, metrics)
            losses.append(float(metrics["loss"]))
        assert np.isfinite(losses).all(), losses
        assert (np.diff(losses) < 0).all(), losses
    assert int(metrics["bad_steps"]) == 0
    if cell["prior"] == "prediction":  # at first the model says what the untouched one says
        assert first_of_all["loss/prior"] < 1e-10
    else:
        assert (first_of_all["loss/prior"] > 0) == (cell["prior"] == "images")

    combined = adapter.combine(dict(frozen["weights"]), state.trainable)
    after = jax.tree.map(np.asarray, kernels.all_fused(combined))
    changed = {path for path, leaf in after.items() if leaf.tobytes() != flat[path].tobytes()}
    tuned = {path for path in KERNELS if path.startswith("unet/") or cell["text"]}
    expected = {
        "full": tuned | ({TABLE} if cell["text"] else set()),
        "lora": tuned,
        "textual_inversion": {TABLE},
        "pivotal": tuned | {TABLE},
    }[cell["adapt"]]
    assert changed == expected
    if learns_words:  # and of the table its new row alone
        assert after[TABLE][:NEW].tobytes() == flat[TABLE][:NEW].tobytes()
    still = {path: np.asarray(leaf) for path, leaf in frozen["weights"].items()}
    assert all(leaf.tobytes() == flat[path].tobytes() for path, leaf in still.items())


@pytest.mark.parametrize("cell", covering(POSSIBLE), ids=named)
def test_a_cell_trains_what_it_is_to_train(cell):
    check(cell)


def test_a_text_encoder_that_is_to_learn_has_leaves_that_do():
    cell = dict.fromkeys(CHOICES) | {"adapt": "lora", "text": True, "prior": "off", "min_snr": 0.0}
    c = config_of(cell | {"variance": "fixed", "accumulate": 1, "batch_size": 2})
    for targets in ("unet/.*/kernel", ".*/kernel"):
        c.adapt.targets = targets
        own = configs.resolve(c).stages["base"]
        trainable, _ = adapt.make(own.adapt, seed=0).init(weights(), program.rules_of(own, Small()))
        if targets == ".*/kernel":
            program.check_rates(own, Small(), trainable)
        else:
            with pytest.raises(ValueError, match="choose no leaf of a text encoder"):
                program.check_rates(own, Small(), trainable)


@pytest.mark.matrix
@pytest.mark.parametrize("cell", POSSIBLE, ids=named)
def test_every_cell_trains_what_it_is_to_train(cell):
    check(cell)
