"""Settings of subjects, captions, masks and class images."""

import pytest
from absl import flags
from ml_collections import config_flags

from dreambooth_jax import config


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"subject__others": ("photos/cat",)},
            ["triples (images", "(('photos/cat', 'cat', 'auto'),)"],
        ),
        (
            {"subject__others": (("photos/cat", "a cat", "zib"),)},
            ["without article", "Write 'cat'"],
        ),
        ({"subject__others": (("photos/cat", "cat", "z b"),)}, ["'z b'", "Write 'auto'"]),
        (
            {"subject__identifier": "zib", "subject__others": (("cat", "cat", "Zib"),)},
            ["subject.others = 'Zib'", "another word for each subject"],
        ),
        (
            {"subject__class_noun": "clay pot", "subject__others": (("x", "clay_pot", "auto"),)},
            ["subject.others = 'clay_pot'", "Write 'clay pot' in its place"],
        ),
        ({"subject__captions": "file"}, ["subject.captions = 'file'", "Did you mean 'files'?"]),
        ({"subject__masks": "alhpa"}, ["subject.masks = 'alhpa'", "Did you mean 'alpha'?"]),
        ({"loss__outside_mask": -0.1}, ["loss.outside_mask = -0.1", "[0, 1]"]),
        (
            {"prior__images": "x", "prior_loss_weight": 0.0},
            ["prior.images = 'x'", "prior_loss_weight is 0", '--config.prior.images=""'],
        ),
        ({"prior__images": "x", "prior__kind": "prediction"}, ["prior.kind is 'prediction'"]),
        ({"prior__images": "x", "prior__folder": "y"}, ["prior.folder = 'y'", "drawn ones"]),
    ],
)
def test_what_cannot_be_is_told_with_what_to_write_instead(changed, told):
    c = config.base_config()
    c.update_from_flattened_dict({key.replace("__", "."): value for key, value in changed.items()})
    with pytest.raises(config.ConfigError) as caught:
        config.validate(c)
    for text in told:
        assert text in str(caught.value)


def test_several_subjects_on_the_command_line(repository):
    file = repository / "configs" / "imagen_like.py"
    others = "(('photos/cat','cat','auto'),('x','dog','zab'))"
    argv = ["main", f"--config={file}", f"--config.subject.others={others}"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    config.parse_flags(argv, values)
    found = config.subjects(values["config"].value)
    assert found == (
        ("embedded", "bird", "auto"),
        ("photos/cat", "cat", "auto"),
        ("x", "dog", "zab"),
    )


@pytest.mark.parametrize(
    ("changed", "share", "number", "told"),
    [
        # Steps × class rows of the stage that shows most, a quarter of it; 50 to 1000.
        ({"train.num_steps": 800, "train.batch_size": 2}, 1, 200, "800 steps × 1 class row, each"),
        ({"train.num_steps": 1000, "train.batch_size": 4}, 1, 500, "1000 steps × 2 class rows"),
        ({"train.num_steps": 1000, "train.batch_size": 4}, 0.5, 250, "× 0.5 of them, each"),
        ({"upscaler.num_steps": 5000}, 1, 1000, "5000 steps × 2 class rows, each shown about 10"),
        ({"train.num_steps": 60, "train.batch_size": 2}, 1, 50, "each shown about 1.2 times"),
        ({"train.num_steps": 7, "train.batch_size": 2}, 1, 7, "each shown about 1 times"),
        ({"prior.num_images": 3}, 1, 3, "prior.num_images is 3, as set"),
    ],
)
def test_class_images_follow_the_steps_unless_set(changed, share, number, told):
    c = config.base_config()
    c.update_from_flattened_dict({"upscaler.num_steps": 1, **changed})
    found, why = config.num_class_images(config.resolve(c), share=share)
    assert found == number
    assert told in why
    assert why.startswith(f"prior.num_images is {number}")
