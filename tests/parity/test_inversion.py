"""DDIM's way up against diffusers' inverse scheduler, on a network that is a formula.

It predicts noise: of v theirs reads the noise at the level that a step leaves, ours at that which
the network was told, as it must be where rounds follow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.diffusion import editing, schedule

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")

STEPS = 10
CONFIG = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_levels_and_steps_up_are_theirs(spacing):
    config = CONFIG | {"timestep_spacing": spacing, "prediction_type": "epsilon"}
    table = schedule.from_config(config)
    x0 = np.random.default_rng(0).normal(size=(1, 4, 4, 2)).astype(np.float32)

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sin(1.3 * x + t[:, None, None, None] / 300) + 0.3 * x

    found = jax.jit(lambda x0: editing.inverted(denoise, x0, path=table, times=table.times(STEPS)))(
        x0
    )

    scheduler = diffusers.DDIMInverseScheduler(**config)
    scheduler.set_timesteps(STEPS)
    x, expected = torch.from_numpy(x0), [x0]
    for t in scheduler.timesteps:
        x = scheduler.step(torch.sin(1.3 * x + t / 300) + 0.3 * x, t, x).prev_sample
        expected.insert(0, x.numpy())
    assert len(found) == len(expected) == STEPS + 1
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)
