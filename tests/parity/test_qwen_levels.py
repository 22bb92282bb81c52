"""Levels that Z-Image's and FLUX.2 klein's pipelines visit, and those of training."""

import math

import numpy as np
import pytest

from dreambooth_jax.diffusion.path import Flow
from dreambooth_jax.families import flux2, z_image

pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux2 import pipeline_flux2_klein


@pytest.mark.parametrize("num_steps", [4, 28, 50])
@pytest.mark.parametrize("sides", [(32, 32), (64, 64), (96, 64)])
def test_klein_visits_the_levels_of_its_pipeline(sides, num_steps):
    tokens = sides[0] * sides[1]
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    mu = pipeline_flux2_klein.compute_empirical_mu(tokens, num_steps)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / num_steps, num_steps), mu=mu)
    path = Flow(token_shift=flux2.KleinShift(), timestep_spacing="trailing", patch=1)
    found = path.at(*sides).times(num_steps)
    np.testing.assert_allclose(found, scheduler.sigmas.numpy(), rtol=1e-5)


@pytest.mark.parametrize("shift", [3.0, 6.0])
def test_z_image_visits_the_levels_of_its_pipeline(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 8, 8))
    path = Flow(token_shift=z_image.ZImageShift(shift), timestep_spacing="trailing")
    found = path.at(128, 128).times(8)
    np.testing.assert_allclose(found, scheduler.sigmas.numpy(), rtol=1e-5)
    if shift == 3.0:
        published = [1, 0.95455, 0.9, 0.83333, 0.75, 0.64286, 0.5, 0.3, 0]
        np.testing.assert_allclose(found, published, atol=1e-5)


def test_training_has_its_own_shifts():
    assert z_image.ZImageShift(6.0)(4096, None) == 2.0
    # 0.5 at 256 tokens to 1.15 at 4096: 3.16 at 1024 pixels.
    np.testing.assert_allclose(flux2.KleinShift()(4096, None), math.exp(1.15))
    np.testing.assert_allclose(flux2.KleinShift()(1024, None), 1.88, atol=0.005)
