"""Sizes and errors of FLUX.2's networks; values: tests/parity/test_flux2.py, test_flux2_vae.py."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from published import FLUX2_VAE, KLEIN_4B, KLEIN_9B

from dreambooth_jax import tree
from dreambooth_jax.models import flux2, flux2_vae, layers


@pytest.mark.parametrize(
    ("config", "count", "keys"),
    [(KLEIN_4B, 3_875_544_576, 169), (KLEIN_9B, 9_078_581_248, 233)],
    ids=["4B", "9B"],
)
def test_whole_networks_have_the_published_number_of_parameters(config, count, keys):
    abstract = flux2.build(config).abstract
    assert (tree.count(abstract), len(abstract)) == (count, keys)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guidance_embeds": True}, "--config.base_model=black-forest-labs/FLUX.2-klein-base-4B"),
        ({"patch_size": 2}, "patch_size = 2; supported: 1"),
        ({"out_channels": 64}, "out_channels = 64; supported: None, 128"),
        ({"axes_dims_rope": [32, 48, 48]}, "add up to attention_head_dim, 128"),
        ({"axes_dims_rope": [16, 32, 32, 32]}, "add up to attention_head_dim, 128"),
        ({"num_layers": None}, "num_layers is missing"),
        ({"pooled_projection_dim": 768}, "pooled_projection_dim = 768; the key is not known"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        flux2.build(KLEIN_4B | change)


def test_the_autoencoder_has_the_published_number_of_parameters():
    statistics = 2 * 128  # buffers in PyTorch, not counted there
    assert tree.count(flux2_vae.build(FLUX2_VAE).abstract) - statistics == 84_046_115
    small = FLUX2_VAE | {"decoder_block_out_channels": [96, 192, 384, 384]}
    count = tree.count(flux2_vae.build(small).abstract) - statistics
    assert round(count / 1e6, 1) == 62.4


def test_a_fresh_autoencoder_norms_by_nothing():
    params = layers.initial(flux2_vae.build(FLUX2_VAE | {"block_out_channels": [32] * 4}), seed=0)
    np.testing.assert_array_equal(params["bn/running_mean"], np.zeros(128))
    np.testing.assert_array_equal(params["bn/running_var"], np.ones(128))


def test_patches_have_the_channel_slowest_and_come_back(rng):
    z = rng.normal(size=(2, 6, 4, 3))
    packed = flux2_vae.patches(jnp.asarray(z))
    assert packed.shape == (2, 3, 2, 12)
    for c, dy, dx in ((0, 0, 0), (1, 0, 1), (2, 1, 0)):
        np.testing.assert_allclose(
            packed[1, 2, 1, 4 * c + 2 * dy + dx], z[1, 4 + dy, 2 + dx, c], rtol=1e-6
        )
    np.testing.assert_allclose(flux2_vae.latents(packed), z, rtol=1e-6)


def test_an_autoencoder_that_cannot_be_honoured_is_refused():
    with pytest.raises(ValueError, match=r"patch_size = \[4, 4\]; supported: \[2, 2\]"):
        flux2_vae.build(FLUX2_VAE | {"patch_size": [4, 4]})
    with pytest.raises(ValueError, match="scale_channels = 3; the key is not known"):
        flux2_vae.build(FLUX2_VAE | {"scale_channels": 3})
    with pytest.raises(ValueError, match="multiples of 16"):
        flux2_vae.patches(jnp.zeros((1, 3, 4, 2)))
