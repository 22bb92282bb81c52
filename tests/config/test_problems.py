"""Settings that are wrong by themselves or together, and what each message says to write."""

import re

import pytest
from wrong_settings import changed, problems

from dreambooth_jax import config


@pytest.mark.parametrize(
    "prompt",
    ["a {subject:>1000000000}", "a {subject:{x}}", "a {subject:d}", "a {subject!x}", "{subject!r}"],
)
def test_a_prompt_is_no_format_string(prompt):
    """A width makes a prompt of 1 GB, another format fails after the weights are loaded."""
    (line,) = [x for x in problems(changed(sample__prompts=(prompt,))) if "sample.prompts" in x]
    assert "without : or !" in line and "Write {subject}." in line


def test_settings_that_make_sense_only_together():
    c = changed(optim__name="prodigy", upscaler__learning_rate=1e-4)
    for line, key in zip(problems(c), ("optim", "upscaler"), strict=True):
        assert line.startswith(f"{key}.learning_rate") and "learning_rate=1.0" in line
    config.validate(changed(optim__name="prodigy", optim__learning_rate=1.0))
    given = {"adapt__lora_file": "x.safetensors", "adapt__name": "lora"}
    config.validate(changed(**given))
    config.validate(changed(**given | {"adapt__name": "pivotal", "adapt__then": "lora"}))
    for other in ({"adapt__name": "full"}, {"stages": ("upscaler",)}):
        (line,) = problems(changed(**given | other))
        assert line.startswith("adapt.lora_file") and "no LoRA of the base stage" in line


@pytest.mark.parametrize(("key", "value"), [("dora", True), ("alpha", 8.0)])
def test_settings_of_lora_are_refused_where_the_whole_model_would_be_trained(key, value):
    own = {f"adapt__{key}": value}
    config.validate(changed(**own, adapt__name="lora"))
    config.validate(changed(**own, adapt__name="pivotal", adapt__then="lora"))
    for name in ("full", "textual_inversion", "pivotal"):
        (line,) = problems(changed(**own, adapt__name=name))
        assert line.startswith(f"adapt.{key} = ") and "adapt.name=lora" in line


@pytest.mark.parametrize(
    ("key", "found", "meant"),
    [
        ("stages", "base", "('base',)"),
        ("stages", "base,upscaler", "('base', 'upscaler')"),
        ("sample__prompts", "a {subject}, red", "('a {subject}, red',)"),
    ],
)
def test_a_text_in_a_tuple_s_place_is_told_as_the_tuple_that_is_meant(key, found, meant):
    (line,) = problems(changed(**{key: found}))
    assert line.endswith(f'Write --config.{key.replace("__", ".")}="{meant}".')


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subject__images", "photos/\ud800"),
        ("subject__images", "a\0b"),
        ("sample__prompts", ("a {subject}", "in \udcf6sterreich")),
        ("resolution", 10**6),
        ("resolution", (512, 10**6)),
        pytest.param("resolution", 10**5000, id="thousands of digits"),
        ("subject__crops", 10**9),
        ("train__num_steps", 10**30),
        ("upscaler__num_steps", 2**40),
    ],
)
def test_what_no_file_or_memory_can_hold_is_told_with_its_key(key, value):
    """Half a character is what a locale without UTF-8 makes of an umlaut on the command line."""
    lines = problems(changed(**{key: value}))
    assert any(line.startswith(key.replace("__", ".")) for line in lines)


def test_the_place_of_the_crop_is_two_shares():
    for crop in ((), (0.0, 1.0), (0, 0.5)):
        config.validate(changed(subject__crop=crop))
    for crop in ((0.5,), (0.5, 1.5), ("top", "left"), (0.1, 0.2, 0.3), (True, 0.5)):
        (line,) = problems(changed(subject__crop=crop))
        assert line.startswith("subject.crop = ") and '"(0.0, 0.5)"' in line


BUCKETS = {"data__buckets": 3, "upscaler_model": "", "stages": ("base",)}


@pytest.mark.parametrize(
    ("changes", "found", "instead"),
    [
        ({"data__buckets": 2}, "data.buckets = 2: .*odd number", "--config.data.buckets=3"),
        ({"data__buckets": 10}, r"data.buckets = 10: .*\[0, 9\]", "--config.data.buckets=0"),
        ({"data__buckets": -1}, r"data.buckets = -1: .*\[0, 9\]", "--config.data.buckets=0"),
        (
            {"upscaler_model": "embedded"},
            "upscaler_model = 'embedded': .*an upscaler enlarges pictures of one size",
            '--config.upscaler_model=""',
        ),
        (
            {"fleet__table": "subjects.csv", "adapt__name": "lora"},
            "data.buckets = 3: .*one program, whose step has rows of one shape",
            "--config.data.buckets=0",
        ),
    ],
)
def test_shapes_of_photos_that_cannot_be(changes, found, instead):
    config.validate(changed(**BUCKETS))
    (line,) = problems(changed(**BUCKETS | changes))
    assert re.match(found, line) and instead in line
