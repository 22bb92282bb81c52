"""What devices tell each other in a compiled program, read from its text."""

import re
from typing import Any, NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_LINE = re.compile(rf" = (.+?) ({'|'.join(KINDS)})(?:-start)?\(.*?(?:op_name=\"([^\"]*)\"|$)")
_ARRAY = re.compile(r"(pred|bf16|[fsu]\d+)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One of them: its kind, the shapes it gives on each device, and the operation it serves."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    operation: str

    @property
    def numbers(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.shapes)


def of(program: Any) -> list[Collective]:
    """All of a compiled program's, in the order of its text."""
    found = []
    for line in program.as_text().splitlines():
        if match := _LINE.search(line):
            arrays = _ARRAY.findall(match[1])
            shapes = tuple(tuple(map(int, filter(None, sizes.split(",")))) for _, sizes in arrays)
            found.append(Collective(match[2], shapes, match[3] or ""))
    return found
