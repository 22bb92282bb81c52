"""The settings of a run's folder, which may be another's, or damaged."""

import pytest
from wrong_settings import changed

from dreambooth_jax import config
from dreambooth_jax.checkpoint import CheckpointError, manifest


def test_the_folder_of_another_does_not_say_what_is_loaded_or_written_where(tmp_path):
    """Compiled programs are machine code; the caches' files are replaced and removed."""
    theirs = changed(
        compile__cache_dir=str(tmp_path / "xla"),
        hub__cache_dir=str(tmp_path / "hub"),
        prior__folder=str(tmp_path / "prior"),
        train__num_steps=7,
    )
    (tmp_path / "config.json").write_text(config.to_json(theirs))
    found = config.of_run(str(tmp_path))
    assert found.train.num_steps == 7 and found.is_locked
    assert str(tmp_path) not in config.to_json(found)
    # A run of one's own goes on all the same with the folders that it had.
    assert config.resume_conflicts(theirs, found) == []


def test_a_damaged_record_of_a_run_is_named_with_what_to_do(tmp_path):
    file = tmp_path / "config.json"
    for content in (b"\x80\xff", b"{", b"[" * 100_000, b'{"seed": "five"}', b'{"train": []}'):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json") as error:
            config.of_run(str(tmp_path))
        assert str(file) in str(error.value)


LINEAR = {"optim__schedule": "linear", "optim__warmup_steps": 0}


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        ({}, ""),
        ({"train__num_steps": 2000}, ""),
        ({"train__num_steps": 900}, "fewer steps"),
        ({"upscaler__num_steps": 1500}, ""),
        ({"upscaler__num_steps": 500}, "fewer steps"),
        ({"train__num_steps": 2000} | LINEAR, "'linear' ends at the last step"),
        ({"train__num_steps": 2000, "train__text_encoder_steps": 700}, ""),
        ({"train__num_steps": 2000, "train__text_encoder_steps": 1000}, "never reached"),
        ({"train__num_steps": 2000, "adapt__name": "pivotal"}, "half of all steps"),
    ],
)
def test_a_run_goes_on_for_more_steps_where_those_before_do_not_depend_on_it(now, reason):
    """1000 steps of 2 class rows have 500 class images by themselves, 2000 steps twice as many."""
    both = {key: x for key, x in now.items() if "num_steps" not in key}
    both |= {"prior__num_images": 100, "train__text_encoder": True}
    started, later = changed(**both), changed(**both | now)
    lines = config.resume_conflicts(started, later)
    assert bool(lines) == bool(reason)
    assert all(reason in line for line in lines)


def test_more_steps_keep_the_class_images_that_there_are():
    started = changed(upscaler_model="", stages=("base",))
    more = {"upscaler_model": "", "stages": ("base",), "train__num_steps": 2000}
    (line,) = config.resume_conflicts(started, changed(**more))
    assert "--config.prior.num_images=500" in line
    assert config.resume_conflicts(started, changed(**more, prior__num_images=500)) == []
    lines = config.resume_conflicts(started, changed(**more, prior__num_images=501))
    assert {line.partition(":")[0] for line in lines} == {"prior.num_images", "train.num_steps"}


def test_a_setting_that_an_earlier_version_had_keeps_no_checkpoint_from_being_restored():
    now = config.flatten(config.base_config())
    free = config.free_to_restore(now)
    saved = {key: value for key, value in now.items() if key != "log.to"}
    saved["log.tensorboard"] = False
    manifest.check_config(saved, now, may_differ=free, what="step 3")
    with pytest.raises(CheckpointError, match=r"adapt\.rank"):
        manifest.check_config(saved | {"adapt.rank": 77}, now, may_differ=free, what="step 3")
