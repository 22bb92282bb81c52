"""The reference of all settings: complete, told apart, and the page as the command prints it."""

import pytest

from dreambooth_jax import config
from dreambooth_jax.config import reference


def test_every_setting_has_its_sentence():
    """The comment on its line in config/base.py or base_modes.py."""
    found = reference.settings()
    assert {each.key: each.default for each in found} == config.flatten(config.base_config())
    assert [each.key for each in found if len(each.meaning) < 4] == []


def test_comments_go_to_their_own_setting(monkeypatch):
    source = (
        "def _a(c):\n"
        "    c.loss = ConfigDict()  # of the group\n"
        "    # above, first line;\n"
        "    # second line\n"
        "    c.loss.offset_noise = 0.0  # beside\n"
        "    c.seed = 0\n"
        "    c.sample.prompts = (  # at the start\n"
        "        'a #1',\n"
        "    )\n"
    )
    assert [*reference._assigned(source)] == [
        ("loss", "of the group", ""),
        ("loss.offset_noise", "beside", "above, first line; second line"),
        ("seed", "", ""),
        ("sample.prompts", "at the start", ""),
    ]


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("optim.schedule", "constant, cosine, linear"),
        ("train.ema_decay", "[0, 1)"),
        ("variant", ""),
    ],
)
def test_choices_and_ranges_are_shown(key, values):
    (found,) = (each for each in reference.settings() if each.key == key)
    assert found.values == values


def test_the_page_of_settings_is_up_to_date(repository):
    page = (repository / "docs" / "settings.md").read_text()
    assert page == reference.markdown(), (
        "Write it again: dreambooth-jax settings --markdown > docs/settings.md"
    )
