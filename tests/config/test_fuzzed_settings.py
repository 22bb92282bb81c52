"""Every setting with values of every wrong kind: told with its key, and never a traceback."""

import math

import pytest
from wrong_settings import changed

from dreambooth_jax import config

ALL = config.flatten(config.base_config())
PLAIN = [  # of every setting
    *(None, True, -1, 7, 2**70, 10**5000, 1.5, math.nan, math.inf, -math.inf),
    *("", "x", "a {b}", "{", "\ud800", "a\0b", "x" * 20_000, b"x", {}, [], ()),
]
NESTED = [  # of those that hold several
    *({"a": 1}, ["x"], ("x",), ("",), (1,), (None,), ((),), ([],), ({},), (("x",),), (("x", 1),)),
    *((("x", 1.0),), (("x", "y"),), (("x", True),), (("x", None),), (("x", math.nan),)),
    *((("x", math.inf),), (("x", 11),), ((1, "x"),), (("", 1.0),), (("x", 1.0, 2),)),
    *((("x", "y", "z"),), ("x", 1.0), ((("x",), 1.0),), (("\ud800", 1.0),), (("(", True),)),
    *(((".*", True), ("x", "y")), (1, 2), (0.5, 0.5), ("a", "b"), (math.nan, 1.0)),
    *(({"x": 1.0},), ("x" * 20_000,), ("a {subject",), (10**5000, 10**5000)),
]


def told(key, value):
    """The message about a setting, "" where its value can be."""
    try:
        config.resolve(ALL | {key: value})
    except config.ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", ALL)
def test_a_setting_of_a_wrong_kind_is_told_and_never_a_traceback(key):
    several = key == "resolution" or isinstance(ALL[key], tuple)
    for value in [*PLAIN, *(NESTED if several else ())]:
        message = told(key, value)
        assert len(message) < 4000
        of_another_kind = type(value) not in (int, float, type(ALL[key]), type(None))
        if ALL[key] is not None and of_another_kind:
            assert f"\n  {key} = " in message and ": expected " in message


@pytest.mark.parametrize("key", ["sample.loras", "edit.words"])
@pytest.mark.parametrize(
    "pair",
    [
        *("snow", (), ("snow",), ("snow", 1.0, 2.0), ("snow", "2"), ("snow", True), ("snow", None)),
        *(("", 1.0), (" ", 1.0), (3, 1.0), ("snow", math.nan), ("snow", math.inf), ("snow", 10.5)),
        *({"snow": 1.0}, None, (("snow",), 1.0), ("a\0b", 1.0)),
    ],
)
def test_pairs_of_a_name_and_a_number_are_checked_with_the_settings(key, pair):
    given = {key.replace(".", "__"): (("good", 1), pair), "edit__method": "inversion"}
    with pytest.raises(config.ConfigError) as caught:
        config.validate(changed(**given))
    (line,) = str(caught.value).splitlines()[1:]
    assert line.strip().startswith(f"{key} = ")
    assert "expected" in line and f"Write --config.{key}=" in line


def test_pairs_that_can_be_are_taken():
    words = (("snow", 2), ("two words", -1.5), ("x", 10))
    config.validate(changed(edit__words=words, edit__method="inversion"))
    assert config.resolve(changed(sample__loras=(["a", 1.0],))).sample.loras == (("a", 1.0),)


def test_words_without_a_source_are_refused():
    with pytest.raises(config.ConfigError, match=r"edit\.words = .*'sdedit'.*method=inversion"):
        config.validate(changed(edit__words=(("snow", 2.0),)))


def test_a_log_that_there_is_none_of_is_refused():
    with pytest.raises(config.ConfigError, match=r"log\.to = 'tensorbord'.*'tensorboard'"):
        config.validate(changed(log__to=("jsonl", "tensorbord")))
