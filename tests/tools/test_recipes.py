"""Recipes: phases by pictures seen, Muon's orthogonal steps, and UNets whose levels attend."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import folders
import recipes


def test_small_pictures_come_first_and_no_scene_is_left_out():
    recipe = recipes.Recipe(rows=10, small=35)
    assert [recipe.at(step) for step in range(5)] == [
        (0, 16),
        (10, 16),
        (20, 16),
        (30, 16),
        (40, 32),
    ]
    assert recipes.RECIPES["upscaler"].at(3) == (24, 64)


@pytest.mark.parametrize(("channels", "attending"), [((16, 32, 64, 128), 2), ((48, 96, 192), 1)])
def test_levels_of_8_pixels_and_less_attend(channels, attending):
    unet = folders.base_unet(channels)
    down = [name == folders.ATTEND for name in unet["down_block_types"]]
    assert down == [False] * (len(channels) - attending) + [True] * attending
    up = ["CrossAttn" in name for name in unet["up_block_types"]]
    assert up == down[::-1]


def test_muon_steps_along_the_orthogonal_factor_of_a_kernel_and_leaves_biases_to_adam():
    params = {
        "a/kernel": jnp.zeros((3, 3, 2, 5)),
        "a/bias": jnp.zeros(5),
        "t/embedding": jnp.zeros((7, 4)),
    }
    rng = np.random.default_rng(0)
    grads = {path: jnp.asarray(rng.normal(size=x.shape), jnp.float32) for path, x in params.items()}
    tx = recipes.muon(0.5, warmup=0)
    update, _ = tx.update(grads, tx.init(params), params)
    step = -np.asarray(update["a/kernel"]).reshape(18, 5)
    u, _, vt = np.linalg.svd(np.asarray(grads["a/kernel"]).reshape(18, 5), full_matrices=False)
    # Newton-Schulz brings singular values near 1 only: the direction is compared.
    cosine = (step * (u @ vt)).sum() / np.linalg.norm(step) / np.linalg.norm(u @ vt)
    assert cosine > 0.95
    # A first step of Adam with Nesterov's momentum (Dozat 2016) is the gradient's sign, times the
    # rate, times 1 + b1 · (1 - b1) / (1 - b1²).
    length = 0.5 * (1 + 0.9 * 0.1 / 0.19)
    for path in ("a/bias", "t/embedding"):
        np.testing.assert_allclose(update[path], -length * np.sign(grads[path]), rtol=1e-3)


def test_a_cooled_run_steps_by_a_rate_that_falls_to_zero_in_a_line():
    """SGD of rate 1 on a gradient of ones: each step is the share itself, 1 at `first`, 0 at 4."""
    rule = optax.chain(optax.scale_by_schedule(lambda count: -1.0), optax.identity())
    tx = recipes.cooled(rule, 2, 4)
    params = {"w": jnp.zeros(1)}
    state, steps = tx.init(params), []
    assert jax.tree.structure(state) == jax.tree.structure(rule.init(params))  # of any checkpoint
    for _ in range(6):
        updates, state = tx.update({"w": jnp.ones(1)}, state, params)
        steps.append(-float(updates["w"][0]))
    np.testing.assert_allclose(steps, [1, 1, 1, 0.5, 0, 0])


def test_cooling_forgets_the_average_of_the_run_before_it():
    recipe = recipes.Recipe(rows=10, ema=0.999, cool=(100, 200))
    assert recipe.step_recipe.ema_decay == 0.99
    assert recipes.Recipe(ema=0.999).step_recipe.ema_decay == 0.999
