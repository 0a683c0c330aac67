"""What a compiled program moves: read from XLA's text, with loops counted as often as they run.

XLA's own `cost_analysis` counts the body of a loop once. Here the program is walked from its entry:
a `while` multiplies by its trip count, which its backend config states or its condition compares
with. Three things are added up on the way, for one chip:

- collectives: kind, how often, bytes that have to leave or enter the chip;
- bytes between chip and memory: what each operation outside fusions reads and writes. What the
  program keeps in on-chip memory (layouts with `S(1)`) is left out; of an operand that is only
  sliced the slice is counted, of an update in place the update;
- what sorting takes of the vector unit: a TPU sorts by a bitonic network, whose passes compare
  all elements. On a GPU, where other ways are faster, it is a rough estimate.

The bytes are a bound from above on some chips: caches of a GPU are not in the text.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from typing import Any

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_TOP_K = re.compile(r'custom_call_target="[^"]*TopK"')
# Operations that move nothing themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while",
    "conditional", "call", "partition-id", "replica-id", "optimization-barrier", "domain", "iota",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Op:
    """One line of a computation: `%name = shape kind(operands), attributes`."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    attributes: str
    text: str  # between the brackets behind the kind
    root: bool


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind.

    Attributes:
        kind: one of `KINDS`.
        count: how often a chip takes part.
        bytes: that a chip receives, or sends, in all of them.
        per_iteration: whether some stand in a loop of unknown length, counted once.
    """

    kind: str
    count: int
    bytes: float
    per_iteration: bool = False


def bytes_of(shape: str, *, hbm_only: bool = False) -> int:
    """Bytes of a shape such as 'bf16[8,128]{1,0}' or a tuple of them."""
    total = 0
    for dtype, dims, layout in _ARRAY.findall(shape):
        if hbm_only and layout and re.search(r"S\([1-9]", layout):
            continue
        count = math.prod(int(d) for d in dims.split(",") if d)
        total += count * _bits(dtype) // 8
    return total


@functools.cache
def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


def _closing(text: str, start: int) -> int:
    """The place behind the bracket that closes the one at `start`."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if depth == 0:
            return at + 1
    return len(text)


def _op(line: str) -> Op | None:
    found = _LINE.match(line)
    if not found:
        return None
    root, name, rest = found.groups()
    end = _closing(rest, 0) if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    close = _closing(rest, opening)
    inside = rest[opening + 1 : close - 1]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Op(name, shape, rest[:opening], operands, rest[close:], inside, bool(root))


