"""Boxes and points in answers: where their numbers stand, what they mean, and how they meet the truth."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vero_jax.rewards.grounding import pairwise_iou
from vero_jax.rewards.literals import NotData, as_float, read_json

_FENCE = "```"
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
_BOX_KEY = re.compile(r"bbox_2d[\"']?\s*:\s*\[([^\[\]]{0,400})\]")
_POINT_KEY = re.compile(r"point_2d[\"']?\s*:\s*\[([^\[\]]{0,400})\]")
_COORDINATE_KEY = re.compile(r"coordinate[\"']?\s*:\s*\[([^\[\]]{0,400})\]")
_PAIR = re.compile(r"\[\s*([-+\d.eE]{1,40})\s*,\s*([-+\d.eE]{1,40})\s*\]")
_MAX_DEPTH = 50
_TAIL = 20_000
"""Characters from the end in which loose numbers are looked for."""


class Coordinates(enum.Enum):
    """What the numbers of an answer count."""

    PIXELS = "pixels"
    THOUSANDTHS = "thousandths"
    """Of the image's width and height: 0 to 1000."""
    FRACTIONS = "fractions"
    """Of the image's width and height: 0 to 1."""

    def unit(self, size: tuple[float, float]) -> tuple[float, float]:
        """How many of these make the whole width and height of an image of (width, height) pixels."""
        return {"pixels": size, "thousandths": (1000.0, 1000.0), "fractions": (1.0, 1.0)}[self.value]


def box_iou(text: str, truth: Sequence[float], size: tuple[float, float], coordinates: Coordinates) -> float:
    """Overlap of the answer's box with the true one, 0..1; 0 without a box.

    Args:
      text: the answer.
      truth: left, top, right, bottom in pixels, in any order of corners.
      size: (width, height) of the image in pixels.
      coordinates: of the answer. Its box is cut at the image's edges.
    """
    found = read_numbers(text, "bbox_2d", _BOX_KEY, 4)
    if found is None or not all(math.isfinite(value) for value in (*found, *truth)):
        return 0.0
    width, height = size
    unit = coordinates.unit(size)
    if not all(unit):
        return 0.0
    scale = (width / unit[0], height / unit[1]) * 2
    box = [value * factor for value, factor in zip(found, scale, strict=True)]
    box = [min(max(value, 0.0), limit) for value, limit in zip(box, (width, height) * 2, strict=True)]
    return float(pairwise_iou(np.array([_sorted(box)]), np.array([_sorted(truth)]))[0, 0])


def point_in_box(
    text: str,
    truth: Sequence[float],
    truth_coordinates: Coordinates,
    size: tuple[float, float],
    coordinates: Coordinates,
    *,
    tool: bool = False,
) -> tuple[bool, tuple[float, float]]:
    """Does the answer's point lie in the true box (edges count), and which point was read.

    Args:
      text: the answer; without any point it is (0, 0), as in the reference.
      truth: left, top, right, bottom.
      truth_coordinates: of the truth.
      size: (width, height) of the image in pixels.
      coordinates: of the answer. The point is moved onto the image.
      tool: the answer calls a tool; the last "coordinate" of its last call counts.

    Returns:
      whether it is inside, and the point: as a fraction of the image where the truth is one, else in the answer's
      coordinates.
    """  # fmt: skip
    found = read_tool_point(text) if tool else read_numbers(text, "point_2d", _POINT_KEY, 2)
    x, y = found if found is not None and all(map(math.isfinite, found)) else (0.0, 0.0)
    unit = coordinates.unit(size)
    aim = (1.0, 1.0) if truth_coordinates is Coordinates.FRACTIONS else unit
    if not all(unit) or not all(size):
        return False, (0.0, 0.0)
    x, y = (min(max(v / u * a, 0.0), a) for v, u, a in zip((x, y), unit, aim, strict=True))
    truth_unit = truth_coordinates.unit(size)
    box = [value / u * a for value, u, a in zip(truth, truth_unit * 2, aim * 2, strict=True)]
    left, top, right, bottom = box
    slack = 1e-9  # "100 of 1000 pixels" and "0.1" differ in the last bit
    inside = (
        left - slack * aim[0] <= x <= right + slack * aim[0] and top - slack * aim[1] <= y <= bottom + slack * aim[1]
    )
    return inside, (x, y)


def has_point(text: str, *, tool: bool = False) -> bool:
    """Can any point be read at all?"""
    return (read_tool_point(text) if tool else read_numbers(text, "point_2d", _POINT_KEY, 2)) is not None


def read_numbers(text: str, key: str, pattern: re.Pattern[str], count: int) -> list[float] | None:
    """The `count` numbers of an answer, or None.

    Under `key` in JSON (all of the text, then its last fenced block), after `key:`, in the last "[x, y]" where two are
    wanted, else the last ones in the text.
    """
    for source in (text, _last_fence(text)):
        found = _in_json(source, key, count) if source else None
        if found is not None:
            return found
    for match in reversed(list(pattern.finditer(text))):
        numbers = [float(number) for number in _NUMBER.findall(match.group(1))]
        if len(numbers) >= count:
            return numbers[:count]
    tail = text[-_TAIL:]
    if count == 2:
        pair = _last_pair(tail)
        if pair is not None:
            return pair
    numbers = [float(number) for number in _NUMBER.findall(tail.replace(key, " "))]
    return numbers[-count:] if len(numbers) >= count else None


def read_tool_point(text: str) -> list[float] | None:
    """The point of the last tool call: its last "coordinate", else the last pair, else the last two numbers."""
    start = text.rfind("<tool_call>")
    call = text[start:] if start >= 0 else text
    return read_numbers(call, "coordinate", _COORDINATE_KEY, 2)


def _in_json(text: str, key: str, count: int) -> list[float] | None:
    """Numbers under the first `key` of a JSON text, in reading order."""
    if key not in text:
        return None
    try:
        value = read_json(text.strip())
    except NotData:
        return None
    waiting: list[tuple[Any, int]] = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, dict) and isinstance(item.get(key), list):
            numbers = [as_float(number) for number in item[key][:count]]
            if len(numbers) == count and None not in numbers:
                return [number for number in numbers if number is not None]
        if depth < _MAX_DEPTH and isinstance(item, dict | list):
            inside = list(item.values()) if isinstance(item, dict) else item
            waiting += [(other, depth + 1) for other in reversed(inside)]
    return None


def _last_fence(text: str) -> str:
    """The content of the last fenced block, without the language's name."""
    end = text.rfind(_FENCE)
    start = text.rfind(_FENCE, 0, end) if end > 0 else -1
    if start < 0:
        return ""
    return text[start + len(_FENCE) : end].strip().removeprefix("json").strip()


def _last_pair(text: str) -> list[float] | None:
    for match in reversed(list(_PAIR.finditer(text))):
        numbers = [as_float(number) for number in match.groups()]
        if None not in numbers:
            return [number for number in numbers if number is not None]
    return None


def _sorted(box: Sequence[float]) -> list[float]:
    left, top, right, bottom = box
    return [min(left, right), min(top, bottom), max(left, right), max(top, bottom)]
