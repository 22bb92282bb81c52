"""FLUX.2's autoencoder against diffusers' network and the norms of its pipeline."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import weights
from dreambooth_jax.models import flux2_vae

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
Pipeline = diffusers.Flux2KleinPipeline


@pytest.fixture(scope="module", params=[None, (8, 24)], ids=["even", "small decoder"])
def both(request, tmp_path_factory):
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLFlux2(
        block_out_channels=(16, 24),
        decoder_block_out_channels=request.param,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        model.bn.running_mean.normal_()
        model.bn.running_var.uniform_(0.0, 3.0)
    folder = tmp_path_factory.mktemp("vae")
    model.save_pretrained(folder)
    network = flux2_vae.build(json.loads((folder / "config.json").read_text()))
    return model, network, weights.read(folder, network.abstract)


def normed(model, z):
    """As the pipeline norms packed latents."""
    mean = model.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(model.bn.running_var.view(1, -1, 1, 1) + model.config.batch_norm_eps)
    return (Pipeline._patchify_latents(z) - mean) / std, std


def assert_close(found, expected, tolerance=1e-4):
    expected = np.asarray(expected.movedim(1, -1))
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, error


@pytest.mark.parametrize("shape", [(8, 12), (16, 4)])
def test_pictures_become_the_same_samples(shape, both, rng):
    model, network, params = both
    pixels = rng.uniform(-1, 1, (2, *shape, 3)).astype(np.float32)
    with torch.no_grad():
        posterior = model.encode(torch.from_numpy(pixels).movedim(-1, 1)).latent_dist
        mean, std = normed(model, posterior.mean)
        deviation = Pipeline._patchify_latents(posterior.std) / std
    found = jit(lambda params, x: network.bind(params).encode(x))(params, pixels)
    assert found[0].shape == (2, shape[0] // 4, shape[1] // 4, 16)
    assert_close(found[0], mean)
    assert_close(found[1], deviation)


@pytest.mark.parametrize("shape", [(2, 3), (4, 1)])
def test_samples_become_the_same_pictures(shape, both, rng):
    model, network, params = both
    x0 = rng.normal(size=(2, *shape, 16)).astype(np.float32)
    with torch.no_grad():
        z = torch.from_numpy(x0).movedim(-1, 1)
        _, std = normed(model, torch.zeros(2, 4, 2 * shape[0], 2 * shape[1]))
        z = Pipeline._unpatchify_latents(z * std + model.bn.running_mean.view(1, -1, 1, 1))
        expected = model.decode(z).sample
    found = jit(lambda params, x: network.bind(params).decode(x))(params, jnp.asarray(x0))
    assert_close(found, expected)


def test_gradients_reach_the_pixels_alike(both, rng):
    model, network, params = both
    pixels = rng.uniform(-1, 1, (1, 8, 12, 3)).astype(np.float32)
    given = torch.from_numpy(pixels).movedim(-1, 1).requires_grad_()
    normed(model, model.encode(given).latent_dist.mean)[0].square().sum().backward()
    total = jit(jax.grad(lambda x: jnp.sum(network.bind(params).encode(x)[0] ** 2)))
    assert_close(total(pixels), given.grad)
