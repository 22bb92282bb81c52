"""The loss that is the same rows, steps and noise each time, and the step that is recommended."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy_stage
from toy_stage import PATH, batch, optimizer

from dreambooth_jax import train
from dreambooth_jax.adapt import FULL
from dreambooth_jax.data.subject import Words
from dreambooth_jax.evaluate.encoders import Features
from dreambooth_jax.experiment.results import judging
from dreambooth_jax.experiment.results.advice import Step, advise
from dreambooth_jax.experiment.training import rows as training_rows
from dreambooth_jax.train import held_out

RECIPE = train.Recipe(seed=3, min_snr_gamma=5.0, prior_loss_weight=0.25)


def looked_at(rows_at_once, mesh=(1, 1), scale=0.0, given=None):
    """The loss of the toy whose parameters are all `scale` times its usual ones."""
    flat = {path: scale * x for path, x in toy_stage.weights().items()}
    run, state, frozen = toy_stage.start(RECIPE, optimizer(), flat=flat, mesh=mesh)
    given = batch(3, 2) if given is None else given
    several = [given] if isinstance(given, dict) else given
    loss = train.HeldOutLoss(
        run, several, stage=toy_stage.Toy(), recipe=RECIPE, adapter=FULL, rows_at_once=rows_at_once
    )
    return loss(state.trainable, frozen)


def test_rows_are_every_picture_at_the_middles_of_equal_parts_of_the_time_steps():
    given = batch(2, 1)
    rows = held_out.fixed_rows(toy_stage.Toy(), RECIPE, given, levels=4)
    assert rows["t"].tolist() == [125, 375, 625, 875] * 3
    np.testing.assert_array_equal(rows["x0"], np.repeat(given["mean"], 4, axis=0))
    late = dataclasses.replace(RECIPE, time_steps=(600, 799))
    assert held_out.fixed_rows(toy_stage.Toy(), late, given, levels=2)["t"][:2].tolist() == [
        650,
        750,
    ]
    again = held_out.fixed_rows(toy_stage.Toy(), RECIPE, given, levels=4)["noise"]
    np.testing.assert_array_equal(rows["noise"], again)
    assert len({x.tobytes() for x in again}) == 12  # each row has noise of its own
    assert abs(again.std() - 1) < 0.1


def test_what_a_network_that_says_nothing_loses_is_the_noise_itself():
    """Epsilon-prediction: the target is the noise; neither λ nor min-SNR weigh it."""
    given = batch(3, 2)
    rows = held_out.fixed_rows(toy_stage.Toy(), RECIPE, given)
    errors = np.square(rows["noise"], dtype=np.float64).mean((1, 2, 3))
    found = looked_at(4)
    assert found["held_out/subject"] == pytest.approx(errors[~rows["is_prior"]].mean(), rel=1e-5)
    assert found["held_out/prior"] == pytest.approx(errors[rows["is_prior"]].mean(), rel=1e-5)


def test_it_depends_neither_on_how_many_rows_are_seen_at_once_nor_on_devices():
    one = looked_at(20, scale=1.0)
    for other in (looked_at(3, scale=1.0), looked_at(8, mesh=(4, 2), scale=1.0)):
        assert other == pytest.approx(one, rel=1e-5)


def test_without_class_rows_there_is_no_loss_of_theirs():
    assert set(looked_at(4, given=batch(2, 0))) == {"held_out/subject"}


def test_of_several_shapes_it_is_the_mean_over_the_pictures_of_all():
    given = [batch(3, 1), batch(1, 0, size=6), batch(2, 2, size=8)]
    found = looked_at(4, given=given)
    errors: dict[bool, list[float]] = {False: [], True: []}
    for each in given:
        rows = held_out.fixed_rows(toy_stage.Toy(), RECIPE, each)
        squares = np.square(rows["noise"], dtype=np.float64).mean((1, 2, 3))
        for kind, own in errors.items():
            own += squares[rows["is_prior"] == kind].tolist()
    assert (len(errors[False]), len(errors[True])) == (6 * held_out.LEVELS, 3 * held_out.LEVELS)
    assert found["held_out/subject"] == pytest.approx(np.mean(errors[False]), rel=1e-5)
    assert found["held_out/prior"] == pytest.approx(np.mean(errors[True]), rel=1e-5)


def test_an_upscaler_sees_its_low_res_pictures():
    stage = toy_stage.Toy(kind="upscaler", size=(8, 8))
    given = batch(1, 1, size=8) | {"low_res": batch(1, 1, seed=5)["mean"]}
    recipe = dataclasses.replace(RECIPE, aug_levels=(0, 0))
    rows = held_out.fixed_rows(stage, recipe, given)
    assert rows["condition"].shape == rows["x0"].shape
    assert set(rows["noise_level"].tolist()) == {0}
    # At level 0 there is hardly any noise: corners are the corners of the low-res picture.
    alpha = np.sqrt(PATH.alphas_cumprod[0])
    corners = alpha * np.repeat(given["low_res"][:, 0, 0], held_out.LEVELS, axis=0)
    np.testing.assert_allclose(rows["condition"][:, 0, 0], corners, atol=0.05)


def subject(photos: int, crops: int):
    names = tuple(f"{n}.png" for n in range(photos))
    windows = tuple(SimpleNamespace(photo=name) for name in names for _ in range(crops))
    return SimpleNamespace(photos=names, windows=windows, audit=SimpleNamespace(folder="photos"))


def test_the_last_photos_are_held_out_and_seen_whole():
    assert training_rows.parted(subject(4, 1), 0) == ([0, 1, 2, 3], [0, 1, 2, 3])
    assert training_rows.parted(subject(3, 2), 0) == ([0, 1, 2, 3, 4, 5], [0, 2, 4])
    assert training_rows.parted(subject(3, 2), 1) == ([0, 1, 2, 3], [4])
    with pytest.raises(ValueError, match=r"has 3 photos.*held_out=0"):
        training_rows.parted(subject(3, 2), 3)


def test_the_step_with_the_largest_gain_less_drift_is_recommended():
    steps = [
        Step(0, subject_similarity=0.40),
        Step(100, subject_similarity=0.55, class_drift=0.02),
        Step(200, subject_similarity=0.60, class_drift=0.03),
        Step(300, subject_similarity=0.62, class_drift=0.10),
    ]
    found = advise("base", steps, held_out=False)
    assert found.step == 200
    assert "0.400 → 0.600" in found.why and "0.030" in found.why
    # Of equals the earliest; without class prompts likeness alone.
    equal = [
        Step(100, subject_similarity=0.5, class_drift=0.25),
        Step(200, subject_similarity=0.75, class_drift=0.5),
    ]
    assert advise("base", equal, held_out=False).step == 100
    alone = [dataclasses.replace(step, class_drift=None) for step in steps]
    assert advise("base", alone, held_out=False).step == 300


def test_no_step_is_recommended_over_a_last_one_that_is_not_scored():
    """250 steps with pictures every 100: that of step 200 says nothing of step 250."""
    steps = [
        Step(0, subject_similarity=0.40),
        Step(100, subject_similarity=0.55, class_drift=0.02, held_out=0.3),
        Step(200, subject_similarity=0.60, class_drift=0.03, held_out=0.2),
        Step(250, held_out=0.25),
    ]
    found = advise("base", steps, held_out=False)
    assert found.step == found.exported == 250
    assert "train.sample_every" in found.why and "divides 250" in found.why
    assert advise("base", steps, held_out=True).step == 200  # by the loss, known of all


def test_pictures_after_training_are_those_of_the_last_stage_s_last_step(monkeypatch):
    """They are drawn in any case; one drawn on the way at the same step is the same."""
    seen = {"before": 10, "base-000200": 20, "upscaler-000100": 30, "after": 40}
    grids = {label: {"a zib dog": [np.full((2, 2, 3), x)]} for label, x in seen.items()}
    stages = (
        SimpleNamespace(kind=kind, train=SimpleNamespace(num_steps=250))
        for kind in ("base", "upscaler")
    )
    plan = SimpleNamespace(to_train=tuple(stages))
    judge = Features("levels", lambda images, label: np.stack([[1.0, x.mean()] for x in images]))
    judged = SimpleNamespace(judges=[judge], photos=[[np.full((2, 2, 3), 40)]])
    painter = SimpleNamespace(words=(Words.of(identifier="zib", class_noun="dog"),))
    for last in (250, 100):
        plan.to_train[1].train.num_steps = last
        monkeypatch.setattr(judging, "grids_of", lambda *_: dict(grids))
        found = judging.judge_grids(plan, judged, painter, None)
        assert found.keys() == {"before", "base-000200", "upscaler-000100"} | (
            {"upscaler-000250"} if last == 250 else set()
        )
    cosine = (1 + 30 * 40) / np.sqrt((1 + 30**2) * (1 + 40**2))
    assert np.isclose(found["upscaler-000100"].subject_similarity, cosine, atol=1e-6)
    plan.to_train[1].train.num_steps = 250
    last = judging.judge_grids(plan, judged, painter, None)["upscaler-000250"]
    assert np.isclose(last.subject_similarity, 1.0, atol=1e-6)


def test_without_pictures_photos_that_were_held_out_decide_and_else_nothing():
    steps = [Step(0, held_out=0.9), *(Step(n, held_out=x) for n, x in ((1, 0.3), (2, 0.2)))]
    steps.append(Step(3, held_out=0.25))
    assert advise("base", steps, held_out=True).step == 2
    last = advise("base", steps, held_out=False)
    assert last.step == 3
    assert "dreambooth_jax[eval]" in last.why


def test_repeats_of_rows_are_as_many_as_devices_need():
    """Five pictures at four levels do not divide over eight devices: the rest weighs nothing."""
    assert jax.device_count() == 8
    found = looked_at(8, mesh=(8, 1), given=batch(5, 0))
    rows = held_out.fixed_rows(toy_stage.Toy(), RECIPE, batch(5, 0))
    wanted = np.square(rows["noise"], dtype=np.float64).mean()
    assert found["held_out/subject"] == pytest.approx(wanted, rel=1e-5)
