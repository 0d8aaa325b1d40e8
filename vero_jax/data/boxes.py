"""Pixel boxes of the stored image in the other coordinates a policy may answer in.

Vero stores boxes in pixels of the original image. A policy that answers in thousandths needs no change here: the
rewards convert. A policy that answers in pixels means those of the resized image, so its ground truth is rescaled.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from jaxtyping import Float

from vero_jax.types import Example


def _ordered(boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """(left, top, right, bottom) whatever corners were given."""
    corners = boxes.reshape(-1, 2, 2)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def rescale_boxes(boxes: Any, source: tuple[int, int], target: tuple[int, int]) -> Float[np.ndarray, "n 4"]:
    """Boxes of an image of `source` (width, height) in pixels of the same image at size `target`, corners in order."""
    values = np.asarray(boxes, np.float64).reshape(-1, 4)
    return _ordered(values * np.tile(np.asarray(target, np.float64) / np.asarray(source, np.float64), 2))


def boxes_to_thousandths(boxes: Any, size: tuple[int, int]) -> Float[np.ndarray, "n 4"]:
    """Pixel boxes of an image of `size` (width, height) as 0-1000 coordinates, rounded half to even and clamped."""
    values = np.asarray(boxes, np.float64).reshape(-1, 4)
    return _ordered(np.clip(np.round(values / np.tile(np.asarray(size, np.float64), 2) * 1000), 0, 1000))


def ground_truth_at_size(example: Example, source: tuple[int, int], target: tuple[int, int]) -> str:
    """The ground truth of a grounding or clicking question in pixels of the resized image; others come back unchanged.

    Args:
      example: the question; its boxes are pixels of the stored image.
      source: (width, height) of the stored image.
      target: (width, height) at which the model sees it.
    """
    if example.reward_type not in ("grounding", "clicking") or source == target:
        return example.ground_truth
    try:
        items = json.loads(example.ground_truth)
        return json.dumps(
            [{**item, "bbox_2d": rescale_boxes(item["bbox_2d"], source, target)[0].tolist()} for item in items]
        )
    except (ValueError, TypeError, KeyError):  # not the documented form: the reward decides what it is worth
        return example.ground_truth
