"""The study's tables, from scores whose means and differences are known."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))  # scripts, not a package

from study_tables import Found, report, verdict

from dreambooth_jax.evaluate.measures import Estimate

SUBJECTS = ("owl", "cat", "jug")
ALIKE = {"subject": 0.5, "prompt": 50.0, "PRES": 0.25, "DIV": 0.375}


def found(**shifted: dict[str, float]) -> Found:
    """Two seeds of each subject, all alike, but for what an arm adds to a measure."""
    one = Found()
    for arm, added in shifted.items():
        for number, subject in enumerate(SUBJECTS):
            worth = {name: value + number / 64 for name, value in ALIKE.items()}
            worth = {name: value + added.get(name, 0) for name, value in worth.items()}
            for seed in range(2):
                one.add(subject, seed, arm.replace("_", " "), {"before": ALIKE, "after": worth})
    return one


def test_a_difference_is_taken_within_subjects_and_seeds():
    # Subjects differ by 1/64 each, which a mean of the arms alone would have in its interval.
    one = found(DreamBooth={"subject": 0.125}, wrong_noun={})
    assert one.difference("subject", "DreamBooth", "wrong noun") == (0.125, 0.125, 0.125, 6)
    mean = one.mean("DreamBooth", "subject")
    assert mean.value == pytest.approx(0.625 + 1 / 64)
    assert 0.625 <= mean.low < mean.value < mean.high <= 0.625 + 2 / 64


def test_subjects_are_drawn_again_and_not_their_seeds_alone():
    """Of one subject the seeds alone differ; of two equal seeds nothing does."""
    one = Found()
    for subject, value in (("owl", 0.0), ("cat", 1.0)):
        for seed in range(100):
            one.add(subject, seed, "DreamBooth", {"after": {"subject": value}})
    # 200 trials, but two subjects: each of the two is all that is drawn a quarter of the time.
    assert one.mean("DreamBooth", "subject")[:3] == (0.5, 0.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(0.01, 0.2, "holds"), (-0.1, 0.2, "not decided"), (-0.2, -0.01, "the reverse")],
)
def test_an_interval_decides_or_does_not(low, high, said):
    assert verdict(Estimate((low + high) / 2, low, high, 3)) == said


def test_tables_have_what_was_run_and_nothing_else():
    text = report(found(DreamBooth={}, no_class_images={"PRES": 0.25, "DIV": -0.25}))
    assert "| no class images | 6 | 0.516 [" in text
    assert "looking like the subject (PRES) | +0.250 [0.250, 0.250] | holds |" in text
    assert "diverse (DIV) | +0.250 [0.250, 0.250] | holds |" in text
    assert "cost some likeness to the subject | +0.000 [0.000, 0.000] | not decided |" in text
    assert "textual inversion" not in text
    assert "Steps" not in text


def test_the_first_step_that_loses_prompts_is_named():
    one = Found()
    for subject in SUBJECTS:
        grids = {
            f"base-{step:06}": {**ALIKE, "prompt": 50.0 - lost, "subject": gained}
            for step, lost, gained in ((20, 0, 0.6), (40, 25, 0.9), (100, 50, 0.7))
        }
        one.add(subject, 0, "longer", {"before": ALIKE, **grids, "after": grids["base-000100"]})
    text = report(one)
    assert "Nearest to the subject at step 40" in text
    assert "untouched model from step 40 on" in text
    assert text.index("| 20 |") < text.index("| 40 |") < text.index("| 100 |")
