"""How Molmo 2 writes boxes and points (rows with `model_family` "molmo2")."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from vero_jax.rewards.boxes import Box
from vero_jax.rewards.literals import NotData, as_float, read_json

_TAG = re.compile(r"<(?:points|tracks)")
_COORDINATES = re.compile(r' coords="([0-9\t:;, .]+)"/?>')
_FRAME = re.compile(r"(?:^|[\t:,;])[0-9.]+ ([0-9. ]+)")
_POINT = re.compile(r"[0-9]+ ([0-9]{3,4}) ([0-9]{3,4})")


def is_molmo(extra_info: Mapping[str, Any]) -> bool:
    return str(extra_info.get("model_family", "")).strip().lower() == "molmo2"


def molmo_boxes(source: str) -> list[Box] | None:
    """Boxes of {"results": [{x_min, y_min, x_max, y_max}]}, ordered and clamped; None where the text is not that."""
    try:
        value = read_json(source.strip())
    except NotData:
        return None
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, list):
        return None
    boxes = [box for box in map(_box, results) if box is not None]
    return boxes if boxes or not results else None


def molmo_point(source: str) -> tuple[float, float] | None:
    """The first point of the first points or tracks tag that has one, clamped to 0..1000."""
    for line in source.split("\n"):
        at = _TAG.search(line)
        while at:
            coordinates = _COORDINATES.search(line, at.end())
            if coordinates is None:
                break
            for frame in _FRAME.finditer(coordinates.group(1)):
                point = _POINT.search(frame.group(1))
                if point:
                    return float(min(int(point[1]), 1000)), float(min(int(point[2]), 1000))
            at = _TAG.search(line, coordinates.end())
    return None


def _box(item: Any) -> Box | None:
    if not isinstance(item, Mapping):
        return None
    values = [as_float(item.get(name)) for name in ("x_min", "y_min", "x_max", "y_max")]
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    left, top, right, bottom = (float(min(max(round(value or 0.0), 0), 1000)) for value in values)
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)
