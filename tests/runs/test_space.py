"""The estimate of the room that a run takes on the disk."""

import commands
import pytest

from dreambooth_jax import config as configs
from dreambooth_jax.experiment.parts import loading as setup
from dreambooth_jax.experiment.training import disk as space


def test_a_run_stays_within_its_estimate_and_not_far_below(tmp_path_factory):
    stages, folder = commands.reference(tmp_path_factory)
    plan = configs.resolve(commands.config(stages))
    found = space.estimate(plan, setup.open_stages(plan))
    names = {"class images": "prior", "grids": "samples", "export": "export"}
    for part, name in names.items():
        on_disk = sum(file.stat().st_size for file in (folder / name).rglob("*") if file.is_file())
        assert on_disk <= found[part] <= 10 * on_disk, part
    kept = sum(f.stat().st_size for f in (folder / "checkpoints").rglob("*") if f.is_file())
    assert kept <= found["checkpoints"] <= 10 * kept  # one more than stays, and small leaves
    assert found["kept weights"] == 0


@pytest.mark.parametrize("name", ["lora", "textual_inversion", "pivotal"])
def test_it_knows_what_each_way_to_adapt_keeps(name, tmp_path_factory):
    stages = commands.cascade(tmp_path_factory)
    plan = configs.resolve(commands.config(stages, train__keep_weights_every=2))
    opened = setup.open_stages(plan)
    full = space.estimate(plan, opened)
    lora = {"adapt.name": name, "adapt.then": "lora", "adapt.dora": name != "textual_inversion"}
    small = space.estimate(configs.changed(plan, lora), opened)
    # 6 // 2 and 4 // 2 weights, and three checkpoints with moments of each stage.
    assert 0 < small["kept weights"] < full["kept weights"]
    assert small["checkpoints"] < full["checkpoints"]
    assert small["grids"] == full["grids"] and small["class images"] == full["class images"]
