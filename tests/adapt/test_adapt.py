import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_jax.adapt import FULL

WEIGHTS = {
    "unet/conv_in/kernel": np.arange(4.0),
    "unet/mid/attn/kernel": np.arange(3.0),
    "unet/mid/attn/bias": np.arange(2.0),
    "text_encoder/embedding": np.arange(5.0),
}


def test_the_first_rule_that_matches_the_whole_path_decides():
    rules = ((".*/bias", False), ("unet/mid/.*", True), ("mid/.*", True), (".*", False))
    trainable, frozen = FULL.init(WEIGHTS, rules)
    assert list(trainable) == ["unet/mid/attn/kernel"]
    assert list(frozen) == ["unet/conv_in/kernel", "unet/mid/attn/bias", "text_encoder/embedding"]


@given(chosen=st.sets(st.sampled_from(sorted(WEIGHTS)), min_size=1))
def test_combined_again_the_weights_are_what_they_were(chosen):
    trainable, frozen = FULL.init(WEIGHTS, [*((path, True) for path in chosen), (".*", False)])
    assert trainable.keys() == chosen
    assert frozen.keys() == WEIGHTS.keys() - chosen
    again = FULL.combine(frozen, trainable)
    assert again.keys() == WEIGHTS.keys()
    assert all(again[path] is leaf for path, leaf in WEIGHTS.items())


def test_trained_leaves_come_back_and_nothing_is_changed_in_place():
    trainable, frozen = FULL.init(WEIGHTS, (("unet/.*", True), (".*", False)))
    trained = {path: leaf + 1 for path, leaf in trainable.items()}
    weights = FULL.combine(frozen, trained)
    for path, leaf in WEIGHTS.items():
        np.testing.assert_array_equal(weights[path], leaf + path.startswith("unet/"))
    assert list(trainable) == list(trained)
    assert "unet/conv_in/kernel" not in frozen


def test_nothing_to_train_is_an_error_that_names_the_setting():
    with pytest.raises(ValueError, match=r"adapt\.train = .*none of the 4 leaves"):
        FULL.init(WEIGHTS, (("vae/.*", True), (".*", False)))


def test_a_leaf_without_a_rule_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"adapt\.train: no rule matches 'text_encoder/embedding'"):
        FULL.init(WEIGHTS, (("unet/.*", True),))
