"""Reference responses for the cold start: the row's own, or one made from its ground truth in the answer format."""

from __future__ import annotations

import ast
import json

from vero_jax.data.boxes import boxes_to_thousandths, ground_truth_at_size
from vero_jax.types import Prompt

_BOXED = ("string_match", "multiple_choice", "number_list", "web_action", "numeric", "counting", "search")


def reference_solution(prompt: Prompt, coordinates: str) -> str:
    """The response to learn from, or "" where the row gives none (instructions are rules, not an answer).

    A row without a solution of its own gets its ground truth in the answer format, after one sentence of thought:
    there is no reasoning to imitate, only the form. Boxes and points are in the policy's `coordinates`
    ("normalized_1000": thousandths of the image; "pixels": of the resized image).
    """
    example = prompt.example
    kind = example.reward_type.strip().lower()
    # A stored solution points in thousandths, which a policy that answers in pixels must not learn.
    if example.solution and not (coordinates == "pixels" and kind in ("grounding", "clicking")):
        return example.solution
    if kind in _BOXED:
        answer = f"\\boxed{{{example.ground_truth}}}"
    elif kind == "list_string_match":
        answer = f"\\boxed{{{_first(example.ground_truth)}}}"
    elif kind in ("grounding", "clicking"):
        answer = _pointing(prompt, kind, coordinates)
    elif kind == "llm_judge":
        answer = example.ground_truth
    else:
        answer = ""
    return f"<think>I look at the picture and answer.</think><answer>{answer}</answer>" if answer.strip() else ""


def _first(truth: str) -> str:
    """The first of a Python-literal list of accepted strings."""
    try:
        items = ast.literal_eval(truth)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return truth
    return str(next(iter(items), "")) if isinstance(items, (list, tuple, set)) else truth


def _pointing(prompt: Prompt, kind: str, coordinates: str) -> str:
    if not prompt.image_sizes:
        return ""
    stored, seen = prompt.image_sizes[0], prompt.resized_sizes[0]
    try:
        if coordinates == "pixels":
            items = json.loads(ground_truth_at_size(prompt.example, stored, seen))
            boxes = [[round(value) for value in item["bbox_2d"]] for item in items]
        else:
            items = json.loads(prompt.example.ground_truth)
            boxes = boxes_to_thousandths([item["bbox_2d"] for item in items], stored).astype(int).tolist()
        if kind == "clicking":
            left, top, right, bottom = boxes[0]
            return json.dumps([{"point_2d": [(left + right) // 2, (top + bottom) // 2]}])
        labels = [str(item.get("label", "")) for item in items]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return ""  # not the documented form: the row is counted among those without a solution
    return json.dumps([{"bbox_2d": box, "label": label} for box, label in zip(boxes, labels, strict=True)])
