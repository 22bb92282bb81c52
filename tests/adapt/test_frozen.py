"""In which dtype frozen leaves are held, and that files of 16 bits are held exactly."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from dreambooth_jax import families, kernels
from dreambooth_jax.adapt import frozen
from dreambooth_jax.experiment.parts import holding

KERNEL = "unet/mid_block/attentions/0/transformer_blocks/0/attn1/to_q/kernel"
HALF, SHORT = np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
FULL, EIGHT = np.dtype(np.float32), np.dtype(np.int8)


@pytest.mark.parametrize(
    ("path", "expected"),
    [  # "file", "bfloat16", "float32", "int8", of a file in float16
        (KERNEL, (HALF, SHORT, FULL, EIGHT)),
        ("unet/conv_in/kernel", (HALF, SHORT, FULL, HALF)),
        ("unet/conv_out/kernel", (HALF, SHORT, FULL, HALF)),
        ("unet/time_embedding/linear_1/kernel", (HALF, SHORT, FULL, HALF)),
        ("text_encoder/shared/embedding", (HALF, SHORT, FULL, HALF)),
        ("text_encoder/encoder/block/0/layer/1/wi_0/kernel", (HALF, SHORT, FULL, EIGHT)),
        ("unet/mid_block/resnets/0/norm1/scale", (FULL,) * 4),
        ("unet/conv_in/bias", (FULL,) * 4),
    ],
)  # fmt: skip
def test_kernels_and_tables_are_held_as_asked_all_else_in_float32(path, expected):
    array = np.ones((3, 4) if path.endswith(("kernel", "embedding")) else (4,), np.float16)
    for dtype, wanted in zip(frozen.DTYPES, expected, strict=True):
        leaf = frozen.held(path, array, dtype)
        assert leaf.dtype == wanted, (path, dtype)
        shape = frozen.abstract(path, array, array.dtype, dtype)
        assert (shape.shape, shape.dtype) == (leaf.shape, leaf.dtype)


def test_nothing_but_8_bits_and_shorter_ones_rounds_what_a_file_has():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(5, 6)).astype(np.float16)
    for dtype in frozen.DTYPES:
        same = np.array_equal(np.float32(kernels.fused(frozen.held(KERNEL, array, dtype))), array)
        assert same == (not frozen.rounds(dtype)), dtype


def test_a_file_in_float32_is_held_as_it_is_without_a_copy():
    array = np.ones((5, 6), np.float32)
    assert frozen.held(KERNEL, array, "file") is array
    assert frozen.held(KERNEL, array, "float32") is array
    assert frozen.held(KERNEL, array.astype(np.float64), "file").dtype == np.float32


def test_what_a_family_keeps_is_not_in_8_bits():
    array = np.ones((5, 6), np.float32)
    assert frozen.held(KERNEL, array, "int8", kept=".*/to_q/kernel") is array


@pytest.mark.parametrize("family", [*families.FAMILIES])
def test_no_family_holds_its_codec_in_8_bits(family):
    """Errors of an autoencoder's weights are seen in every picture."""
    codec = SimpleNamespace(component="vae")
    stage = SimpleNamespace(codec=codec, family=families.FAMILIES[family])
    kept = holding.kept(stage)
    inside = "vae/decoder/mid_block/resnets/0/conv1/kernel"
    array = np.ones((3, 4), np.float16)
    assert frozen.held(inside, array, "int8", kept=kept) is array
    assert frozen.held(KERNEL, array, "int8", kept=kept).dtype == EIGHT
