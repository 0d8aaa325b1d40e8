"""What is wrong with one row, or looks wrong, in words for the person whose file it is.

A *problem* leaves the row out of every run; `data.prepare` counts it under the same reason. A *warning* does not.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vero_jax.data import formats, images, schema
from vero_jax.data.builder import image_size
from vero_jax.data.ground_truth import POINTING_TYPES, option_letters, stated_boxes
from vero_jax.data.readers import Row
from vero_jax.types import Example

MAX_ASPECT_RATIO = 200  # of the models' own resizing, see `geometry.smart_resize`
_MARGIN = 1.0  # pixels by which rounded annotations may reach over the border
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
}

ADVICE = {
    "columns of no known format": "name the columns as Vero, verl, EasyR1 or TRL do, or question, answer and image",
    "line is not JSON": "write one JSON object a line; export the file again if it was cut off",
    "list is not JSON": "export the file again; it ends in the middle or has a comma or quote too few",
    "line is not UTF-8": "save the file as UTF-8",
    "text is not UTF-8": "save the text as UTF-8",
    "value of a wrong type": "write the column with text, numbers or bytes",
    "row is no object": "every row is a JSON object with named columns",
    "reward_model is no object": 'reward_model is {"ground_truth": "..."}, or that as JSON text',
    "extra_info is no object": "extra_info is an object, or one as JSON text",
    "videos are not read": "leave the column out, or give frames as images",
    "no image": "give the bytes or a path; a question without an image has an empty list, or no image column",
    "image of a wrong type": "an image is bytes, a path, or an object with bytes or path",
    "image is a web address": "download it first and give the path; no run reads from the network",
    "image file missing": "paths are relative to the folder of the file; put the image there or mend the path",
    "image not readable": "save the image again, or leave the row out",
    "image too large": "scale the image down",
    "image shape not usable": f"one side may be at most {MAX_ASPECT_RATIO} times the other; crop it",
    "no question": "give prompt (text or messages with a user turn), problem or question",
    "image markers do not match the images": "write <image> once for each image, or no marker at all",
    "no ability": "ability is the domain; leave the column out to put all rows into the domain 'custom'",
    "empty ground truth": "give the right answer; rows without one cannot be scored",
    "ground truth without boxes": 'boxes are a JSON list [{"bbox_2d": [left, top, right, bottom], "label": "..."}]',
    "ground truth without instructions": 'instructions are {"instructions": [{"class": "...", "args": {...}}]}',
    "ground truth is no action": 'an action is {"ACTION": "...", "MARK": 1, "VALUE": "..."}',
    "ground truth is no number": "give a number, or another reward_type",
    "ground truth without numbers": 'a number list is text such as "3, 1, 2"',
    "ground truth is an empty list": "give at least one accepted answer, as in \"['cat', 'kitten']\"",
    "duplicate id": "give every row its own id; validation files and reports name rows by it",
    "letter is not among the options": "mend the letter, or name all options in the question",
    "multiple choice without a letter": "give the letter of the right option, or reward_type string_match",
    "number with more than a number": "give the number alone; name the unit in the question",
    "number list with a repeated number": "answers with repeats never score; use string_match",
    "one text instead of a list": "it counts as the only accepted answer; a list is \"['cat', 'kitten']\"",
    "count without a number": "give the count in digits",
    "action without ACTION": "only MARK and VALUE would be scored",
    "no instructions, only a reference": "only the judge would score it; use llm_judge",
    "box outside of the image": "boxes are in pixels of the stored image, without EXIF rotation",
    "box without an area": "a box is left, top, right, bottom, with left < right and top < bottom",
    "tolerance is no number": "tolerance is relative, such as 0.05, or null",
    "wrong suffix": "harmless: the bytes decide; rename the file if other programs shall read it",
    "last turn is the assistant's": "the policy would go on after it; end the prompt with the user's turn",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing about one row."""

    file: str
    number: int
    """Of the line in a JSONL file, of the row in other files; from 1."""
    row_id: str
    reason: str
    detail: str
    problem: bool
    """Whether the row is left out for it."""

    @property
    def advice(self) -> str:
        return ADVICE.get(self.reason, "")


