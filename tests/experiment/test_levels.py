"""Levels that a run's settings draw for training: closed quantiles, and the paths they are for."""

import math
import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_stage
from toy_networks import Small, weights

from dreambooth_jax import adapt, generate, sharding, train
from dreambooth_jax import config as configs
from dreambooth_jax.diffusion import path, schedule
from dreambooth_jax.experiment.training import checks, program

QUARTILES = (25, 50, 75)


def plan_of(**changed):
    c = configs.base_config()
    settings = {"stages": ("base",), "upscaler_model": "", "prior_loss_weight": 0.0}
    c.update_from_flattened_dict(settings | {k.replace("__", "."): v for k, v in changed.items()})
    return configs.resolve(c)


def drawn(stage, **changed) -> np.ndarray:
    """The levels of a step of 40000 rows, by the recipe that the settings make."""
    own, flat = plan_of(**changed).stages["base"], weights()
    tokens = {"ids": toy_stage.IDS, "mask": toy_stage.MASK}
    table = jnp.asarray(stage.encode_text(flat, tokens, dtype=np.float32))
    text = generate.Text(("the subject", "its class"), table)
    _, _, recipe = program.start(own, stage, flat, text, adapt.make(own.adapt, seed=0))
    batch = {"mean": jnp.zeros((40_000, 2, 2, 1))}
    return np.asarray(jax.jit(lambda step: train.draw(stage, recipe, batch, step)["t"])(7))


def test_levels_of_a_flow_have_the_published_quartiles():
    """Those of the training scripts of others, by their formulas; see each."""

    def quartiles(**changed):
        found = drawn(Small(path=path.Flow(shift=3.0)), **changed)
        return np.percentile(found, QUARTILES)

    normal = statistics.NormalDist()

    def logit_normal(mean: float, std: float, shift: float) -> list[float]:
        z = [math.log(shift) + mean + std * normal.inv_cdf(q / 100) for q in QUARTILES]
        return [1 / (1 + math.exp(-x)) for x in z]

    # diffusers' script for Stable Diffusion 3, and what is drawn where nothing is set.
    np.testing.assert_allclose(quartiles(), [0.605, 0.75, 0.855], atol=0.01)
    # diffusers' script for FLUX.1: uniform, without a shift.
    found = quartiles(loss__density="uniform", loss__shift=1.0)
    np.testing.assert_allclose(found, [0.25, 0.5, 0.75], atol=0.01)
    # Uniform on the levels of Stable Diffusion 3.
    np.testing.assert_allclose(quartiles(loss__density="uniform"), [0.5, 0.75, 0.9], atol=0.01)
    # Esser et al. 2024: logit σ is normal about mean + ln(shift); a positive mean is noisier.
    numbers = {"loss__logit_mean": 0.5, "loss__logit_std": 0.6, "loss__shift": 2.0}
    found = quartiles(loss__density="logit_normal", **numbers)
    np.testing.assert_allclose(found, logit_normal(0.5, 0.6, 2.0), atol=0.01)
    # u = 1 - p - s (cos²(π p / 2) - 1 + p), falling in p.
    found = quartiles(loss__density="mode", loss__mode_scale=-0.8, loss__shift=1.0)
    p = 1 - np.array(QUARTILES) / 100
    np.testing.assert_allclose(found, 1 - p + 0.8 * (np.cos(np.pi / 2 * p) ** 2 - 1 + p), atol=0.01)


@pytest.mark.parametrize(
    ("steps", "changed", "least", "most"),
    [
        (1000, {}, 0, 999),
        (4000, {}, 0, 3999),
        (100, {}, 0, 99),
        (4000, {"loss__first_step": 250, "loss__last_step": 499}, 1000, 1999),
        (100, {"loss__first_step": 500}, 50, 99),
        (100, {"loss__first_step": 5, "loss__last_step": 5}, 0, 0),
    ],
)
def test_steps_are_thousandths_of_the_model_s_own(steps, changed, least, most):
    given = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": steps}
    found = drawn(Small(path=schedule.from_config(given)), **changed)
    assert (found.min(), found.max()) == (least, most)


def test_levels_of_a_flow_of_more_steps_are_all_drawn():
    found = drawn(Small(path=path.Flow(num_steps=4000)), loss__density="uniform", loss__shift=1.0)
    np.testing.assert_allclose(np.percentile(found, QUARTILES), [0.25, 0.5, 0.75], atol=0.01)


@pytest.mark.parametrize(("shift", "median"), [(None, (0.65, 0.76)), (1.0, (0.5, 0.5))])
def test_a_shift_by_size_is_the_path_s_own_unless_a_number_is_set(shift, median):
    """FLUX.1 at 512 and 1024 pixels; kohya's `flux_shift` has these medians."""
    density = program.density_of(plan_of(loss__shift=shift).stages["base"])
    flow = path.Flow(token_shift=path.TokenShift())
    for latent, expected in zip((64, 128), median, strict=True):
        (found,) = flow.at(latent, latent).middles(1, steps=(0, 999), density=density)
        assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"density": "uniform"}, r"loss\.density = 'uniform' is for flows; .*density=model"),
        ({"shift": 3.0}, r"loss\.shift = 3\.0 is for flows; .* table of betas.*Leave it out"),
    ],
)
def test_a_table_of_betas_has_neither(changed, message):
    plan = plan_of(**{f"loss__{key}": value for key, value in changed.items()})
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match=message):
        checks._flow(plan, plan.stages["base"], Small(), mesh)
    checks._flow(plan, plan.stages["base"], Small(path=path.Flow()), mesh)
    usual = plan_of()
    checks._flow(usual, usual.stages["base"], Small(), mesh)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logit_mean": 0.5}, r"expected 0\.0, because loss\.density is 'model'"),
        ({"mode_scale": 1.0, "density": "uniform"}, r"Write --config\.loss\.density=mode"),
        ({"mode_scale": 2.0, "density": "mode"}, r"expected a number in \[-1, 1\.75\]"),
        ({"shift": 0.0}, r"loss\.shift = 0\.0: expected a number in \(0, inf\)"),
        ({"density": "cosmos"}, "Did you mean 'cosmap'"),
    ],
)
def test_numbers_belong_to_their_density(changed, message):
    with pytest.raises(configs.ConfigError, match=message):
        plan_of(**{f"loss__{key}": value for key, value in changed.items()})
