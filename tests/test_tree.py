import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_jax import tree

RULES = [(r"unet/.*/kernel", "fsdp"), (r"unet/.*", "replicate"), (r".*", "rest")]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("unet/conv_in/kernel", "fsdp"),
        ("unet/conv_in/kernel_2", "replicate"),
        ("text_encoder/unet/conv_in/kernel", "rest"),
    ],
)
def test_the_first_rule_that_matches_the_whole_path_wins(path, value):
    assert tree.first_match(path, RULES, what="sharding.rules") == value


def test_a_path_without_a_rule_is_an_error_that_names_the_table():
    with pytest.raises(ValueError, match=r"sharding\.rules: no rule matches 'vae/x'") as error:
        tree.first_match("vae/x", RULES[:2], what="sharding.rules")
    assert "unet/.*/kernel" in str(error.value)
    assert "End the table with a rule for '.*'" in str(error.value)


PATHS = st.dictionaries(st.text("ab/", min_size=1, max_size=5), st.integers(), max_size=8)


@given(flat=PATHS)
def test_split_loses_nothing_doubles_nothing_and_keeps_order(flat):
    yes, no = tree.split(flat, lambda path: "a" in path)
    assert all("a" in path for path in yes)
    assert not any("a" in path for path in no)
    assert {**yes, **no} == flat
    assert [path for path in flat if path in yes] == list(yes)
    assert [path for path in flat if path in no] == list(no)


@given(flat=PATHS)
def test_a_prefix_comes_off_as_it_went_on(flat):
    assert tree.prefixed(tree.with_prefix(flat, "unet"), "unet") == flat


def test_a_prefix_ends_at_a_slash():
    flat = {"unet/a": 1, "unet_2/a": 2, "vae/a": 3, "unet": 4}
    assert tree.prefixed(flat, "unet") == {"a": 1}


def test_differing_keys_are_listed_on_both_sides():
    tree.check_keys(["a", "b"], {"b": 0, "a": 0}, what="weights")
    with pytest.raises(
        ValueError, match=r"weights: the keys do not match \(1 of 3 found\)"
    ) as error:
        tree.check_keys(["a", "b", "c"], ["a", "x"], what="weights")
    text = str(error.value)
    missing, left_over = text.split("left over")
    assert "missing (2)" in missing
    assert {"b", "c"} <= set(missing.split())
    assert "x" in left_over.split()


def test_a_long_list_of_keys_is_cut_and_counted():
    with pytest.raises(ValueError, match="missing") as error:
        tree.check_keys([f"key{i:03}" for i in range(75)], [], what="weights")
    text = str(error.value)
    assert "missing (75)" in text
    assert text.count("key") - text.count("keys") == 20
    assert "55 more" in text


def test_sizes_of_real_and_abstract_leaves():
    real = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.int8)}
    assert (tree.count(real), tree.nbytes(real)) == (7, 25)
    huge = {"a": jax.ShapeDtypeStruct((1 << 20, 1 << 20), jnp.bfloat16)}
    assert (tree.count(huge), tree.nbytes(huge)) == (1 << 40, 1 << 41)


def test_a_fingerprint_sees_every_difference_and_no_order():
    base = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(2, np.float32)}
    mark = tree.fingerprint(base)
    assert mark == tree.fingerprint(dict(reversed(base.items())))
    assert mark == tree.fingerprint({path: leaf.copy(order="F") for path, leaf in base.items()})
    assert mark == tree.fingerprint({**base, "b": jnp.ones(2)})
    others = [
        {**base, "c": base["b"]},
        {"a": base["a"]},
        {"a": base["a"], "B": base["b"]},
        {**base, "a": base["a"].reshape(3, 2)},
        {**base, "b": base["b"].astype(np.float16)},
        {**base, "b": np.nextafter(base["b"], np.float32(2))},
        {**base, "a": -base["a"]},  # -0.0 is another bit pattern than 0.0
    ]
    marks = {tree.fingerprint(other) for other in others}
    assert mark not in marks
    assert len(marks) == len(others)
