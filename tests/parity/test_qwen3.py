"""Qwen3 against transformers: states after every number of layers, of padding as well."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import weights
from dreambooth_jax.models import qwen3

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
transformers = pytest.importorskip("transformers", reason="compares with transformers")
from safetensors.torch import save_file  # noqa: E402 (only with torch)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
CONFIG = {
    "vocab_size": 96,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
IDS = np.random.default_rng(0).integers(0, 96, (3, 11))
MASK = (np.arange(11) < np.array([[11], [7], [2]])).astype(np.int64)


def random_model(kind: str):
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.Qwen3Config(**CONFIG))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(scope="module", params=["Qwen3Model", "Qwen3ForCausalLM"])
def saved(request, tmp_path_factory):
    """A model and its folder, whose keys begin with `model.` where it has an output layer."""
    model, folder = random_model(request.param), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def opened(folder, count=None):
    config = json.loads((folder / "config.json").read_text())
    network = qwen3.build(config, count=count)
    ignore = qwen3.unread(config, count=4 if count is None else count)
    return network, weights.read(folder, network.abstract, ignore=ignore)


def expected_states(model):
    with torch.no_grad():
        return model(
            torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK), output_hidden_states=True
        ).hidden_states


def ours(network, after, dtype=jnp.float32):
    return jit(lambda params: network.bind(params)(IDS, MASK, after=after, dtype=dtype))


def assert_close(found, expected, tolerance=1e-4):
    expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, error


def test_states_agree_after_every_layer_and_the_last_norm(saved):
    model, folder = saved
    network, params = opened(folder)
    found = ours(network, tuple(range(5)))(params)
    for state, want in zip(found, expected_states(model), strict=True):
        assert_close(state, want)


@pytest.mark.parametrize(("count", "after"), [(3, (3,)), (3, (1, 2, 3)), (2, (2, 0))])
def test_a_cut_network_reads_a_whole_file_and_gives_the_same_states(saved, count, after):
    model, folder = saved
    network, params = opened(folder, count)
    assert not any("norm/scale" in path and path.count("/") == 2 for path in params)
    want = expected_states(model)
    for k, state in zip(after, ours(network, after)(params), strict=True):
        assert_close(state, want[k])


def test_padding_reads_real_tokens_alone_and_is_read_by_none(saved):
    _, folder = saved
    network, params = opened(folder, 3)
    forward = jit(lambda ids: network.bind(params)(ids, MASK, after=(3,))[0])
    other = np.where(MASK > 0, IDS, (IDS + 1) % 96)
    before, after = forward(IDS), forward(other)
    real = MASK.astype(bool)
    np.testing.assert_array_equal(np.asarray(before)[real], np.asarray(after)[real])
    assert np.abs(np.asarray(before - after)[~real]).max() > 1e-3


def test_gradients_agree(saved, tmp_path, rng):
    model, folder = saved
    network, params = opened(folder, 3)
    pick = rng.normal(size=(*IDS.shape, 24)).astype(np.float32)
    out = model(
        torch.from_numpy(IDS), attention_mask=torch.from_numpy(MASK), output_hidden_states=True
    )
    (out.hidden_states[3] * torch.from_numpy(pick)).sum().backward()
    grads = {
        name: p.grad if p.grad is not None else torch.zeros_like(p)
        for name, p in model.named_parameters()
    }
    model.zero_grad()
    save_file(grads, tmp_path / "model.safetensors")
    ignore = qwen3.unread(CONFIG, count=3)
    expected = weights.read(tmp_path, network.abstract, ignore=ignore)

    def total(params):
        return (network.bind(params)(IDS, MASK, after=(3,))[0] * pick).sum()

    found = jit(jax.grad(total))(params)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        error = np.abs(found[path] - leaf).max()
        assert error <= 1e-4 * np.abs(leaf).max() + 1e-7 * largest, (path, error)


def test_bfloat16_stays_near_float32(saved):
    model, folder = saved
    network, params = opened(folder, 3)
    found = ours(network, (3,), jnp.bfloat16)(params)[0]
    assert found.dtype == jnp.bfloat16
    assert_close(found, expected_states(model)[3], 5e-2)


def test_both_spellings_of_rope_theta_mean_the_same(saved):
    _, folder = saved
    written = json.loads((folder / "config.json").read_text())
    assert written["rope_parameters"]["rope_theta"] == 1e6  # transformers 5
    assert qwen3.Qwen3Config.from_dict(written) == qwen3.Qwen3Config.from_dict(CONFIG)
