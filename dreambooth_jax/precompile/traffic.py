"""Bytes that a compiled program moves, added up from its text.

Between memory and processor, for compilers that do not tell, XLA's for GPUs: each kernel reads its
operands and writes its results once, a slice of an operand counts as the slice, what is updated in
place as the update, a loop as all its turns. What a kernel reads twice because its caches are small
is not seen. Between devices: what each sends when a group of them passes parts on in a ring.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NAME = re.compile(r"%([\w.\-]+)")
# They name or join arrays, or wait for them, and move nothing.
_FREE = (
    "parameter constant tuple get-tuple-element bitcast after-all partition-id replica-id"
    " opt-barrier optimization-barrier domain add-dependency"
).split()
_PARTS = ("dynamic-slice", "slice", "gather")
# Devices that exchange: by number, as groups × members, or by axes of a mesh, whole or in part.
_LISTED = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_OF_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?:=(\d+)|:\(\d+\)(\d+))?")


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str  # of an array, or of a tuple of them
    operation: str
    operands: tuple[str, ...]
    rest: str  # computations that it calls, settings
    root: bool

    def called(self, key: str) -> list[str]:
        """Computations behind `calls=%a` or `branch_computations={%a, %b}`."""
        found = re.search(rf"\b{key}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return [] if found is None else _NAME.findall(found[1])


def moved(text: str) -> float:
    """Bytes on each device of a program, `compiled.as_text()`."""
    return _Memory(text).total()


def between(text: str) -> float:
    """Bytes that each device of the program sends to others."""
    return _Links(text).total()


class _Program:
    """The sum of what its instructions cost, all turns of its loops."""

    def __init__(self, text: str):
        self.entry = ""
        self.computations: dict[str, dict[str, _Instruction]] = {}
        here: dict[str, _Instruction] = {}
        for line in text.splitlines():
            if line.endswith("{") and "->" in line and not line.startswith(" "):
                name = _NAME.findall(line)[0]
                here = self.computations[name] = {}
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif " = " in line and line.startswith(" "):
                instruction = _parse(line)
                here[instruction.name] = instruction
        self._of = functools.cache(self._computation)

    def total(self) -> float:
        return self._of(self.entry)

    def _cost(self, x: _Instruction, here: dict[str, _Instruction]) -> float:
        """The cost of an instruction that is no loop, branch or call; each count has its own."""
        raise NotImplementedError

    def _computation(self, name: str) -> float:
        here = self.computations[name]
        return sum(self._instruction(x, here) for x in here.values())

    def _instruction(self, x: _Instruction, here: dict[str, _Instruction]) -> float:
        if x.operation in _FREE or x.operation.endswith(("-done", "-update")):
            return 0.0
        if x.operation == "while":
            turns = _TURNS.search(x.rest)
            inner = sum(self._of(name) for key in ("body", "condition") for name in x.called(key))
            return inner * (int(turns[1]) if turns else 1)
        if x.operation == "conditional":
            keys = ("branch_computations", "true_computation", "false_computation")
            return max(self._of(name) for key in keys for name in x.called(key))
        if x.operation in ("call", "async-start"):
            key = "to_apply" if x.called("to_apply") else "calls"
            return sum(self._of(name) for name in x.called(key))
        return self._cost(x, here)


class _Links(_Program):
    def _cost(self, x: _Instruction, here: dict[str, _Instruction]) -> float:
        count = _members(x.rest)
        operands = sum(_bytes(here[name].shape) for name in x.operands)
        match x.operation.removesuffix("-start"):
            case "all-gather":
                return operands * (count - 1)
            case "reduce-scatter" | "all-to-all":
                return operands * (count - 1) / count
            case "all-reduce":
                return 2 * operands * (count - 1) / count
            case "collective-permute":
                return operands
        return 0.0


def _members(rest: str) -> int:
    """The number of devices that exchange something with each other."""
    if listed := _LISTED.search(rest):
        return len(listed[1].split(","))
    if counted := _COUNTED.search(rest):
        return int(counted[1])
    if of_mesh := _OF_MESH.search(rest):
        sizes = {name: int(size) for name, size, _ in _AXIS.findall(of_mesh[1])}
        own = _AXIS.findall(of_mesh[2])
        return math.prod(int(part) if part else sizes[name] for name, _, part in own)
    return 1


class _Memory(_Program):
    def _cost(self, x: _Instruction, here: dict[str, _Instruction]) -> float:
        return self._fusion(x, here) if x.operation == "fusion" else _alone(x, here)

    def _fusion(self, x: _Instruction, here: dict[str, _Instruction]) -> float:
        inside = self.computations[x.called("calls")[0]]
        (root,) = (y for y in inside.values() if y.root)
        results = [inside[name] for name in root.operands] if root.operation == "tuple" else [root]
        written, in_place = 0.0, set()
        for result in (_behind(y, inside) for y in results):
            if result.operation == "dynamic-update-slice":
                written += _bytes(inside[result.operands[1]].shape)
                in_place.add(_behind(inside[result.operands[0]], inside).name)
            else:
                written += _bytes(result.shape)
        read = 0.0
        for parameter in (y for y in inside.values() if y.operation == "parameter"):
            readers = list(_readers(parameter.name, inside))
            if parameter.name in in_place:
                readers = [y for y in readers if y.operation != "dynamic-update-slice"]
            if all(y.operation in _PARTS for y in readers):
                read += sum(_bytes(y.shape) for y in readers)
            else:
                read += _bytes(parameter.shape)
        return written + read


def _alone(x: _Instruction, here: dict[str, _Instruction]) -> float:
    """Bytes of an operation that is a kernel of its own."""
    if x.operation in _PARTS:
        return 2 * _bytes(x.shape)
    if x.operation == "dynamic-update-slice":
        return 2 * _bytes(here[x.operands[1]].shape)
    shape = x.shape
    if x.operation == "custom-call":  # room to work in is not all written
        shape = re.sub(r"\bu8\[[\d,]*\]", "", shape)
    if x.operation.endswith("-start"):  # names its operands again, before its results
        return 2 * sum(_bytes(here[name].shape) for name in x.operands)
    return _bytes(shape) + sum(_bytes(here[name].shape) for name in x.operands)


def _behind(x: _Instruction, inside: dict[str, _Instruction]) -> _Instruction:
    """The array that a chain of renaming instructions begins with."""
    while x.operation == "bitcast":
        x = inside[x.operands[0]]
    return x


def _readers(name: str, inside: dict[str, _Instruction]) -> Iterator[_Instruction]:
    for x in inside.values():
        if name in x.operands:
            if x.operation == "bitcast":
                yield from _readers(x.name, inside)
            elif x.operation in _PARTS and x.operands[0] != name:
                continue  # an index
            else:
                yield x


def _parse(line: str) -> _Instruction:
    """`  ROOT %name = f32[2]{0} add(%a, %b), metadata={}`."""
    left, _, right = line.strip().partition(" = ")
    shape, right = _split(right) if right.startswith("(") else right.split(" ", 1)
    operation, _, right = right.strip().partition("(")
    inner, rest = _split("(" + right)
    name = left.removeprefix("ROOT ").removeprefix("%")
    operands = tuple(_NAME.findall(inner)) if operation != "constant" else ()
    return _Instruction(name, shape, operation, operands, rest, left.startswith("ROOT "))


def _split(text: str) -> tuple[str, str]:
    """A text that begins with a bracket, behind the one that closes it."""
    depth = 0
    for index, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return text[: index + 1], text[index + 1 :]
    return text, ""


def _bytes(shape: str) -> float:
    """Bytes of an array or a tuple, `(f32[2,3]{1,0}, pred[])`."""
    total = 0.0
    for kind, sides in _ARRAY.findall(shape):
        bits = _BITS.search(kind)
        width = 8 if kind == "pred" else int(bits[0]) if bits else 0
        total += math.prod(int(side) for side in sides.split(",") if side) * width / 8
    return total
