"""The command line: mistakes around `--config` as short messages, before anything is loaded."""

import pathlib
import re
import sys
import traceback
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict

from dreambooth_jax.config import library
from dreambooth_jax.config.base import base_config, flatten
from dreambooth_jax.config.checks import validate
from dreambooth_jax.config.problems import ConfigError, suggest


def parse_flags(argv: Sequence[str], flag_values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """The parser of absl for a program with `DEFINE_config_file("config")`, then `validate`.

    Use it as `app.run(main, flags_parser=config.parse_flags)`. Returns the program's name. Where a
    key does not exist, a value cannot be, or a file is not there, it ends the program with status 1
    and says all that is wrong, without a traceback. The configurations of the package are known by
    name (`library`).
    """
    argv = _located(argv)
    mistakes = [*_mistakes(argv[1:])]
    if mistakes:
        sys.exit("\n".join(mistakes))
    try:
        rest = flag_values(list(argv))
        config = flag_values["config"].value
        if not isinstance(config, ConfigDict):
            sys.exit(f"--config={_config_path(argv)}: its get_config returns no configuration.")
        validate(config)
    except ConfigError as error:
        sys.exit(str(error))
    except flags.Error as error:
        sys.exit(_last_line(str(error)))
    except (AttributeError, KeyError) as error:  # a config file that sets a key that does not exist
        frames = traceback.extract_tb(error.__traceback__)
        place = [
            f"{frame.filename}:{frame.lineno}" for frame in frames if frame.name == "get_config"
        ]
        if not place:
            raise
        sys.exit(f"{place[-1]}: {_unknown_key(str(error))}")
    if rest[1:]:
        words = ", ".join(map(repr, rest[1:]))
        sys.exit(f"{words}: belongs to no flag. A value with spaces needs quotes.")
    return rest


def _located(words: Sequence[str]) -> list[str]:
    """The words with a file's path in the place of the name of a configuration."""
    found = []
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if equals and flag in ("--config", "-config"):
            found.append(f"{flag}={library.located(value)}")
        elif i and words[i - 1] in ("--config", "-config"):
            found.append(library.located(word))
        else:
            found.append(word)
    return found


def _config_path(words: Sequence[str]) -> str:
    """The value of `--config`, "" when the command line has none."""
    for i, word in enumerate(words):
        if match := re.fullmatch(r"--?config=(.*)", word):
            return match[1]
        if word in ("--config", "-config"):
            return "".join(words[i + 1 : i + 2])
    return ""


def _mistakes(words: Sequence[str]) -> Iterator[str]:
    """Yields mistakes that the words alone show: no config file, unknown keys."""
    if any(re.match(r"--?(help|helpfull|helpshort|helpxml|version)\b", word) for word in words):
        return
    path = _config_path(words).partition(":")[0]
    if not path:
        yield "--config is missing. Write for instance --config=imagen_like, or --config=FILE.py."
    elif not pathlib.Path(path).is_file() and re.fullmatch(r"\w+", path):
        names = library.files()
        yield (
            f"--config={path}: no such file, and no configuration of that name. "
            f"{suggest(path, names)} There are {', '.join(names)}."
        ).replace("  ", " ")
    elif not pathlib.Path(path).is_file():
        near = suggest(path, map(str, pathlib.Path(path).parent.glob("*.py")))
        yield f"--config={path}: no such file. {near}".rstrip()

    keys = flatten(base_config())
    groups = {key.partition(".")[0] for key in keys if "." in key}
    for word in words:
        match = re.match(r"--?(?:no)?config\.([^=]+)", word)
        key = match[1] if match else ""
        if key in groups:
            members = ", ".join(name for name in keys if name.startswith(f"{key}."))
            yield f"--config.{key} is a group of settings. Set one of {members}."
        elif key.partition("[")[0] in keys and "[" in key:
            yield f"--config.{key}: a tuple is set as a whole, --config.{key.partition('[')[0]}=…"
        elif key and key not in keys:
            yield f"--config.{key}: no such key. {suggest(key, groups | keys.keys())}".rstrip()


def _last_line(text: str) -> str:
    """The last line of an error, after the place in the config file that is to blame."""
    line = re.sub(r"^[\w.]+Error: ", "", text.strip().splitlines()[-1])
    places = re.findall(r'File "(.*)", line (\d+), in get_config', text)
    return f"{':'.join(places[-1])}: {line}" if places else line


def _unknown_key(text: str) -> str:
    """The complaint of ml_collections about a key, shorter and with a suggestion."""
    match = re.search(r'Key "(\w+)" does not exist', text) or re.match(r"[\\'\"]*(\w+)", text)
    if not match:
        return text
    keys = flatten(base_config())
    groups = {key.partition(".")[0] for key in keys}
    return f"no such key {match[1]!r}. {suggest(match[1], groups | keys.keys())}".rstrip()
