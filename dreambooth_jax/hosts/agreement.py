"""Comparison of what must be equal on all hosts, before the processes block on each other."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed  # its client is public nowhere; Orbax takes it from here as well
from jax.experimental import multihost_utils

_LONG = 24 * 3600  # seconds that a process may come later than others; the watch tells of dead ones
_numbers = itertools.count()


class Disagreement(ValueError):
    """Something differs between the processes that must be the same."""


def agree(what: str, value: Any, *, remedy: str) -> None:
    """All processes come here with the same `value`, or fail; a process alone always agrees.

    value: what JSON can hold. Dictionaries are compared by key; of lists it is told what one has
    and another lacks.

    Raises:
      Disagreement: on all of them, with the same message: who has what, and the remedy.
    """
    client = distributed.global_state.client
    if jax.process_count() == 1 or client is None:
        return
    key = f"dreambooth_jax/said/{next(_numbers)}"
    client.key_value_set(f"{key}/{jax.process_index()}", json.dumps([what, value]))
    said = [
        json.loads(client.blocking_key_value_get(f"{key}/{i}", 1000 * _LONG))
        for i in range(jax.process_count())
    ]
    if any(each[0] != what for each in said):  # one of them is elsewhere in the program
        what, said = "the next parts of the run", [[None, each[0]] for each in said]
    hosts = client.key_value_dir_get("dreambooth_jax/host/")
    names = {int(path.rpartition("/")[2]): host for path, host in hosts}
    told = differences({names.get(i, f"process {i}"): one for i, (_, one) in enumerate(said)})
    if told:
        lines = "".join(f"\n  {line}" for line in told)
        raise Disagreement(f"{what} are not the same on all hosts:{lines}\n{remedy}")


def meet(moment: str) -> None:
    """Waits for all processes, and for the files that each wrote; one alone returns at once.

    moment: the same on all of them, and told by the error of jax when one is elsewhere.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(moment)


def differences(values: Mapping[str, Any], key: str = "") -> list[str]:
    """A line for all that differs between `values`, which are by the name of who has them."""
    every = [*values.values()]
    if all(value == every[0] for value in every):
        return []
    if all(isinstance(value, dict) for value in every):
        inner = {name: None for value in every for name in value}
        return [
            line
            for name in inner
            for line in differences(
                {who: value.get(name) for who, value in values.items()}, f"{key}{name}: "
            )
        ]
    if all(isinstance(value, list) for value in every):
        union = list(dict.fromkeys(x for value in every for x in map(str, value)))
        lacking = {who: [x for x in union if x not in map(str, own)] for who, own in values.items()}
        if any(lacking.values()):
            return [f"{key}{who} lacks {', '.join(x)}" for who, x in lacking.items() if x]
    return [key + ", ".join(f"{who} has {value!r}" for who, value in values.items())]