class Program:
    """A compiled program's text, taken apart."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Op]] = {}
        self.entry, current = "", None
        for line in text.splitlines():
            if header := _HEADER.match(line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and (op := _op(line)):
                current[op.name] = op

    @property
    def loops(self) -> bool:
        """Whether there are any."""
        return any(op.kind == "while" for ops in self.computations.values() for op in ops.values())

    def trips(self, op: Op) -> int | None:
        """How often the body of a `while` runs; None where the program does not say."""
        if known := re.search(r'known_trip_count[^}]*?"?n"?\s*:\s*"?(\d+)', op.attributes):
            return int(known[1])
        condition = self.computations.get(_called(op, "condition"), {})
        constants = {
            o.name: int(o.text)
            for o in condition.values()
            if o.kind == "constant" and re.fullmatch(r"-?\d+", o.text)
        }
        root = next((o for o in condition.values() if o.root), None)
        if root is None or len(constants) != 1 or root.kind not in ("compare", "fusion"):
            return None
        if root.kind == "compare" and "direction=LT" not in root.attributes:
            return None
        return next(iter(constants.values()))

    def walk(self) -> Iterator[tuple[str, int, bool, bool]]:
        """(computation, how often it runs, whether that is certain, whether it is in a fusion)."""
        waiting = [(self.entry, 1, True, False)]
        while waiting:
            name, times, certain, fused = waiting.pop()
            yield name, times, certain, fused
            for op in self.computations.get(name, {}).values():
                if op.kind == "while":
                    trips = self.trips(op)
                    often, sure = times * (trips or 1), certain and trips is not None
                    for key in ("body", "condition"):
                        waiting.append((_called(op, key), often, sure, fused))
                elif op.kind in ("call", "conditional", "async-start"):
                    inner = fused or op.kind == "async-start"
                    waiting += [(n, times, certain, inner) for n in _callees(op)]
                elif op.kind == "fusion":
                    waiting += [(n, times, certain, True) for n in _callees(op)]

    def collectives(self, chips: int) -> list[Collective]:
        """What a chip exchanges with others in one run, by kind.

        A TPU's program starts a collective in one fusion, continues it in others, even in those of
        a loop, and ends it in a last one. It appears in all of them, and counts as often as the one
        that runs least.

        Args:
            chips: all of the program, where a collective names no groups.
        """
        runs: dict[Any, tuple[int, float, str, bool]] = {}
        for name, times, certain, fused in self.walk():
            for op in self.computations.get(name, {}).values():
                kind = op.kind.removesuffix("-start")
                if kind not in KINDS:
                    continue
                key: Any = (name, op.name, len(runs))
                if fused and (channel := re.search(r"channel_id=(\d+)", op.attributes)):
                    # A channel may serve several collectives; these differ in their source.
                    source = re.search(r"metadata=\{[^}]*\}", op.attributes)
                    key = (kind, channel[1], source[0] if source else "")
                run = (times, times * self._exchanged(op, kind, name, chips), kind, certain)
                runs[key] = min(run, runs.get(key, run))
        found: dict[str, Collective] = {}
        for times, moved, kind, certain in runs.values():
            old = found.get(kind, Collective(kind, 0, 0.0))
            found[kind] = Collective(
                kind, old.count + times, old.bytes + moved, old.per_iteration or not certain
            )
        return sorted(found.values(), key=lambda c: -c.bytes)

    def _exchanged(self, op: Op, kind: str, computation: str, chips: int) -> float:
        ops = self.computations[computation]
        given = sum(bytes_of(ops[o].shape) for o in op.operands if o in ops)
        group = _group(op.attributes, chips)
        share = (group - 1) / group
        if kind == "all-gather":
            return given * (group - 1)
        if kind == "all-reduce":
            return 2 * given * share
        return given if kind == "collective-permute" else given * share

    def hbm_bytes(self) -> tuple[float, bool]:
        """(bytes between a chip and its memory in one run, whether all loops' lengths are known)"""
        total, sure = 0.0, True
        for name, times, certain, fused in self.walk():
            if not fused:
                total += times * self._moved_by(name)
                sure = sure and certain
        return total, sure

    def sorting(self) -> float:
        """Operations on single elements that all sorts and selections take in one run."""
        total = 0.0
        for name, times, _, _ in self.walk():
            ops = self.computations.get(name, {})
            total += times * sum(_sorting(op, ops) for op in ops.values())
        return total

    def _moved_by(self, computation: str) -> int:
        ops = self.computations.get(computation, {})
        return sum(self._moved(op, ops) for op in ops.values())

    def _moved(self, op: Op, ops: dict[str, Op]) -> int:
        kind = op.kind
        if kind in _FREE or kind.endswith(("-done", "-update")):
            return 0

        def size(name: str) -> int:
            return bytes_of(ops[name].shape, hbm_only=True) if name in ops else 0

        out = bytes_of(op.shape, hbm_only=True)
        if kind.endswith("-start"):  # its shape repeats the operands
            given = sum(map(size, op.operands))
            return max(out, given)
        if kind in ("dynamic-slice", "slice", "gather"):
            return 2 * out
        if kind == "dynamic-update-slice":
            return 2 * size(op.operands[1])
        if kind == "custom-call" and "AllocateBuffer" in op.attributes:
            return 0
        if kind == "fusion":
            return self._of_fusion(op, ops)
        return out + sum(map(size, op.operands))

    def _of_fusion(self, op: Op, ops: dict[str, Op]) -> int:
        """Bytes a fusion reads and writes, slices and updates in place taken as such."""
        total = 0
        for place, name in enumerate(op.operands):
            full = bytes_of(ops[name].shape, hbm_only=True) if name in ops else 0
            total += min(full, self._read(op, place)) if full else 0
        inner = self._inside(op)
        root = next((o for o in inner.values() if o.root), None)
        if root is None:
            return total + bytes_of(op.shape, hbm_only=True)
        return total + self._written(op, root, inner)

    def _inside(self, fusion: Op) -> dict[str, Op]:
        return self.computations.get(next(iter(_callees(fusion)), ""), {})

    def _read(self, fusion: Op, place: int) -> float:
        """Bytes that are read of a fusion's operand, if less than all of it; else infinity."""
        total, passed_on = self._used(fusion, place)
        return math.inf if passed_on else total

    def _used(self, fusion: Op, place: int) -> tuple[float, bool]:
        """The same, and whether the fusion's result is the operand itself, in another shape."""
        inner = self._inside(fusion)
        parameters = (o for o in inner.values() if o.kind == "parameter" and o.text == str(place))
        waiting, total, passed_on = [o.name for o in parameters], 0.0, False
        while waiting:
            name = waiting.pop()
            passed_on = passed_on or inner[name].root
            for op in inner.values():
                if name not in op.operands:
                    continue
                first = op.operands[0] == name
                if op.kind in ("bitcast", "reshape"):
                    waiting.append(op.name)
                elif op.kind in ("dynamic-slice", "slice", "gather") and first:
                    total += bytes_of(op.shape)
                elif op.kind == "fusion":  # one within another
                    read, goes_on = self._used(op, op.operands.index(name))
                    total += read
                    waiting += [op.name] * goes_on
                elif not (op.kind == "dynamic-update-slice" and first):  # which is in place
                    return math.inf, False
        return total, passed_on

    def _written(self, op: Op, root: Op, inner: dict[str, Op]) -> int:
        full = bytes_of(op.shape, hbm_only=True)
        roots = [inner[o] for o in root.operands if o in inner] if root.kind == "tuple" else [root]
        for o in roots:
            while o.kind in ("bitcast", "copy", "convert") and o.operands[0] in inner:
                o = inner[o.operands[0]]
            if o.kind == "dynamic-update-slice" and full:
                update = bytes_of(inner[o.operands[1]].shape) if o.operands[1] in inner else 0
                full -= max(0, bytes_of(o.shape) - update)
        return max(0, full)


def _sorting(op: Op, ops: dict[str, Op]) -> float:
    """A comparison for every element and pass, and a move and a choice for each array."""
    if op.kind == "sort":
        shapes = _ARRAY.findall(op.shape)
        dims = _dims(shapes[0])
        along = re.search(r"dimensions=\{(\d+)\}", op.attributes)
        passes = _passes(dims[int(along[1])] if along else dims[-1])
        return math.prod(dims) * passes * (1 + 2 * len(shapes))
    if op.kind == "topk" or (op.kind == "custom-call" and _TOP_K.search(op.attributes)):
        given = _ARRAY.findall(ops[op.operands[0]].shape) if op.operands[0] in ops else []
        if given:
            # Stretches of k are sorted, and then two at a time are merged into one of k.
            k = _dims(_ARRAY.findall(op.shape)[0])[-1]
            passes = _passes(k) + math.ceil(math.log2(max(2, k))) + 1
            return math.prod(_dims(given[0])) * passes * (1 + 2 * 2)
    return 0.0


def _passes(count: int) -> int:
    """Of a bitonic sort."""
    doublings = math.ceil(math.log2(max(1, count)))
    return doublings * (doublings + 1) // 2


def _dims(array: tuple[str, str, str]) -> list[int]:
    return [int(d) for d in array[1].split(",") if d] or [1]


def _called(op: Op, key: str) -> str:
    found = re.search(rf"\b{key}=%?([\w.\-]+)", op.attributes)
    return found[1] if found else ""


def _callees(op: Op) -> list[str]:
    """Computations that a call, a fusion, a conditional or an async start runs."""
    names = re.findall(r"\b(?:calls|to_apply|\w+_computation)=%?([\w.\-]+)", op.attributes)
    for listed in re.findall(r"branch_computations=\{([^}]*)\}", op.attributes):
        names += re.findall(r"%?([\w.\-]+)", listed)
    return names


def _group(attributes: str, chips: int) -> int:
    """How many chips take part in a collective, from any of the three ways XLA writes it."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        names = re.findall(r"'([^']+)'", found[2])
        return math.prod(int(sizes.get(name, 1)) for name in names) or 1
    return chips
