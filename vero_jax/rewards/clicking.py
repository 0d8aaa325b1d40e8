"""A point inside a box: reward type clicking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vero_jax.rewards.boxes import Frame, point_of, predicted_objects, truth_boxes
from vero_jax.rewards.molmo import is_molmo, molmo_point


def clicking(
    source: str, truth: Any, extra_info: Mapping[str, Any], *, default_normalized: bool, strict_reference: bool
) -> float:
    """1 if the first predicted point lies in the first truth box, its border included, else 0."""
    frame = Frame.of(extra_info, default_normalized=default_normalized, strict_reference=strict_reference)
    if frame.size is None:
        return 0.0
    point = molmo_point(source) if is_molmo(extra_info) else None
    if point is None:
        items = predicted_objects(source, strict_reference=strict_reference)
        point = point_of(items[0]) if items else None
    truths = frame.truths(truth_boxes(truth, strict_reference=strict_reference))
    if point is None or not truths:
        return 0.0
    x, y = point
    width, height = frame.size
    if not frame.normalized and not (0 <= x <= width and 0 <= y <= height):
        return 0.0
    left, top, right, bottom = truths[0]
    return float(left <= x <= right and top <= y <= bottom)
