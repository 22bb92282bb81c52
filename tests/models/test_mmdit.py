"""Sizes and errors of Stable Diffusion 3's transformer; values: tests/parity/test_mmdit.py."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from published import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM

from dreambooth_jax import tree
from dreambooth_jax.models import mmdit

TINY = SD3_MEDIUM | {
    "num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8, "joint_attention_dim": 8,
    "caption_projection_dim": 8, "pooled_projection_dim": 8, "pos_embed_max_size": 6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "parameters", "positions", "keys"),
    [
        (SD3_MEDIUM, 2_028_328_000, 56_623_104, 683),
        (SD35_MEDIUM, 2_243_171_520, 226_492_416, 909),
        (SD35_LARGE, 8_056_627_520, 89_653_248, 1227),
    ],
)
def test_whole_networks_have_the_published_number_of_parameters(
    config, parameters, positions, keys
):
    abstract = dict(mmdit.build(config).abstract)
    assert len(abstract) == keys
    table = abstract.pop("pos_embed/pos_embed")
    assert np.prod(table.shape) == positions
    assert tree.count(abstract) == parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm = 'layer_norm'; supported: None, 'rms_norm'"),
        ({"caption_projection_dim": 1152}, "num_attention_heads * attention_head_dim = 1536"),
        ({"dual_attention_layers": [0, 24]}, "names [24]; there are 24 layers"),
        ({"num_layers": None}, "num_layers is missing"),
        ({"guidance_embeds": True}, "guidance_embeds = True; the key is not known"),
        ({"_class_name": "FluxTransformer2DModel"}, "supported: 'SD3Transformer2DModel'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mmdit.build(SD3_MEDIUM | change)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((14, 4), "7x2 patches; this model knows positions of 6x6"),
        ((4, 7), "4x7 does not divide into patches of 2x2"),
    ],
)
def test_sizes_without_positions_or_whole_patches_are_refused(shape, message):
    network = mmdit.build(TINY)
    params = {path: jnp.zeros(leaf.shape) for path, leaf in network.abstract.items()}
    text, pooled = np.zeros((1, 3, 8), np.float32), np.zeros((1, 8), np.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        network.bind(params)(np.zeros((1, *shape, 16), np.float32), np.zeros(1), text, pooled)
