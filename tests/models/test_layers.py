"""Layers of the networks against their formulas, in NumPy; against PyTorch: test_parity_layers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax.models import attention, layers


def test_time_sinusoid_agrees_with_its_formula():
    t, size = np.array([0, 1, 250, 999]), 32
    for flip in (False, True):
        for shift in (0.0, 1.0):
            i = np.arange(size // 2)
            angle = t[:, None] * 10_000.0 ** (-i / (size / 2 - shift))
            parts = [np.cos(angle), np.sin(angle)]
            expected = np.concatenate(parts if flip else parts[::-1], 1)
            found = layers.time_sinusoid(
                jnp.asarray(t), size, flip_sin_to_cos=flip, freq_shift=shift
            )
            np.testing.assert_allclose(found, expected, atol=2e-4)
    assert layers.time_sinusoid(jnp.ones(2), 7, flip_sin_to_cos=True, freq_shift=0).shape == (2, 7)


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_norms_agree_with_their_formulas(offset, rng):
    x = (rng.normal(size=(2, 5, 4, 12)) + offset).astype(np.float32)
    exact, scale, bias = x.astype(np.float64), rng.normal(size=12), rng.normal(size=12)

    def call(kind, **kwargs):
        network = layers.take_apart(kind(12, **kwargs))
        params = {"scale": scale, "bias": bias}
        params = {path: jnp.asarray(params[path], jnp.float32) for path in network.abstract}
        return jax.jit(lambda params: network.bind(params)(jnp.asarray(x)))(params)

    groups = exact.reshape(2, 20, 3, 4)
    centred = groups - groups.mean((1, 3), keepdims=True)
    unit = centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-5)
    expected = unit.reshape(x.shape) * scale + bias
    np.testing.assert_allclose(call(layers.GroupNorm, groups=3), expected, atol=2e-4)

    unit = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(call(layers.LayerNorm), unit * scale + bias, atol=2e-5)

    unit = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(call(layers.RMSNorm, eps=1e-6), unit * scale, atol=2e-5)


def attention_by_hand(q, k, v, bias, scale):
    """Softmax attention in float64, one query at a time."""
    out = np.zeros(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        scores = scale * k[b, :, h] @ q[b, i, h] + bias[b, h, i]
        share = np.exp(scores - scores.max())
        out[b, i, h] = share @ v[b, :, h] / share.sum()
    return out


@pytest.mark.parametrize("bias_shape", [None, (1, 4, 5, 7), (2, 1, 1, 7), (2, 4, 5, 7)])
@pytest.mark.parametrize("path", ["whole", "one head at a time", "accelerator"])
def test_attention_agrees_with_its_formula_on_every_path(path, bias_shape, rng, monkeypatch):
    if path == "one head at a time":
        monkeypatch.setattr(attention, "_CPU_SCORES_AT_ONCE", 0)
    if path == "accelerator":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k, v = (rng.normal(size=(2, n, 4, 8)) for n in (5, 7, 7))
    bias = None if bias_shape is None else rng.normal(size=bias_shape)
    arrays = [None if a is None else jnp.asarray(a, jnp.float32) for a in (q, k, v, bias)]
    wide = np.broadcast_to(0.0 if bias is None else bias, (2, 4, 5, 7))
    for scale in (None, 1.0):
        found = jax.jit(partial(layers.attention, scale=scale))(*arrays[:3], bias=arrays[3])
        expected = attention_by_hand(q, k, v, wide, 8**-0.5 if scale is None else scale)
        np.testing.assert_allclose(found, expected, atol=3e-6)


@pytest.mark.parametrize("path", ["whole", "one head at a time", "accelerator"])
def test_attention_in_bfloat16_keeps_its_dtype_and_masks(path, rng, monkeypatch):
    if path == "one head at a time":
        monkeypatch.setattr(attention, "_CPU_SCORES_AT_ONCE", 0)
    if path == "accelerator":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    q, k, v = (jnp.asarray(rng.normal(size=(2, 6, 2, 8)), jnp.bfloat16) for _ in range(3))
    mask = jnp.arange(6)[None, None, None] < jnp.array([3, 6])[:, None, None, None]
    bias = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)
    found = jax.jit(layers.attention)(q, k, v, bias=bias)
    assert found.dtype == jnp.bfloat16
    alone = jax.jit(layers.attention)(q[:1], k[:1, :3], v[:1, :3])
    np.testing.assert_allclose(found[:1].astype(jnp.float32), alone.astype(jnp.float32), atol=2e-2)


def test_gradients_of_one_head_at_a_time_are_those_of_the_whole(rng, monkeypatch):
    q, k, v = (jnp.asarray(rng.normal(size=(2, 6, 2, 8)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.normal(size=(1, 2, 6, 6)), jnp.float32)

    def gradients():
        def total(q, k, v, bias):
            return (layers.attention(q, k, v, bias=bias) ** 2).sum()

        return jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))(q, k, v, bias)

    whole = gradients()
    monkeypatch.setattr(attention, "_CPU_SCORES_AT_ONCE", 0)
    for a, b in zip(whole, gradients(), strict=True):
        assert np.abs(a).max() > 1e-2
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("side", [2, 9])  # on CPU a product, and XLA's own convolution
@pytest.mark.parametrize("padding", [(1, 1), (0, 2)])
def test_a_convolution_and_its_slopes_are_sums_over_neighbours(side, padding, rng):
    x, kernel = rng.normal(size=(2, side, side, 3)), rng.normal(size=(3, 3, 3, 4))
    pull = rng.normal(size=(2, side, side, 4))  # d loss / d output
    padded = np.pad(x, ((0, 0), padding, padding, (0, 0)))
    near = {(i, j): padded[:, i : i + side, j : j + side] for i in range(3) for j in range(3)}
    expected = sum(x @ kernel[place] for place, x in near.items())
    slope = np.stack([np.einsum("bhwi,bhwo->io", x, pull) for x in near.values()])

    network = layers.take_apart(layers.Conv(3, 4, padding=padding, bias=False))

    def call(kernel):
        answer = network.bind({"kernel": kernel})(jnp.asarray(x, jnp.float32))
        return (answer * pull).sum(), answer

    (_, found), slopes = jax.value_and_grad(call, has_aux=True)(jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(slopes.reshape(9, 3, 4), slope, atol=1e-3)


@pytest.mark.parametrize(
    ("rows", "size", "channels", "as_product"),
    [(32, 2, 8, True), (2, 4, 32, True), (3, 4, 32, False), (1, 8, 32, False), (1, 8, 64, True)],
)
def test_on_a_cpu_a_convolution_is_a_product_where_positions_are_few(
    rows, size, channels, as_product
):
    x, kernel = jnp.ones((rows, size, size, 4)), jnp.ones((3, 3, 4, channels))
    same = partial(layers.convolve, stride=1, padding=(1, 1))
    names = {equation.primitive.name for equation in jax.make_jaxpr(same)(x, kernel).eqns}
    assert ("dot_general" in names) == as_product
    assert ("conv_general_dilated" in names) == (not as_product)
