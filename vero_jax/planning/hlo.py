"""Reading a compiled program's text: how many bytes its collectives bring to each device."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "tf32": 32, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"\b(pred|bf16|tf32|c64|c128|[suf]\d+(?:e\dm\d\w*)?)\[([\d,]*)\]")
_HEAD = re.compile(r"^\s*(?:ENTRY\s+)?%?([\w.\-]+)\s*(?:\([^{]*)?\s*(?:->.*)?\{\s*$")
_OPERATION = re.compile(r"^\s*(?:ROOT\s+)?%?([\w.\-]+)\s*=\s*(.*?)\s([\w\-]+)\((.*)$")
_CALLED = re.compile(
    r"\b(?:body|to_apply|calls|condition|true_computation|false_computation)=%?([\w.\-]+)|"
    r"\bbranch_computations=\{([^}]*)\}|\bcalled_computations=\{([^}]*)\}"
)
_TRIPS = re.compile(r'known_trip_count["\\]*:\s*\{["\\]*n["\\]*:\s*["\\]*(\d+)')


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Collectives of one program."""

    bytes_by_kind: Mapping[str, float]
    """That arrive at each device; loops count as often as they turn."""
    bytes_in_loops: float
    """Those of them that collectives inside loops bring."""
    unknown_loops: bool
    """Whether one stands in a loop whose turns only the data decide; such a loop is counted once."""

    @property
    def bytes(self) -> float:
        return sum(self.bytes_by_kind.values())


def collective_traffic(text: str) -> Traffic:
    """Of a compiled module (`compiled.as_text()`), by kind.

    A device receives of an all-gather all but its own part, of a reduce-scatter and an all-to-all likewise, of an
    all-reduce both (a ring's two rounds), and of a permutation everything.
    """
    computations, entry = _computations(text)
    totals: defaultdict[str, float] = defaultdict(float)
    looped, unknown = 0.0, False

    def visit(name: str, times: float, in_loop: bool, open_loop: bool) -> None:
        nonlocal looped, unknown
        for kind, size, called, trips in _operations(computations.get(name, [])):
            if size:
                totals[kind] += size * times
                looped += size * times * in_loop
                unknown = unknown or open_loop
            if kind == "while" and trips is None:
                trips = next(filter(None, (_bound(computations.get(other, [])) for other in called)), None)
            for other in called:
                # TPUs fuse a sum over devices with the choice of each one's part: one round of the ring.
                share = 0.5 if other.startswith("all-reduce-scatter") else 1.0
                loop = kind == "while"
                visit(other, times * share * (trips or 1), in_loop or loop, open_loop or (loop and trips is None))

    visit(entry, 1.0, False, False)
    return Traffic(dict(totals), looped, unknown)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            head = _HEAD.match(line)
            if head and not line.lstrip().startswith("HloModule"):
                current = head[1]
                found[current] = []
                entry = current if line.lstrip().startswith("ENTRY") else entry
        elif line.strip() == "}":
            current = None
        else:
            found[current].append(line)
    return found, entry


def _operations(lines: list[str]) -> Iterator[tuple[str, float, list[str], int | None]]:
    """(kind, bytes received of a collective or 0, computations that it calls, turns of a loop if known)."""
    for line in lines:
        match = _OPERATION.match(line)
        if not match:
            continue
        _, shape, name, rest = match.groups()
        kind = name.removesuffix("-start")
        called = [part.strip().lstrip("%") for found in _CALLED.findall(rest) for part in ",".join(found).split(",")]
        called = [part for part in called if part]
        trips = _TRIPS.search(rest)
        size = 0.0
        if kind in COLLECTIVES and not name.endswith("-done"):
            size = _received(kind, shape, rest, started=name.endswith("-start"))
            called = []  # the sum of a reduction
        yield kind, size, called, int(trips[1]) if trips else None


def _bound(lines: list[str]) -> int | None:
    """Turns of a loop from its condition, if that is "the counter is less than a constant": so TPU programs write the
    loop of a scan, which counts from 0 by 1."""
    for line in lines:
        if compared := re.match(r"^\s*ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", line):
            constant = re.compile(rf"^\s*%?{re.escape(compared[1])} = s32\[\]\S* constant\((\d+)\)")
            return next((int(found[1]) for found in map(constant.match, lines) if found), None)
    return None


def _received(kind: str, shape: str, rest: str, *, started: bool) -> float:
    parts = [_size(*part) for part in _SHAPE.findall(shape)]
    if not parts:
        return 0.0
    group = _group(rest)
    # What has been started carries its operands beside its results.
    result = (
        (max(parts) if kind == "all-gather" else min(parts) if kind == "reduce-scatter" else parts[-1])
        if (started and kind != "all-reduce")
        else sum(parts)
    )
    share = (group - 1) / group
    return {
        "all-gather": result * share,
        "all-reduce": 2 * result * share,
        "reduce-scatter": result * (group - 1),
        "all-to-all": result * share,
        "ragged-all-to-all": result * share,
        "collective-permute": result,
    }[kind]


def _group(rest: str) -> int:
    """Devices that take part together."""
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", rest):
        return max(int(found[2]), 1)
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", rest):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        # An axis, or a part of one: 'x':(1)2 are two along it.
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    return 2


def _size(kind: str, dims: str) -> float:
    bits = _BITS.get(kind) or int(re.sub(r"\D.*", "", kind[1:]))
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits / 8
