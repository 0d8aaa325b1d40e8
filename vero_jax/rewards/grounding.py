"""Boxes against boxes: reward type grounding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from vero_jax.rewards.boxes import Box, Frame, boxes_of, predicted_objects, truth_boxes
from vero_jax.rewards.literals import as_float
from vero_jax.rewards.molmo import is_molmo, molmo_boxes

IOU_THRESHOLD = 0.5
WEIGHTS = {"location": 1.0, "recall": 0.75, "penalty": 0.5}
_FORBIDDEN = 1e6
"""Cost of a pair below the threshold: larger than any sum of allowed ones."""


def grounding(
    source: str, truth: Any, extra_info: Mapping[str, Any], *, default_normalized: bool, strict_reference: bool
) -> float:
    """Location, recall and false alarms of the predicted boxes, mixed and clipped to [0, 1]."""
    predictions = molmo_boxes(source) if is_molmo(extra_info) else None
    if predictions is None:
        items = predicted_objects(source, strict_reference=strict_reference)
        if items is None:
            return 0.0
        predictions = boxes_of(items)
    frame = Frame.of(extra_info, default_normalized=default_normalized, strict_reference=strict_reference)
    if frame.size is None and not frame.has_image_path:
        return 0.0
    truths = frame.truths(truth_boxes(truth, strict_reference=strict_reference))
    if not truths:
        return 0.0
    threshold = as_float(extra_info.get("iou_threshold"))
    return box_score(predictions, truths, IOU_THRESHOLD if threshold is None else threshold, _weights(extra_info))


def box_score(
    predictions: Sequence[Box], truths: Sequence[Box], threshold: float, weights: Mapping[str, float]
) -> float:
    """clip(location * mean IoU of matches + recall * F1 - penalty * (false positives + false negatives) / 2, 0, 1)."""
    matched = matched_ious(predictions, truths, threshold)
    if matched is None:
        return 0.0
    hits = len(matched)
    location = sum(matched) / hits if hits else 0.0
    f1 = 2.0 * hits / (len(predictions) + len(truths))
    false_positives = (len(predictions) - hits) / len(predictions) if predictions else 0.0
    false_negatives = (len(truths) - hits) / len(truths)
    score = (
        weights["location"] * location
        + weights["recall"] * f1
        - weights["penalty"] * 0.5 * (false_positives + false_negatives)
    )
    return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0


def matched_ious(predictions: Sequence[Box], truths: Sequence[Box], threshold: float) -> list[float] | None:
    """IoUs of the one-to-one matching with most pairs at or above the threshold, then most total IoU; None for NaN."""
    if not predictions:
        return []
    ious = pairwise_iou(np.asarray(predictions, np.float64), np.asarray(truths, np.float64))
    if np.isnan(ious).any():
        return None
    if 1 in ious.shape:
        best = float(ious.max())
        return [best] if best >= threshold else []
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.where(ious < threshold, _FORBIDDEN, 1.0 - ious))
    return [float(iou) for iou in ious[rows, columns] if iou >= threshold]


def pairwise_iou(first: Float64[np.ndarray, "n 4"], second: Float64[np.ndarray, "m 4"]) -> Float64[np.ndarray, "n m"]:
    """Intersection over union of every pair; the union is at least 1e-12."""
    with np.errstate(all="ignore"):
        # One axis at a time and in place: thousands of boxes on both sides are worth the care.
        shared = _overlap(first, second, 0)
        shared *= _overlap(first, second, 1)
        areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(axis=-1) for boxes in (first, second)]
        union = areas[0][:, None] + areas[1][None, :]
        union -= shared
        np.maximum(union, 1e-12, out=union)
        shared /= union
        return shared


def _overlap(
    first: Float64[np.ndarray, "n 4"], second: Float64[np.ndarray, "m 4"], axis: int
) -> Float64[np.ndarray, "n m"]:
    """Length that every pair shares along an axis: 0 is x, 1 is y."""
    length = np.minimum(first[:, None, axis + 2], second[None, :, axis + 2])
    length -= np.maximum(first[:, None, axis], second[None, :, axis])
    return np.clip(length, 0.0, None, out=length)


def _weights(extra_info: Mapping[str, Any]) -> dict[str, float]:
    given = extra_info.get("grounding_component_weights") or extra_info.get("component_weights")
    weights = dict(WEIGHTS)
    if isinstance(given, Mapping):
        weights.update({name: float(given[name]) for name in WEIGHTS if isinstance(given.get(name), int | float)})
    return weights
