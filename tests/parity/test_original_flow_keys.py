"""Original keys of Stable Diffusion 3 and FLUX.1 against diffusers' own converters."""

import numpy as np
import pytest
from published import FLUX_DEV, SD35_MEDIUM

from dreambooth_jax import weights
from dreambooth_jax.families import original_flow_keys
from dreambooth_jax.models import flux, mmdit

torch = pytest.importorskip("torch", reason="compares with PyTorch: install the extra `parity`")
utils = pytest.importorskip("diffusers.loaders.single_file_utils", reason="extra `parity`")


def numbered(abstract, *, columns=None):
    """Tensors in PyTorch's layout, all of other numbers; of `columns` inputs at most."""
    made, last = {}, 0
    for path, leaf in abstract.items():
        shape = leaf.shape
        if path.endswith("/kernel"):
            turned = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape[::-1]
            shape = turned[:1] + tuple(columns or side for side in turned[1:2]) + turned[2:]
        size = int(np.prod(shape))
        made[weights.key_of(path)] = np.arange(last, last + size, dtype=np.int64).reshape(shape)
        last += size
    return made


def assert_returns(converted, tensors):
    assert converted.keys() == tensors.keys()
    for key, value in tensors.items():
        assert np.array_equal(converted[key].numpy(), value), key


def as_torch(tensors):
    return {key: torch.from_numpy(np.ascontiguousarray(x)) for key, x in tensors.items()}


@pytest.mark.parametrize("dual", [[], [0, 1]])
def test_diffusers_reads_stable_diffusion_3(dual):
    config = SD35_MEDIUM | {
        "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 8,
        "caption_projection_dim": 16, "joint_attention_dim": 8, "pooled_projection_dim": 8,
        "pos_embed_max_size": 4, "dual_attention_layers": dual,
    }  # fmt: skip
    tensors = numbered(mmdit.build(config).abstract)
    made = original_flow_keys.sd3(tensors)
    assert "joint_blocks.2.context_block.adaLN_modulation.1.weight" in made
    # Its converter takes the width of the caption's projection to split by.
    converted = utils.convert_sd3_transformer_checkpoint_to_diffusers(as_torch(made))
    assert_returns(converted, tensors)


def test_diffusers_reads_flux():
    config = FLUX_DEV | {"num_layers": 2, "num_single_layers": 2}
    # Its converter knows FLUX.1's own width alone: whole height, one column.
    tensors = numbered(flux.build(config).abstract, columns=1)
    made = original_flow_keys.flux(tensors)
    assert made["single_blocks.1.linear1.weight"].shape == (21504, 1)
    assert_returns(utils.convert_flux_transformer_checkpoint_to_diffusers(as_torch(made)), tensors)
