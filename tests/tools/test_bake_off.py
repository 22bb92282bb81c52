"""The bake-off: arms that differ in one thing, and its table from a curve and a verdict."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import bake_off
import recipes


def test_arms_are_the_reference_but_for_what_their_name_says():
    first = dataclasses.asdict(recipes.BAKE_OFF["reference"])
    changed = {
        arm: {k for k, v in dataclasses.asdict(recipe).items() if v != first[k]}
        for arm, recipe in recipes.BAKE_OFF.items()
    }
    assert len(changed) >= 9
    assert changed.pop("reference") == set()
    assert changed.pop("EMA 0.999, not cooled") == {"cool"}
    assert recipes.BAKE_OFF["EMA 0.999, not cooled"].step_recipe.ema_decay == 0.999
    with_a_rate = {"Muon, 2e-3", "16 rows, 7e-4", "64 rows, 1.4e-3"}
    for arm, names in changed.items():
        other = names - ({"learning_rate"} if arm in with_a_rate else set())
        assert len(other) == 1 or (arm == "32-64-128, two layers" and len(other) == 2), arm


def test_all_arms_see_as_many_pictures_and_whole_batches():
    for recipe in recipes.BAKE_OFF.values():
        for number in (bake_off.PICTURES, recipe.small, *recipe.cool):
            assert number % recipe.rows == 0
        assert recipe.cool[1] in (0, bake_off.PICTURES)
        assert recipe.small < bake_off.PICTURES
    folders = {bake_off.folder_of(Path("out"), arm) for arm in recipes.BAKE_OFF}
    assert len(folders) == len(recipes.BAKE_OFF)


def test_paces_are_medians_of_each_size_and_minutes_are_of_all_steps():
    curve = [
        {"step": 2, "base/steps_per_second": 1.0},
        {"step": 4, "base/steps_per_second": 2.0},
        {"step": 4, "base/x0_error": 0.5},  # a check's line has no pace
        {"step": 6, "base/steps_per_second": 3.0},
        {"step": 8, "base/steps_per_second": 0.5},
        {"step": 10, "base/steps_per_second": 0.25},
    ]
    small, full, minutes = bake_off.paces(curve, rows=10, small=60)
    assert (small, full) == (20.0, pytest.approx(3.75))
    assert minutes == pytest.approx((2 / 1 + 2 / 2 + 2 / 3 + 2 / 0.5 + 2 / 0.25) / 60)


def test_a_row_has_the_last_errors_and_the_whitened_verdict(tmp_path):
    folder = bake_off.folder_of(tmp_path, "thing 2")
    folder.mkdir()
    lines = [
        {"step": 500, "base/steps_per_second": 1.5},
        {"step": 500, "base/x0_error": 0.5, "base/thing_error": 0.75},
        {"step": 650, "base/steps_per_second": 0.5},
        {"step": 650, "base/x0_error": 0.25, "base/thing_error": 0.375},
    ]
    (folder / "base.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "judged.txt").write_text(
        "  real composites (352), whitened   99.1 ± 1.0    99.7 ± 0.6    84.9 ± 3.7    84.1 ± 3.8\n"
        "  drawn (64), cosine   1.6 ± 3.0     9.4 ± 7.1    21.9 ± 10.1    0.0 ± 0.0\n"
        "  drawn (64), whitened   3.1 ± 4.3    18.8 ±  9.6    25.0 ± 10.6    1.6 ± 3.0\n"
        "  aim                                   60                          85\n"
    )
    *_, found = bake_off.table(tmp_path).splitlines()
    cells = ["thing 2", "48.0", "16.0", "10.6", "0.2500", "0.3750"]
    shares = ["3.1 ± 4.3", "18.8 ± 9.6", "25.0 ± 10.6"]
    assert found == f"| {' | '.join([*cells, *shares])} |"
