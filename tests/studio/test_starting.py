"""New runs: what is told of them before they start, and how they are started again."""

import pytest
from studios import LIBRARY, client, make_run, photo, studio

FORM = {"name": "toy-run", "class_noun": "toy", "identifier": "auto", "config": "small"}
FORM |= {"captions": "prompt", "masks": "none", "action": "check"}


@pytest.fixture
def own(tmp_path):
    make_run(tmp_path / "runs" / "bird")  # of 8 rows a step, half a second each
    found = studio(tmp_path / "runs")
    found.places.new_subject("toy")
    return found


@pytest.fixture
def browser(own):
    found = client(own)
    found.post("/new/toy/photos", files={"photo": ("a.jpg", photo(), "image/jpeg")})
    return found


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, "runs like it in this folder: base 50 s"),
        ({"train.batch_size": 4}, "Time: not known"),
        ({"train.accumulate": 2}, "Time: not known"),
        ({"upscaler.batch_size": 64}, "Time: not known"),
        ({"adapt.name": "lora"}, "Time: not known"),
        ({"resolution": [64, 96]}, "Time: not known"),
        ({"seed": 5}, "runs like it in this folder: base 50 s"),
    ],
)
def test_time_is_told_of_runs_with_the_settings_that_the_check_found(own, browser, changed, told):
    """Wherever they were written: configuration, a field of their own, the other settings."""
    values = LIBRARY["configs"]["small"]["values"] | changed
    found = {"problem": "", "steps": {"base": 100}, "size": 64, "values": values}
    own.library.check = lambda arguments: found
    assert told in browser.post("/new/toy", data=FORM).text