@dataclasses.dataclass(frozen=True)
class Checked:
    """What became of a row: an example, unless a problem was found, and what was found."""

    example: Example | None
    row_id: str
    problem: tuple[str, str] | None
    """(reason, detail)"""
    warnings: tuple[tuple[str, str], ...] = ()


def check_row(row: Row) -> Checked:
    """Reads a row as preparing does, decodes its images once, and looks for mistakes that preparing cannot see."""
    fallback_id, columns, read_file = row
    row_id = str(columns.get("id") or fallback_id)
    try:
        example = schema.parse_row(columns, fallback_id, read_file)
        sizes = [image_size(data) for data in example.images]
    except (schema.RowError, images.ImageError) as error:
        return Checked(None, row_id, (error.reason, error.detail))
    for width, height in sizes:
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            return Checked(None, example.id, ("image shape not usable", f"{width}x{height} pixels"))
    found = [*_truth_warnings(example, sizes), *_image_warnings(example, columns)]
    if example.messages[-1]["role"] == "assistant":
        found.append(("last turn is the assistant's", str(example.messages[-1]["content"])[:80]))
    return Checked(example, example.id, None, tuple(found))


def _truth_warnings(example: Example, sizes: Sequence[tuple[int, int]]) -> list[tuple[str, str]]:
    found = []
    truth = example.ground_truth.strip()
    doubt = example.extra_info.get(schema.DOUBT_KEY)
    if doubt:
        found.append((str(doubt), f"{example.reward_type}: {truth[:80]!r}"))
    if example.reward_type == "multiple_choice":
        question = "\n".join(message["content"] for message in example.messages if message["role"] == "user")
        options = option_letters(question)
        letters = re.findall(r"(?<![A-Za-z])[A-Z](?![A-Za-z])", truth)
        if len(options) > 1 and letters and letters[-1] not in options:
            found.append(("letter is not among the options", f"{truth[:80]!r}, options {', '.join(sorted(options))}"))
    if example.reward_type in POINTING_TYPES and sizes:
        found += _box_warnings(truth, sizes[0])
    tolerance = example.extra_info.get("tolerance")
    if tolerance is not None and not _is_tolerance(tolerance):
        found.append(("tolerance is no number", repr(tolerance)[:80]))
    return found


def _box_warnings(truth: str, size: tuple[int, int]) -> list[tuple[str, str]]:
    boxes = stated_boxes(truth)
    width, height = size
    flat = [box for box in boxes if not (box[0] < box[2] and box[1] < box[3])]
    if flat:
        return [("box without an area", f"{list(flat[0])}")]
    outside = [
        box
        for box in boxes
        if min(box) < -_MARGIN or max(box[0::2]) > width + _MARGIN or max(box[1::2]) > height + _MARGIN
    ]
    largest = max(value for box in boxes for value in box)
    if outside:
        hint = "; are they thousandths of the image?" if largest <= 1000 else ""
        return [("box outside of the image", f"{list(outside[0])} in {width}x{height} pixels{hint}")]
    if largest <= 1:
        return [("box without an area", f"{list(boxes[0])}; are they fractions of the image? Pixels are meant")]
    return []


def _is_tolerance(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value)) and float(value) >= 0
    except (TypeError, ValueError):
        return False


def _image_warnings(example: Example, columns: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    known = {suffix for suffixes in _SUFFIXES.values() for suffix in suffixes}
    for name, data in zip(schema.image_paths(columns), example.images, strict=True):
        suffix = "." + (name or "").rpartition(".")[2].lower()
        kind = images.open_image(data).format or ""
        if suffix in known and kind in _SUFFIXES and suffix not in _SUFFIXES[kind]:
            found.append(("wrong suffix", f"{name} holds a {kind} image"))
    return found


def columns_title(columns: Sequence[str]) -> str:
    """The name of the format of rows with these columns, for a reader."""
    name = formats.recognise(columns)
    return "of no known format" if name is None else formats.TITLES[name]
