"""Boxes, points and image sizes as grounding and clicking read them from answers, truths and rows."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vero_jax.rewards.literals import NotData, as_float, read_json

Box = tuple[float, float, float, float]
"""left, top, right, bottom; never reordered, so that an inverted box has no area."""

_FENCE_START = re.compile(r"```(?:json)?\s*(?=\[)", re.IGNORECASE)
_FENCE_END = re.compile(r"(?<=\])\s*```")
_OBJECTS_START = re.compile(r"\[\s*\{")
_OBJECTS_END = re.compile(r"\}\s*\]")


@dataclasses.dataclass(frozen=True)
class Frame:
    """What the coordinates of one question mean."""

    normalized: bool
    """Predictions are thousandths of the image; truths, stored in pixels, are converted. False: both are pixels."""
    size: tuple[int, int] | None
    """(width, height) in pixels."""
    has_image_path: bool

    @classmethod
    def of(cls, extra_info: Mapping[str, Any], *, default_normalized: bool, strict_reference: bool) -> Frame:
        if "normalize_bbox_to_1000" in extra_info:
            normalized = bool(extra_info["normalize_bbox_to_1000"])
        else:
            normalized = default_normalized
        path = image_path(extra_info)
        size = stated_size(extra_info, strict_reference=strict_reference)
        if size is None and path is not None:
            size = _size_of_file(path)
        return cls(normalized, size, path is not None)

    def truths(self, boxes: Sequence[Box]) -> list[Box]:
        """Truth boxes in the coordinates of the predictions; none where a conversion lacks the image size."""
        if not self.normalized:
            return list(boxes)
        if self.size is None or 0 in self.size:
            return []
        width, height = self.size
        return [
            (_thousandth(left, width), _thousandth(top, height), _thousandth(right, width), _thousandth(bottom, height))
            for left, top, right, bottom in boxes
        ]


def stated_size(extra_info: Mapping[str, Any], *, strict_reference: bool) -> tuple[int, int] | None:
    """(width, height) from `image_sizes`, else `image_size`: a pair or {width, height}, or the first of a list."""
    value = extra_info.get("image_sizes") or extra_info.get("image_size")
    if isinstance(value, list) and value and (strict_reference or _pair(value) is None):
        value = value[0]
    return _pair(value)


def image_path(extra_info: Mapping[str, Any]) -> str | None:
    images = extra_info.get("images")
    first = images[0] if isinstance(images, list | tuple) and images else None
    for value in (first, extra_info.get("image_path"), extra_info.get("image")):
        if isinstance(value, str) and value:
            return value
    return None


def objects_in_text(text: str) -> list[Any]:
    """The first JSON array of objects inside `text`: in a code fence, else from the first "[{" to the next "}]"."""
    start = _FENCE_START.search(text)
    end = _FENCE_END.search(text, start.end() + 1) if start else None
    if start and end:
        source = text[start.end() : end.start()]
    else:
        start = _OBJECTS_START.search(text)
        end = _OBJECTS_END.search(text, start.start()) if start else None
        if start is None or end is None:
            return []
        source = text[start.start() : end.end()]
    try:
        value = read_json(source)
    except NotData:
        return []
    return value if isinstance(value, list) else []


def truth_boxes(truth: Any, *, strict_reference: bool) -> list[Box]:
    """Boxes of a ground truth: JSON text, possibly fenced or inside prose; by default also a list as it is."""
    if not strict_reference:
        if isinstance(truth, list | tuple):
            return boxes_of(truth)
        try:
            value = read_json(str(truth).strip())
        except NotData:
            value = None
        if isinstance(value, list):
            return boxes_of(value)
        if isinstance(value, dict):
            return []
    return boxes_of(objects_in_text(str(truth).strip()))


def boxes_of(items: Sequence[Any]) -> list[Box]:
    """The usable `bbox_2d` of a list of objects; other items are skipped."""
    found = []
    for item in items:
        numbers = _numbers(item.get("bbox_2d"), 4) if isinstance(item, Mapping) else None
        if numbers is not None:
            found.append((numbers[0], numbers[1], numbers[2], numbers[3]))
    return found


def point_of(item: Any) -> tuple[float, float] | None:
    """The `point_2d` of an object."""
    numbers = _numbers(item.get("point_2d"), 2) if isinstance(item, Mapping) else None
    return None if numbers is None else (numbers[0], numbers[1])


def predicted_objects(source: str, *, strict_reference: bool) -> list[Any] | None:
    """The objects of a predicted JSON array; None where the text is no JSON array at all."""
    try:
        value = read_json(source.strip())
    except NotData:
        return None
    if not isinstance(value, list):
        return None
    if strict_reference:
        return objects_in_text(source)
    if len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return [item for item in value if isinstance(item, Mapping)]


def _numbers(value: Any, count: int) -> list[float] | None:
    if not isinstance(value, list) or len(value) != count:
        return None
    numbers = [as_float(item) for item in value]
    return None if None in numbers else [number for number in numbers if number is not None]


def _pair(value: Any) -> tuple[int, int] | None:
    if isinstance(value, Mapping):
        value = [value.get("width"), value.get("height")]
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    width, height = value
    if not all(isinstance(number, int | float) and math.isfinite(number) for number in (width, height)):
        return None
    return int(width), int(height)


def _thousandth(value: float, size: int) -> float:
    if not math.isfinite(value):
        return math.nan
    return float(min(max(round(value / size * 1000), 0), 1000))


def _size_of_file(path: str) -> tuple[int, int] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
