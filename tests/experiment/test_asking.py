"""Prompts, seeds and sizes of the Python interface: what is taken, and what is told of the rest."""

import numpy as np
import pytest

from dreambooth_jax.experiment.parts import asking


def test_what_can_be_asked_for():
    assert asking.prompts("a {subject}") == ["a {subject}"]
    assert asking.prompts(("", "a {{brace}}", "鸟")) == ["", "a {{brace}}", "鸟"]
    assert asking.prompts(np.array(["a", "b"])) == ["a", "b"]
    assert asking.prompts(f"a {k}" for k in range(2)) == ["a 0", "a 1"]
    assert asking.seeds(3) == asking.seeds(np.uint32(3)) == asking.seeds([3]) == [3]
    assert asking.seeds(range(2)) == asking.seeds(np.arange(2)) == [0, 1]
    assert asking.seeds(2**32 - 1) == [2**32 - 1]
    assert asking.size(None) is None
    assert asking.size([np.int64(768), 512]) == (768, 512)
    assert asking.is_template("a {subject}")
    assert not asking.is_template("a {{subject}}")


@pytest.mark.parametrize("given", [None, 1, 1.5, b"a", {"a": 1}, {"a"}, [1], ["a", None], [b"a"]])
def test_prompts_that_are_no_texts(given):
    with pytest.raises(TypeError, match=r"^prompts (=|has) .*expected .*such as \['a {subject}'\]"):
        asking.prompts(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected one prompt or more"),
        ("a {", "Write {{ or }} for a brace"),
        ("a }", "Write {{ or }} for a brace"),
        (["fine", "a {bird}"], "with only {subject}"),
        ("a {}", "with only {subject}"),
        ("a {0}", "with only {subject}"),
        ("{subject:>1000000000}", "without : or !"),
        ("{subject.__class__}", "with only {subject}"),
        ("a\0b", "characters that a file can hold"),
        ("a \ud800", "characters that a file can hold"),
        ("x" * 10_001, "at most 10000 characters, not 10001"),
    ],
)
def test_prompts_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message) as caught:
        asking.prompts(given)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "given", [None, True, 1.0, "1", b"1", [True], [1.5], ["1"], [None], {1: 2}]
)
def test_seeds_that_are_no_whole_numbers(given):
    with pytest.raises(TypeError, match=r"^seeds (=|has) .*expected .*such as \[0, 1\]"):
        asking.seeds(given)


@pytest.mark.parametrize("given", [[], -1, 2**32, [0, -5], np.int64(-1), 10**400])
def test_seeds_that_are_out_of_range(given):
    with pytest.raises(ValueError, match=r"^seeds (=|has) .*expected"):
        asking.seeds(given)


@pytest.mark.parametrize(
    "given", [512, "512x512", (512,), (1, 2, 3), (1.5, 2), (True, 8), ("8", 8)]
)
def test_sizes_that_are_no_pair(given):
    with pytest.raises(TypeError, match=r"^size = .*expected height and width"):
        asking.size(given)


@pytest.mark.parametrize("given", [(0, 8), (8, -8), (8, 8193), (10**400, 8)])
def test_sizes_that_are_out_of_range(given):
    with pytest.raises(ValueError, match=r"^size = .*expected sides from 1 to 8192"):
        asking.size(given)
