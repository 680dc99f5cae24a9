"""Reads compiled programs: every instruction with the number of times a step executes it, collectives with their bytes.

XLA's own cost figures count the body of a loop once. Here the text of the optimised program is walked from its entry,
and what a loop's body contains counts as often as the loop turns.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mimo_jax.cli import UserError

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16, "c64": 64, "c128": 128}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"^([a-z][\w\-]*)\(")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
_TRIPS = re.compile(r'known_trip_count"?:\s*\{\s*"?n"?:\s*"?(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
# What the compiler writes where it has no estimate.
_UNKNOWN_CYCLES = 2**62


class Instruction(NamedTuple):
    """One line of a program: ``%name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def cycles(self) -> int:
        """The TPU compiler's estimate, 0 without one."""
        found = _CYCLES.search(self.rest)
        cycles = int(found.group(1)) if found else 0
        return 0 if cycles >= _UNKNOWN_CYCLES else cycles

    @property
    def op_name(self) -> str:
        """Where in the source's call tree the instruction comes from, "" if unknown."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        return re.findall(r"%([\w.\-]+)", _balanced(self.rest))


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of the program.

    Attributes:
      kind: one of `KINDS`.
      bytes: of the whole array on one device: what an all-gather gives, a reduce-scatter takes, an all-reduce sums.
      groups: [groups, devices in each], positions in the mesh's order; None where the text does not say.
      count: executions a step.
      op_name: where it comes from.
      in_background: whether the compiler runs it beside other work.
    """

    kind: str
    bytes: int
    groups: np.ndarray | None
    count: int
    op_name: str
    in_background: bool

    @property
    def devices(self) -> int:
        """Devices of a group."""
        return 1 if self.groups is None else self.groups.shape[1]

    @property
    def sent_bytes(self) -> float:
        """Bytes that one device sends in one execution on a ring."""
        share = (self.devices - 1) / self.devices if self.devices > 1 else 1.0
        return self.bytes * share * (2.0 if self.kind == "all-reduce" else 1.0)


def shape_bytes(shape: str) -> int:
    """Bytes of a shape as HLO writes it, such as ``bf16[8,128]{1,0}``, or of a tuple of them."""
    total = 0
    for dtype, dimensions in _SHAPE.findall(shape):
        if dtype in ("token", "opaque"):
            continue
        digits = re.search(r"\d+", dtype)
        bits = _BITS.get(dtype) or (int(digits.group()) if digits else 0)
        total += bits * int(np.prod([int(size) for size in dimensions.split(",") if size], dtype=np.int64)) // 8
    return total


class Program:
    """The text of an optimised program (`jax.stages.Compiled.as_text()`)."""

    def __init__(self, text: str):
        self._computations, self._entry = _parse(text)
        self._shapes = {line.name: line.shape for lines in self._computations.values() for line in lines}

    def executed(self) -> Iterator[tuple[Instruction, int, bool]]:
        """(instruction, executions a step, whether inside a fusion or an asynchronous wrapper) from the entry down."""
        return self._walk(self._entry, 1, False)

    def _walk(self, computation: str, times: int, inside: bool) -> Iterator[tuple[Instruction, int, bool]]:
        for line in self._computations[computation]:
            yield line, times, inside
            if line.opcode == "while":
                called = dict(re.findall(r"\b(condition|body)=%?([\w.\-]+)", line.rest))
                yield from self._walk(called["body"], times * self._trips(line, called["condition"]), inside)
            elif line.opcode == "conditional":
                for several, one in _BRANCHES.findall(line.rest):
                    for branch in re.findall(r"[\w.\-]+", several or one):
                        yield from self._walk(branch, times, inside)
            elif line.opcode in ("fusion", "call", "async-start", "call-start", "custom-call"):
                wraps = inside or line.opcode in ("fusion", "async-start", "call-start")
                for name in _CALLED.findall(line.rest):
                    if name in self._computations:
                        yield from self._walk(name, times, wraps)

    def _trips(self, loop: Instruction, condition: str) -> int:
        """Turns of a loop: told by the compiler, or the bound that its counter is compared with."""
        told = _TRIPS.search(loop.rest)
        if told:
            return int(told.group(1))
        bounds = []
        for line in self._computations[condition]:
            found = re.match(r"^(\d+)\)", line.rest) if line.opcode == "constant" else None
            if found:
                bounds.append(int(found.group(1)))
        # Counters begin at 0 and go up by one in what jax.lax.scan and the compiler's own loops become.
        return max(bounds, default=1)

    def collectives(self) -> list[Collective]:
        """All collectives that a step executes."""
        found = []
        for line, times, inside in self.executed():
            kind = next((kind for kind in KINDS if line.opcode in (kind, f"{kind}-start")), None)
            if kind is None:
                continue
            groups = _groups(line.rest)
            size = shape_bytes(line.shape)
            if line.opcode.endswith("-start") and line.shape.startswith("("):
                size = self._result_bytes(line, kind)
            elif kind == "reduce-scatter":
                size = sum(shape_bytes(self._shapes.get(name, "")) for name in line.operands)
            # The TPU compiler writes a reduce-scatter as a fusion whose all-reduce is followed by a slice.
            scattered = kind == "all-reduce" and inside and self._is_scatter(line)
            found.append(
                Collective(
                    kind="reduce-scatter" if scattered else kind,
                    bytes=size,
                    groups=groups,
                    count=times,
                    op_name=line.op_name,
                    in_background=inside and not scattered or line.opcode.endswith("-start"),
                )
            )
        return found

    def _result_bytes(self, line: Instruction, kind: str) -> int:
        operands = sum(shape_bytes(self._shapes.get(name, "")) for name in line.operands)
        if kind == "all-gather":
            # (operands, results[, contexts]): the results are the operands times the group.
            groups = _groups(line.rest)
            return operands * (1 if groups is None else groups.shape[1])
        return operands

    def _is_scatter(self, line: Instruction) -> bool:
        return any(
            name.startswith("all-reduce-scatter") and any(other is line for other in lines)
            for name, lines in self._computations.items()
        )

    def compute_cycles(self) -> float:
        """Cycles of a step by the TPU compiler's estimates; kernels and collectives carry none."""
        return float(sum(line.cycles * times for line, times, inside in self.executed() if not inside))


