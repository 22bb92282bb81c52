"""Names in reports and model cards: what they promise is what they are of."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreambooth_jax import config as configs
from dreambooth_jax.experiment.modes import sample
from dreambooth_jax.experiment.results import advice, report


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("embedded", "embedded"),
        ("owner/name@main", "owner/name@main"),
        ("/data/secret project/sd15", "sd15"),
        ("../models/duck.safetensors", "duck.safetensors"),
        ("~/sd15", "sd15"),
        ("gs://private-bucket/models/sd15", "sd15"),
    ],
)
def test_a_model_card_has_no_path_of_this_computer(model: str, told: str) -> None:
    settings = {"base_model": model, "upscaler_model": "", "stages": ("base",)}
    plan = configs.changed(configs.resolve(configs.base_config()), settings)
    assert report.model_card(plan.stages["base"], [], 3)["base model"] == told
    assert "autoencoder" not in report.model_card(plan.stages["base"], [], 3)
    plan = configs.changed(plan, {"vae_model": "/data/my vae", "clip_skip": 2})
    card = report.model_card(plan.stages["base"], [], 3)
    assert (card["autoencoder"], card["clip_skip"]) == ("my vae", 2)


@pytest.mark.parametrize("held_out", [0, 1])
def test_a_loss_of_trained_photos_is_not_called_held_out(held_out: int, tmp_path: Path) -> None:
    """A falling line of it says nothing of overfitting."""
    lines = [{"step": k, "base/loss/subject": 0.3, "base/held_out/subject": 0.2} for k in range(3)]
    told: Any = SimpleNamespace(
        plan=SimpleNamespace(trained=("base",), subject=SimpleNamespace(held_out=held_out)),
        workdir=SimpleNamespace(scalars=lambda: lines),
    )
    (curves,) = report._losses(told)
    looked_at = advice.Advice("base", 1, "", (advice.Step(1, held_out=0.2),))
    header = advice.table(looked_at, held_out=held_out > 0)[0]
    for words in (header, curves.series):
        assert any("held-out" in word or "held_out" in word for word in words) == bool(held_out)
    assert ("--config.subject.held_out=1" in curves.caption) == (not held_out)


def test_pictures_of_a_workdir_without_a_run_are_told_to_be_the_base_s(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = configs.resolve(configs.base_config())
    model: Any = SimpleNamespace()
    workdir: Any = SimpleNamespace(root=tmp_path)
    monkeypatch.setattr(sample, "_trained", lambda *_: None)
    assert sample.restored(plan, model, workdir)[1] == {}
    assert f"There is no run in {tmp_path}" in caplog.text and "--workdir" in caplog.text
    caplog.clear()
    (tmp_path / "config.json").touch()  # a run without a checkpoint yet
    sample.restored(plan, model, workdir)
    assert "no run" not in caplog.text
