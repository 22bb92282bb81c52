"""Sizes and errors of Qwen3; values: tests/parity/test_qwen3.py."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from published import QWEN3_4B, QWEN3_8B

from dreambooth_jax import tree
from dreambooth_jax.models import qwen3


def test_whole_networks_have_the_published_number_of_parameters():
    assert tree.count(qwen3.build(QWEN3_4B).abstract) == 4_022_468_096
    output_layer = 151_936 * 4096  # not tied in the 8B, and never read here
    assert tree.count(qwen3.build(QWEN3_8B).abstract) + output_layer == 8_190_735_360


@pytest.mark.parametrize(
    ("config", "count", "billions"),
    [(QWEN3_4B, 35, 3.92), (QWEN3_4B, 27, 3.11), (QWEN3_8B, 27, 5.83)],
)
def test_layers_that_an_image_model_does_not_read_are_not_built(config, count, billions):
    network = qwen3.build(config, count=count)
    assert round(tree.count(network.abstract) / 1e9, 2) == billions
    assert "model/norm/scale" not in network.abstract


def test_unread_keys_are_those_above_and_no_others():
    unread = re.compile(qwen3.unread(QWEN3_4B, count=35))
    assert unread.fullmatch("lm_head.weight")
    for prefix in ("", "model."):
        assert unread.fullmatch(f"{prefix}norm.weight")
        assert unread.fullmatch(f"{prefix}layers.35.mlp.up_proj.weight")
        assert not unread.fullmatch(f"{prefix}layers.3.mlp.up_proj.weight")
        assert not unread.fullmatch(f"{prefix}layers.34.input_layernorm.weight")
    assert not re.fullmatch(qwen3.unread(QWEN3_4B, count=36), "model.layers.35.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"attention_bias": True}, "attention_bias = True"),
        ({"model_type": "qwen2"}, "model_type = 'qwen2'"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"head_dim": None}, "head_dim is missing"),
        ({"rope_theta": None}, "rope_theta is missing"),
        ({"num_key_value_heads": 5}, "does not divide"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        qwen3.build(QWEN3_4B | change)


def test_a_shallow_network_is_refused_before_weights_are_read():
    with pytest.raises(ValueError, match="num_hidden_layers = 36; 40 are needed"):
        qwen3.build(QWEN3_4B, count=40)


def test_states_of_layers_that_are_not_built_are_refused():
    tiny = QWEN3_4B | {"hidden_size": 8, "intermediate_size": 8, "vocab_size": 8, "head_dim": 4}
    network = qwen3.build(tiny, count=2)
    params = {path: jnp.zeros(leaf.shape) for path, leaf in network.abstract.items()}
    ids = np.zeros((1, 3), np.int32)
    with pytest.raises(ValueError, match=r"after \(3,\) layers are asked for; built: 2"):
        network.bind(params)(ids, ids + 1, after=(3,))