def _parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if line.endswith("{") and not line.startswith(("HloModule", " ")):
                name = line.removeprefix("ENTRY ").lstrip("%").split(" ", 1)[0].split("(", 1)[0]
                current = computations.setdefault(name, [])
                entry = name if line.startswith("ENTRY ") else entry
        elif line == "}" or line.startswith("}, execution_thread="):
            current = None
        elif found := _INSTRUCTION.match(line):
            shape, rest = _split_shape(found.group(2))
            opcode = _OPCODE.match(rest)
            if opcode:
                current.append(Instruction(found.group(1), shape, opcode.group(1), rest[opcode.end() :]))
        elif current:  # attributes of a kernel may go on over several lines
            current[-1] = current[-1]._replace(rest=f"{current[-1].rest} {line}")
    if not entry:
        raise UserError("the compiled program's text has no ENTRY computation: another version of XLA writes it")
    return computations, entry


def _split_shape(text: str) -> tuple[str, str]:
    """A shape and what follows; a tuple's parentheses may nest."""
    if text.startswith("("):
        end = len(_balanced(text[1:])) + 2
        return text[:end], text[end:].lstrip()
    shape, _, rest = text.partition(" ")
    return shape, rest


def _balanced(text: str) -> str:
    """`text` up to the parenthesis that closes one opened before it."""
    depth = 1
    for index, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[:index]
    return text


def _groups(attributes: str) -> np.ndarray | None:
    """Device groups [groups, devices] of a collective, in any of the three ways HLO writes them."""
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", attributes)
    if pairs:
        return np.array([[int(x) for x in pair] for pair in re.findall(r"(\d+),(\d+)", pairs.group(1))])
    listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
    if listed:
        return np.array([[int(x) for x in group.split(",")] for group in re.findall(r"\{([0-9,]+)\}", listed.group(1))])
    iota = re.search(r"replica_groups=\[([0-9,]+)\]<=(\[[0-9,]+\](?:T\([0-9,]+\))?)", attributes)
    if iota:
        return _iota(iota.group(2)).reshape(_integers(iota.group(1)))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((.*?\))\))? ?\{([^}]*)\}", attributes)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        names, shape = list(sizes), [int(size) for size in sizes.values()]
        devices = _iota(mesh.group(2)) if mesh.group(2) else np.arange(int(np.prod(shape)))
        chosen = [names.index(name) for name in re.findall(r"'(\w+)'", mesh.group(3))]
        others = [axis for axis in range(len(names)) if axis not in chosen]
        size = int(np.prod([shape[axis] for axis in chosen]))
        return devices.reshape(shape).transpose([*others, *chosen]).reshape(-1, size)
    return None


def _iota(text: str) -> np.ndarray:
    """Device numbers that ``[4,64]T(1,0)`` stands for."""
    found = re.match(r"\[([0-9,]+)\](?:T\(([0-9,]+)\))?", text)
    if found is None:
        raise UserError(f"device groups {text!r} cannot be read: another version of XLA wrote them")
    shape = _integers(found.group(1))
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    return (numbers.transpose(_integers(found.group(2))) if found.group(2) else numbers).reshape(-1)


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]
