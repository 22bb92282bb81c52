"""FLUX.2's transformer against diffusers: shapes, texts of two lengths, gradients of the loss."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import weights
from dreambooth_jax.models import flux2

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
from safetensors.torch import save_file  # noqa: E402 (only with torch)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CONFIG = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "axes_dims_rope": (2, 6, 4, 4),
    "guidance_embeds": False,
}
CASES = {"wide": (3, 7, 9), "high, a longer text": (8, 2, 21)}  # height, width, words


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    torch.manual_seed(0)
    model = diffusers.Flux2Transformer2DModel(**CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.15)
    folder = tmp_path_factory.mktemp("transformer")
    model.save_pretrained(folder)
    network = flux2.build(json.loads((folder / "config.json").read_text()))
    return model, network, weights.read(folder, network.abstract)


def inputs(case, rng):
    height, width, length = CASES[case]
    x = rng.normal(size=(2, height, width, 16)).astype(np.float32)
    sigma = rng.uniform(size=2).astype(np.float32)
    return x, sigma, rng.normal(size=(2, length, 24)).astype(np.float32)


def theirs(model, x, sigma, text):
    b, height, width, _ = x.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    zeros = torch.zeros_like(rows)
    image_ids = torch.stack([zeros, rows, columns, zeros], -1).reshape(-1, 4)
    text_ids = torch.zeros(text.shape[1], 4, dtype=torch.long)
    text_ids[:, 3] = torch.arange(text.shape[1])
    out = model(
        torch.from_numpy(x).reshape(b, height * width, -1),
        encoder_hidden_states=torch.from_numpy(text),
        timestep=torch.from_numpy(sigma),
        img_ids=image_ids[None].expand(b, -1, -1),
        txt_ids=text_ids[None].expand(b, -1, -1),
        guidance=None,
    ).sample
    return out.reshape(x.shape)


def assert_close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, error


@pytest.mark.parametrize("case", CASES)
def test_outputs_agree(case, both, rng):
    model, network, params = both
    x, sigma, text = inputs(case, rng)
    with torch.no_grad():
        expected = theirs(model, x, sigma, text).numpy()
    found = jit(lambda params: network.bind(params)(x, 1000 * sigma, text))(params)
    assert_close(found, expected)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_loss_and_all_its_gradients_agree(remat, both, rng, tmp_path):
    model, network, params = both
    x0, sigma, text = inputs("wide", rng)
    noise = rng.normal(size=x0.shape).astype(np.float32)
    level = sigma[:, None, None, None]
    xt = (1.0 - level) * x0 + level * noise
    loss = ((theirs(model, xt, sigma, text) - torch.from_numpy(noise - x0)) ** 2).mean()
    loss.backward()
    save_file({n: p.grad for n, p in model.named_parameters()}, tmp_path / "model.safetensors")
    model.zero_grad()
    expected = weights.read(tmp_path, network.abstract)

    def total(params):
        output = network.bind(params)(xt, 1000 * sigma, text, remat=remat)
        return jnp.mean((output - (noise - x0)) ** 2)

    value, found = jit(jax.value_and_grad(total))(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        error = np.abs(found[path] - leaf).max()
        assert error <= 1e-4 * np.abs(leaf).max() + 1e-6 * largest, (path, error)


def test_bfloat16_stays_near_float32(both, rng):
    model, network, params = both
    x, sigma, text = inputs("wide", rng)
    with torch.no_grad():
        expected = theirs(model, x, sigma, text).numpy()
    half = x.astype(jnp.bfloat16)
    found = jit(lambda params: network.bind(params)(half, 1000 * sigma, text))(params)
    assert found.dtype == jnp.bfloat16
    assert_close(found, expected, 5e-2)
