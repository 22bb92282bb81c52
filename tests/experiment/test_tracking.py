"""Pictures in trackers: each grid at its step, stages one after the other."""

import types

import numpy as np
import pytest

from dreambooth_jax.experiment.parts import tracking

PLAN = types.SimpleNamespace(
    to_train=[
        types.SimpleNamespace(kind="base", train=types.SimpleNamespace(num_steps=300)),
        types.SimpleNamespace(kind="upscaler", train=types.SimpleNamespace(num_steps=100)),
    ]
)


@pytest.mark.parametrize(
    ("label", "step"),
    [
        ("before", 0),
        ("base-000100", 100),
        ("base-000300", 300),
        ("upscaler-000050", 350),
        ("after", 400),
        ("untouched-1a2b3c4d", None),
        ("base-000300+upscaler-000100-99aa", None),
    ],
)
def test_a_grid_has_a_step_over_all_stages(label, step):
    assert tracking.step_of(PLAN, label) == step


def test_pictures_go_to_the_writers_under_their_prompt():
    calls = []
    writer = types.SimpleNamespace(
        write_images=lambda *given: calls.append(given), write_texts=lambda *given: None
    )
    picture = np.zeros((2, 2, 3), np.uint8)
    cells = {"a zib bird": [picture, picture + 1]}
    tracking.write(PLAN, types.SimpleNamespace(writer=writer), "after", cells)
    ((step, images),) = calls
    assert step == 400 and images["samples/a zib bird"].shape == (2, 2, 2, 3)
    tracking.write(PLAN, types.SimpleNamespace(writer=writer), "other", cells)
    assert len(calls) == 1
