"""FLUX.1's transformer against diffusers: with and without guidance, odd sizes, gradients."""

import copy
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dreambooth_jax import weights
from dreambooth_jax.models import flux

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
diffusers = pytest.importorskip("diffusers", reason="compares with diffusers")
from safetensors.torch import save_file  # noqa: E402 (only with torch)

jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TINY = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 20,
    "pooled_projection_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}


@pytest.fixture(scope="module", params=[True, False], ids=["guided", "without guidance"])
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(**TINY, guidance_embeds=request.param)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape))
    folder = tmp_path_factory.mktemp("transformer")
    model.save_pretrained(folder)
    network = flux.build(json.loads((folder / "config.json").read_text()))
    return model.eval(), network, weights.read(folder, network.abstract)


def inputs(model, shape=(2, 10, 6), tokens=5):
    """x `[B,H,W,C]`, t, text, pooled, and guidance where the model reads it."""
    rng = np.random.default_rng(1)
    x, text = rng.normal(size=(*shape, 4)), rng.normal(size=(shape[0], tokens, 20))
    pooled, t = rng.normal(size=(shape[0], 12)), rng.uniform(1, 999, size=shape[0])
    args = tuple(a.astype(np.float32) for a in (x, t, text, pooled))
    guided = model.config.guidance_embeds
    return args, np.linspace(1, 4.25, shape[0], dtype=np.float32) if guided else None


def theirs(model, x, t, text, pooled, guidance):
    """Tensors in our layout -> diffusers' answer, packed and unpacked by its own pipeline."""
    (b, h, w, c), pipeline = x.shape, diffusers.FluxPipeline
    tokens = pipeline._pack_latents(x.permute(0, 3, 1, 2), b, c, h, w)
    said = model(
        tokens,
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=t / 1000,
        guidance=guidance,
        img_ids=pipeline._prepare_latent_image_ids(b, h // 2, w // 2, "cpu", torch.float32),
        txt_ids=torch.zeros(text.shape[1], 3),
        return_dict=False,
    )[0]
    return pipeline._unpack_latents(said, 8 * h, 8 * w, 8).permute(0, 2, 3, 1)


def as_tensors(args, guidance):
    given = [torch.from_numpy(a) for a in args]
    return [*given, None if guidance is None else torch.from_numpy(guidance)]


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
    args, guidance = inputs(model, shape, tokens)
    found = jit(lambda params: network.bind(params)(*args, guidance=guidance))(params)
    assert_close(found, theirs(model, *as_tensors(args, guidance)))


def test_gradients_agree(saved, tmp_path):
    check_gradients(saved, tmp_path, "none")


@pytest.mark.parametrize("remat", ["dots", "blocks"])
@pytest.mark.parametrize("saved", [True], indirect=True)
def test_gradients_agree_when_blocks_are_computed_twice(saved, tmp_path, remat):
    check_gradients(saved, tmp_path, remat)


def check_gradients(saved, tmp_path, remat):
    model, network, params = saved
    args, guidance = inputs(model)
    if guidance is not None:  # as far as t: angles of thousands are rounded to 1e-4 in float32
        guidance = guidance / 5
    pick = np.random.default_rng(2).normal(size=args[0].shape).astype(np.float32)
    model.zero_grad()
    given = as_tensors(args, guidance)
    x, _, text, pooled, _ = given
    for tensor in (x, text, pooled):
        tensor.requires_grad_()
    (theirs(model, *given) * torch.from_numpy(pick)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    save_file(grads, tmp_path / "diffusion_pytorch_model.safetensors")
    expected = weights.read(tmp_path, network.abstract)

    def total(params, x, text, pooled):
        bound = network.bind(params)
        return (bound(x, args[1], text, pooled, guidance=guidance, remat=remat) * pick).sum()

    found, *of_inputs = jit(jax.grad(total, (0, 1, 2, 3)))(params, args[0], *args[2:])
    for ours, tensor in zip(of_inputs, (x, text, pooled), strict=True):
        assert_close(ours, tensor.grad)
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for path, leaf in expected.items():
        error = np.abs(found[path] - leaf).max()
        assert error <= 1e-4 * np.abs(leaf).max() + 1e-6 * largest, (path, error)


def test_bfloat16_stays_as_near_to_float32_as_in_pytorch(saved):
    model, network, params = saved
    (x, *rest), guidance = inputs(model)
    forward = jit(lambda *args: network.bind(params)(*args, guidance=guidance))
    found = forward(jnp.asarray(x, jnp.bfloat16), *map(jnp.asarray, rest))
    assert found.dtype == jnp.bfloat16
    given = as_tensors((x, *rest), guidance)
    half = [a if a is None else a.bfloat16() for a in given]
    with torch.no_grad():
        exact = theirs(model, *given).numpy()
        rounded = theirs(copy.deepcopy(model).bfloat16(), *half).float().numpy()
    error = np.abs(np.asarray(found, np.float32) - exact).max()
    assert 0 < error <= 1.5 * np.abs(rounded - exact).max()


def test_patches_are_packed_in_the_order_of_the_pipeline():
    x = np.arange(2 * 6 * 10 * 3, dtype=np.float32).reshape(2, 6, 10, 3)
    turned = torch.from_numpy(x).permute(0, 3, 1, 2)
    packed = diffusers.FluxPipeline._pack_latents(turned, 2, 3, 6, 10)
    np.testing.assert_array_equal(flux.patches(jnp.asarray(x)), packed)
    np.testing.assert_array_equal(flux.picture(jnp.asarray(packed.numpy()), 6, 10), x)
