"""Sizes and errors of FLUX.1's transformer; values: tests/parity/test_flux.py."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from published import FLUX_DEV, FLUX_SCHNELL

from dreambooth_jax import tree
from dreambooth_jax.models import flux

TINY = FLUX_DEV | {
    "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8,
    "joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": [4, 2, 2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters", "keys"),
    [(FLUX_DEV, 11_901_408_320, 1160), (FLUX_SCHNELL, 11_891_178_560, 1156)],
)
def test_whole_networks_have_the_published_number_of_parameters(config, parameters, keys):
    abstract = flux.build(config).abstract
    assert len(abstract) == keys
    assert tree.count(abstract) == parameters


def test_files_older_than_axes_dims_rope_mean_the_same():
    older = {key: value for key, value in FLUX_DEV.items() if key != "axes_dims_rope"}
    assert flux.FluxConfig.from_dict(older) == flux.FluxConfig.from_dict(FLUX_DEV)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 384, "out_channels": 64}, "is that of FLUX.1 Fill"),
        ({"in_channels": 128, "out_channels": 64}, "is that of FLUX.1 Canny or Depth"),
        ({"out_channels": 16}, "out_channels = 16; supported: 64, None"),
        ({"patch_size": 2}, "patch_size = 2; supported: 1"),
        ({"axes_dims_rope": [32, 32, 32, 32]}, "expected three even numbers"),
        ({"axes_dims_rope": [16, 56, 48]}, "add up to attention_head_dim, 128"),
        ({"num_single_layers": None}, "num_single_layers is missing"),
        ({"mlp_ratio": 3.0}, "mlp_ratio = 3.0; the key is not known"),
        ({"_class_name": "ChromaTransformer2DModel"}, "supported: 'FluxTransformer2DModel'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name_with_the_remedy(change, message):
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        flux.build(FLUX_DEV | change)
    assert "black-forest-labs/FLUX.1-dev" in str(refused.value)


@pytest.mark.parametrize(
    ("change", "x", "guidance", "message"),
    [
        ({}, np.zeros((1, 4, 4, 16), np.float32), None, "needs guidance [B]"),
        ({"guidance_embeds": False}, np.zeros((1, 4, 4, 16), np.float32), 3.5, "no guidance"),
        ({}, np.zeros((1, 4, 5, 16), np.float32), 3.5, "4x5 has no whole patches"),
        ({}, np.zeros((1, 4, 4, 16), np.float16), 3.5, "--config.dtype=bfloat16"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, x, guidance, message):
    network = flux.build(TINY | change)
    params = {path: jnp.zeros(leaf.shape) for path, leaf in network.abstract.items()}
    text, pooled = np.zeros((1, 3, 8), np.float32), np.zeros((1, 8), np.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        network.bind(params)(jnp.asarray(x), np.zeros(1), text, pooled, guidance=guidance)
