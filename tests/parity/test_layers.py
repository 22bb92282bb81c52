"""Layers of the networks against PyTorch: attention, its position buckets, activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.models import attention, layers, t5

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
pytest.importorskip("diffusers", reason="compares with diffusers: extra `parity`")
from diffusers.models.activations import get_activation  # noqa: E402 (only with torch)
from transformers.activations import ACT2FN  # noqa: E402 (same)
from transformers.models.t5 import modeling_t5  # noqa: E402 (same)


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 64), (16, 100), (64, 300)])
def test_position_buckets_agree_at_every_distance(buckets, max_distance):
    length = 700
    found = t5.position_buckets(length, buckets=buckets, max_distance=max_distance)
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]
    expected = modeling_t5.T5Attention._relative_position_bucket(
        distance, bidirectional=True, num_buckets=buckets, max_distance=max_distance
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bias", [None, "heads", "mask"])
@pytest.mark.parametrize("path", ["whole", "one head at a time"])
def test_attention_agrees(path, bias, rng, monkeypatch):
    if path == "one head at a time":
        monkeypatch.setattr(attention, "_CPU_SCORES_AT_ONCE", 0)
    q, k, v = (rng.normal(size=(2, n, 4, 8)).astype(np.float32) for n in (5, 7, 7))
    if bias == "heads":
        bias = rng.normal(size=(1, 4, 5, 7)).astype(np.float32)
    elif bias == "mask":
        bias = np.zeros((2, 1, 1, 7), np.float32)
        bias[1, ..., 3:] = np.finfo(np.float32).min
    heads_first = [torch.from_numpy(a).transpose(1, 2) for a in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, attn_mask=None if bias is None else torch.from_numpy(bias), scale=0.3
    ).transpose(1, 2)
    found = jax.jit(lambda *args: layers.attention(*args, bias=bias, scale=0.3))(q, k, v)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("name", sorted(layers.ACTIVATIONS))
def test_activations_agree(name):
    x = np.linspace(-6, 6, 101, dtype=np.float32)
    of_transformers = name in ("gelu_new", "quick_gelu")
    theirs = ACT2FN[name] if of_transformers else get_activation(name)
    expected = theirs(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(layers.activation(name)(jnp.asarray(x)), expected, atol=2e-6)
