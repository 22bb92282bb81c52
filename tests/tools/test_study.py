"""The study's tables, from scores whose means and differences are known."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))  # scripts, not packages
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from study_prompts import NOUNLESS, PROMPTS, application
from study_tables import Found, report, subjects_that_decide, verdict

from dreambooth_jax.evaluate.measures import Estimate

SUBJECTS = ("owl", "cat", "jug")
ALIKE = {"subject": 0.5, "prompt": 50.0, "PRES": 0.25, "DIV": 0.375}
ALIKE |= {"application": 75.0, "drift": 0.125}


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
    assert "looking like the subject (PRES) | +0.250 [0.250, 0.250] | holds | 6 |  |" in text
    assert "diverse (DIV) | +0.250 [0.250, 0.250] | holds | 6 |  |" in text
    assert "cost some likeness to the subject | +0.000 [0.000, 0.000] | not decided | 6 |" in text
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
    assert "untouched model at step 40 for the first time" in text
    assert text.index("| 20 |") < text.index("| 40 |") < text.index("| 100 |")


def test_how_many_subjects_would_decide():
    """Subjects of 1 and 3 have the mean 2 and the spread √2: (2.8·√2/2)² is 3.92, so 4."""
    assert subjects_that_decide({("owl", 0): 1.0, ("cat", 0): 3.0}) == 4
    # Seeds of a subject are one mean: 0 and 2 are 1.
    two_seeds = {("owl", 0): 0.0, ("owl", 1): 2.0, ("cat", 0): 3.0, ("cat", 1): 3.0}
    assert subjects_that_decide(two_seeds) == 4
    # 0 and 1: mean 1/2, spread √1/2, (2.8·√2)² = 15.68.
    assert subjects_that_decide({("owl", 0): 0.0, ("cat", 0): 1.0}) == 16
    assert subjects_that_decide({("owl", 0): 1.0, ("owl", 1): 2.0}) is None
    assert subjects_that_decide({("owl", 0): -1.0, ("cat", 0): 1.0}) is None


def test_a_measure_that_one_side_lacks_is_left_out():
    one = found(DreamBooth={})
    one.add("owl", 0, "wrong noun", {"after": {"subject": 0.25}})  # of an older program
    assert one.difference("drift", "DreamBooth", "wrong noun") is None
    assert "the right noun is nearer to the subject than a wrong one" in report(one)


def test_rows_have_as_many_cells_as_their_heads():
    one = found(DreamBooth={}, textual_inversion={})
    one.add("jug", 2, "DreamBooth", {"photos": {"subject": 0.75}})
    tables = report(one).split("### ")[1:]
    for table in tables:
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) == 1, table


def test_prompts_are_told_apart_by_what_they_are_judged_for():
    """Each of the applications is found again in what was drawn, of a noun or none; no other is."""
    for written, subject in ((PROMPTS, "sma car"), (NOUNLESS, "sma")):
        drawn = [
            prompt.format(subject=subject, identifier="sma", class_prompt="a car")
            for prompt in written
        ]
        found = {prompt: application(prompt, "sma") for prompt in drawn}
        assert {prompt: key for prompt, key in found.items() if key} == {
            f"a gold {subject}": "a gold",
            f"a wooden {subject}": "a wooden",
            f"a pencil drawing of a {subject}": "a pencil drawing of a",
            f"an oil painting of a {subject}": "an oil painting of a",
        }
