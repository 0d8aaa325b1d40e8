"""Every tensor of a checkpoint accounted for: what is missing, unknown, of another shape or quantised, all by name.

Long lists are grouped: `model.layers.{0..35}.self_attn.q_norm.weight (36 tensors)`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from vero_jax.checkpoints.boxes import Box, as_type, cut, same_bits, whole
from vero_jax.checkpoints.safetensors_io import FLOATS
from vero_jax.errors import UserError

_HEAD = "lm_head.weight"
_COMPARED_AT_A_TIME = 2**22
"""Elements, when a tied head is compared with the embeddings."""


class Tensors(Protocol):
    """What is needed of a checkpoint here."""

    folder: Path

    @property
    def names(self) -> set[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def type_code(self, name: str) -> str: ...
    def read(self, name: str, view: tuple[int, ...] | None = None, box: Box | None = None) -> np.ndarray: ...


def account(checkpoint: Tensors, shapes: Mapping[str, tuple[int, ...]], tied_to: str = "") -> None:
    """Compares the names, shapes and types on disk with those that the config asks for.

    Args:
        shapes: of all tensors that must be there.
        tied_to: the token embeddings, where the head is tied to them; such a head may lie there a second time.

    Raises:
        UserError: they differ; everything that does is named in one sentence.
    """
    names = checkpoint.names
    quantised: dict[str, list[str]] = {}
    for name in names & set(shapes):
        if (code := checkpoint.type_code(name)) not in FLOATS:
            quantised.setdefault(code, []).append(name)
    if quantised:
        listed = "; ".join(f"{grouped(found)} stored as {code}" for code, found in sorted(quantised.items()))
        raise UserError(
            f"{checkpoint.folder} has {listed}; only {', '.join(FLOATS)} are supported, use a checkpoint that is not "
            "quantised"
        )
    if _HEAD in names - set(shapes) and tied_to in names:
        # Some tools write a tied head a second time. It may be left out only if it says the same.
        if not _same_tensors(checkpoint, _HEAD, tied_to):
            raise UserError(
                f"{checkpoint.folder}: {_HEAD} differs from the token embeddings, but config.json says "
                "tie_word_embeddings; set it to false there if the head is its own"
            )
        names = names - {_HEAD}
    complaints = []
    missing = set(shapes) - names
    if missing:
        complaints.append(f"lacks {grouped(missing)}")
    if unexpected := names - set(shapes):
        complaints.append(f"has {_with_nearest(unexpected, missing, set(shapes))}, which the model does not know")
    misshapen: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for name in names & set(shapes):
        if checkpoint.shape(name) != shapes[name]:
            misshapen.setdefault((checkpoint.shape(name), shapes[name]), []).append(name)
    complaints += [
        f"has {grouped(found)} of shape {list(there)}, where config.json asks for {list(asked)}"
        for (there, asked), found in sorted(misshapen.items(), key=lambda item: min(item[1]))
    ]
    if complaints:
        raise UserError(f"the checkpoint does not fit the config: {checkpoint.folder} {'; it '.join(complaints)}")


def grouped(names: Iterable[str]) -> str:
    """A list of names for a sentence; those that differ in their numbers only share an entry that counts them."""
    return ", ".join(text for text, _ in _groups(names))


def _groups(names: Iterable[str]) -> list[tuple[str, str]]:
    """(entry, pattern with `{}` for every number) per group, sorted."""
    by_pattern: dict[str, list[tuple[int, ...]]] = {}
    for name in names:
        parts = name.split(".")
        pattern = ".".join("{}" if part.isdigit() else part for part in parts)
        by_pattern.setdefault(pattern, []).append(tuple(int(part) for part in parts if part.isdigit()))
    found = []
    for pattern, numbers in by_pattern.items():
        found += [(text, pattern) for text in _entries(pattern, sorted(numbers))]
    return sorted(found)


def _entries(pattern: str, numbers: list[tuple[int, ...]]) -> list[str]:
    """One entry if the numbers are all combinations of what stands at each place; else one per first number."""
    if len(numbers) == 1:
        return [pattern.format(*numbers[0])]
    columns = [sorted(set(column)) for column in zip(*numbers, strict=True)]
    if math.prod(map(len, columns)) == len(numbers):
        shown = (str(column[0]) if len(column) == 1 else "{" + _ranges(column) + "}" for column in columns)
        return [f"{pattern.format(*shown)} ({len(numbers)} tensors)"]
    return [
        entry
        for first in columns[0]
        for entry in _entries(pattern.replace("{}", str(first), 1), [rest[1:] for rest in numbers if rest[0] == first])
    ]


def _ranges(numbers: list[int]) -> str:
    """0..3,5,7..9"""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}..{b}" for a, b in spans)


def _with_nearest(unexpected: set[str], missing: set[str], expected: set[str]) -> str:
    """The unexpected names, each group with what it may have been meant to be; a missing name if one is near."""
    candidates = [{pattern: text for text, pattern in _groups(names)} for names in (missing, expected)]
    entries = []
    for text, pattern in _groups(unexpected):
        # Patterns are few, whatever the number of names, so that this stays quick.
        found = [pattern] if pattern in candidates[1] else []
        for known in candidates:
            found = found or difflib.get_close_matches(pattern, known, n=1, cutoff=0.6)
        if found:
            text += f" (nearest expected: {candidates[0].get(found[0]) or candidates[1][found[0]]})"
        entries.append(text)
    return ", ".join(entries)


def _same_tensors(checkpoint: Tensors, one: str, other: str) -> bool:
    shape = checkpoint.shape(one)
    if shape != checkpoint.shape(other):
        return False
    for box in cut(whole(shape), _COMPARED_AT_A_TIME):
        first, second = checkpoint.read(one, shape, box), checkpoint.read(other, shape, box)
        if first.dtype != second.dtype:
            first, second = as_type(first, np.dtype(np.float64)), as_type(second, np.dtype(np.float64))
        if not same_bits(first, second):
            return False
    return True
