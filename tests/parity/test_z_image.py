"""Z-Image's transformer against diffusers: shapes, captions of several lengths, gradients."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import weights
from dreambooth_jax.models import z_image

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
from safetensors.torch import save_file  # noqa: E402 (only with torch)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CONFIG = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 24,
    "axes_dims": [4, 6, 6],
    "axes_lens": [640, 64, 64],
}
# Height and width of the latent, real tokens of each caption.
CASES = {
    "30 image tokens, filled up to 32": ((12, 10), (5, 20)),
    "32 image tokens, captions of 32 and 64": ((8, 16), (5, 37)),
    "captions of whole multiples": ((6, 4), (64, 32, 1)),
    "one row": ((4, 18), (33,)),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(**CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # padding tokens are zero at first: none may stay so
            parameter.normal_(0.0, 0.15)
    folder = tmp_path_factory.mktemp("transformer")
    model.save_pretrained(folder)
    network = z_image.build(json.loads((folder / "config.json").read_text()))
    return model, network, weights.read(folder, network.abstract)


def inputs(case, rng):
    (h, w), counts = CASES[case]
    x = rng.normal(size=(len(counts), h, w, 4)).astype(np.float32)
    t = rng.uniform(size=len(counts)).astype(np.float32)
    mask = (np.arange(max(counts)) < np.array(counts)[:, None]).astype(np.int32)
    text = rng.normal(size=(*mask.shape, 24)).astype(np.float32)
    return x, t, text, mask


def theirs(model, x, t, text, mask):
    pictures = [torch.from_numpy(row).movedim(-1, 0)[:, None] for row in x]
    captions = [torch.from_numpy(row[real > 0]) for row, real in zip(text, mask, strict=True)]
    out = model(pictures, torch.from_numpy(t), captions).sample
    return torch.stack([row[:, 0].movedim(0, -1) for row in out])


def assert_close(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, error


@pytest.mark.parametrize("case", CASES)
def test_outputs_agree(case, both, rng):
    model, network, params = both
    given = inputs(case, rng)
    with torch.no_grad():
        expected = theirs(model, *given).numpy()
    found = jit(lambda params: network.bind(params)(*given))(params)
    assert_close(found, expected)


def test_longer_tables_of_text_change_nothing(both, rng):
    _, network, params = both
    x, t, text, mask = inputs("30 image tokens, filled up to 32", rng)
    forward = jit(lambda params, text, mask: network.bind(params)(x, t, text, mask))
    more = ((0, 0), (0, 50))
    wide = np.pad(text, (*more, (0, 0)), constant_values=7.0)
    assert_close(forward(params, wide, np.pad(mask, more)), forward(params, text, mask), 1e-6)


@pytest.mark.parametrize("remat", ["none", "blocks"])
def test_loss_and_all_its_gradients_agree(remat, both, rng, tmp_path):
    model, network, params = both
    x0, t, text, mask = inputs("32 image tokens, captions of 32 and 64", rng)
    noise = rng.normal(size=x0.shape).astype(np.float32)
    sigma = (1.0 - t)[:, None, None, None]
    xt = (1.0 - sigma) * x0 + sigma * noise
    loss = ((theirs(model, xt, t, text, mask) - torch.from_numpy(x0 - noise)) ** 2).mean()
    loss.backward()
    save_file({n: p.grad for n, p in model.named_parameters()}, tmp_path / "model.safetensors")
    model.zero_grad()
    expected = weights.read(tmp_path, network.abstract)

    def total(params):
        output = network.bind(params)(xt, t, text, mask, remat=remat)
        return jnp.mean((output - (x0 - noise)) ** 2)

    value, found = jit(jax.value_and_grad(total))(params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-4)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        error = np.abs(found[path] - leaf).max()
        assert error <= 1e-4 * np.abs(leaf).max() + 1e-6 * largest, (path, error)


def test_bfloat16_stays_near_float32(both, rng):
    model, network, params = both
    x, t, text, mask = inputs("30 image tokens, filled up to 32", rng)
    with torch.no_grad():
        expected = theirs(model, x, t, text, mask).numpy()
    half = x.astype(jnp.bfloat16)
    found = jit(lambda params: network.bind(params)(half, t, text, mask))(params)
    assert found.dtype == jnp.bfloat16
    assert_close(found, expected, 5e-2)
