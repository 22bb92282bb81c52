"""Settings that are changed past every check, and the lines that `validate` tells of them."""

from typing import Any

import pytest

from dreambooth_jax import config


def changed(**changes: Any) -> config.ConfigDict:
    """base_config with settings changed past every check: dots are written as two underscores."""
    c = config.base_config()
    with c.ignore_type():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def problems(c: config.ConfigDict) -> list[str]:
    """The lines of the message that `validate` raises, without its heading, which counts them."""
    with pytest.raises(config.ConfigError) as caught:
        config.validate(c)
    heading, *lines = str(caught.value).splitlines()
    assert heading.startswith(str(len(lines)))
    return [line.strip() for line in lines]
