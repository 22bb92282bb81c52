"""Stable Diffusion 3's transformer against diffusers: every variant, odd sizes, gradients."""

import copy
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import weights
from dreambooth_jax.models import mmdit

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers")
from safetensors.torch import save_file  # noqa: E402 (only with torch)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TINY = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 3,
    "joint_attention_dim": 20,
    "caption_projection_dim": 24,
    "pooled_projection_dim": 12,
    "pos_embed_max_size": 12,
}
VARIANTS = {
    "medium": {},
    "medium 3.5": {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
    "large 3.5": {"qk_norm": "rms_norm"},
    "all dual": {"dual_attention_layers": (0, 1, 2)},
}


@pytest.fixture(scope="module", params=VARIANTS)
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    model = diffusers.SD3Transformer2DModel(**TINY | VARIANTS[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("transformer")
    model.save_pretrained(folder)
    network = mmdit.build(json.loads((folder / "config.json").read_text()))
    return model.eval(), network, weights.read(folder, network.abstract)


def inputs(shape=(2, 10, 6), tokens=5, seed=1):
    """x `[B,H,W,C]`, t, text, pooled: levels of noise that are no whole steps."""
    rng = np.random.default_rng(seed)
    x, text = rng.normal(size=(*shape, 4)), rng.normal(size=(shape[0], tokens, 20))
    pooled, t = rng.normal(size=(shape[0], 12)), rng.uniform(1, 999, size=shape[0])
    return tuple(a.astype(np.float32) for a in (x, t, text, pooled))


def theirs(model, *args, dtype=torch.float32):
    x, t, text, pooled = (torch.from_numpy(a).to(dtype) for a in args)
    said = model(
        x.permute(0, 3, 1, 2),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=t,
        return_dict=False,
    )[0]
    return said.permute(0, 2, 3, 1)


def assert_close(found, expected, tolerance=1e-4):
    expected = np.asarray(expected.detach() if hasattr(expected, "detach") else expected)
    assert found.shape == expected.shape
    error = np.abs(np.asarray(found, np.float32) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, error


@pytest.mark.parametrize(
    ("shape", "tokens"), [((2, 10, 6), 5), ((1, 4, 22), 7), ((3, 24, 24), 1), ((1, 2, 2), 3)]
)
def test_outputs_agree(saved, shape, tokens):
    model, network, params = saved
    args = inputs(shape, tokens)
    found = jit(lambda params, args: network.bind(params)(*args))(params, args)
    assert_close(found, theirs(model, *args))


def test_one_number_as_time_is_that_of_all_rows(saved):
    _, network, params = saved
    x, _, text, pooled = inputs()
    forward = jit(lambda t: network.bind(params)(x, t, text, pooled))
    np.testing.assert_allclose(
        forward(jnp.float32(431.5)), forward(jnp.full(2, 431.5)), rtol=1e-4, atol=1e-5
    )


def test_gradients_agree(saved, tmp_path):
    check_gradients(saved, tmp_path, "none")


@pytest.mark.parametrize("remat", ["dots", "blocks"])
@pytest.mark.parametrize("saved", ["medium 3.5"], indirect=True)
def test_gradients_agree_when_blocks_are_computed_twice(saved, tmp_path, remat):
    check_gradients(saved, tmp_path, remat)


def check_gradients(saved, tmp_path, remat):
    model, network, params = saved
    args = inputs()
    pick = np.random.default_rng(2).normal(size=args[0].shape).astype(np.float32)
    model.zero_grad()
    given = [torch.from_numpy(a).requires_grad_() for a in args]
    said = model(
        given[0].permute(0, 3, 1, 2),
        encoder_hidden_states=given[2],
        pooled_projections=given[3],
        timestep=given[1].detach(),
        return_dict=False,
    )[0]
    (said.permute(0, 2, 3, 1) * torch.from_numpy(pick)).sum().backward()
    table = {"pos_embed.pos_embed": torch.zeros_like(model.pos_embed.pos_embed)}
    grads = {name: p.grad for name, p in model.named_parameters()}
    save_file(grads | table, tmp_path / "diffusion_pytorch_model.safetensors")
    expected = weights.read(tmp_path, network.abstract)

    def total(params, x, text, pooled):
        return (network.bind(params)(x, args[1], text, pooled, remat=remat) * pick).sum()

    found, *of_inputs = jit(jax.grad(total, (0, 1, 2, 3)))(params, args[0], *args[2:])
    for ours, leaf in zip(of_inputs, (given[0], given[2], given[3]), strict=True):
        assert_close(ours, leaf.grad)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        if path != "pos_embed/pos_embed":  # a buffer there, without a gradient
            error = np.abs(found[path] - leaf).max()
            assert error <= 1e-4 * np.abs(leaf).max() + 1e-6 * largest, (path, error)


def test_bfloat16_stays_as_near_to_float32_as_in_pytorch(saved):
    model, network, params = saved
    x, *rest = args = inputs()
    forward = jit(lambda *args: network.bind(params)(*args))
    found = forward(jnp.asarray(x, jnp.bfloat16), *map(jnp.asarray, rest))
    assert found.dtype == jnp.bfloat16
    with torch.no_grad():
        exact = theirs(model, *args).numpy()
        rounded = theirs(copy.deepcopy(model).bfloat16(), *args, dtype=torch.bfloat16)
    error = np.abs(np.asarray(found, np.float32) - exact).max()
    assert 0 < error <= 1.5 * np.abs(rounded.float().numpy() - exact).max()
