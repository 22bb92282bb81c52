"""Size and errors of Z-Image's transformer; values: tests/parity/test_z_image.py."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from published import Z_IMAGE

from dreambooth_jax import tree
from dreambooth_jax.models import z_image


def test_the_whole_network_has_the_published_number_of_parameters():
    abstract = z_image.build(Z_IMAGE).abstract
    assert len(abstract) == 521
    assert tree.count(abstract) == 6_154_908_736  # diffusers' class with the same numbers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"siglip_feat_dim": 1152}, "Tongyi-MAI/Z-Image, the base model"),
        ({"n_kv_heads": 10}, "n_kv_heads = 10; supported: 30"),
        ({"all_patch_size": [2, 4]}, "all_patch_size = [2, 4]; supported: [2]"),
        ({"all_f_patch_size": [2]}, "all_f_patch_size = [2]; supported: [1]"),
        ({"qk_norm": False}, "qk_norm = False"),
        ({"axes_dims": [32, 48, 44]}, "add up to 124; expected dim / n_heads = 128"),
        ({"axes_lens": [64, 64]}, "three numbers each"),
        ({"guidance_embeds": True}, "guidance_embeds = True; the key is not known"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        z_image.build(Z_IMAGE | change)


@pytest.mark.parametrize(
    ("shape", "tokens", "message"),
    [
        ((36, 8), 20, "need axes_lens of at least (34, 18, 4)"),
        ((8, 8), 90, "need axes_lens of at least (98, 4, 4)"),
        ((8, 7), 20, "sides must be even"),
    ],
)
def test_positions_out_of_reach_are_refused(shape, tokens, message):
    tiny = Z_IMAGE | {
        "dim": 16, "n_heads": 2, "n_kv_heads": 2, "n_layers": 1, "cap_feat_dim": 8,
        "axes_dims": [4, 2, 2], "axes_lens": [97, 16, 16],
    }  # fmt: skip
    network = z_image.build(tiny)
    params = {path: jnp.zeros(leaf.shape) for path, leaf in network.abstract.items()}
    x, text = np.zeros((1, *shape, 16), np.float32), np.zeros((1, tokens, 8), np.float32)
    with pytest.raises(ValueError, match=re.escape(message)):
        network.bind(params)(x, np.zeros(1), text, np.ones((1, tokens), np.int32))
