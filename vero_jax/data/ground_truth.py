r"""What a stored ground truth must look like for its reward type, and which type one without a type gets.

A ground truth is a *problem* only where no answer could ever score with it: such rows are left out. What is merely odd
for its type is a *doubt*: such rows are kept and marked, because a rare spelling of a right answer is worth more than a
tidy table.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping
from typing import Any

POINTING_TYPES = ("grounding", "clicking")
_MAX_LITERAL = 200_000  # characters; Python's parser needs far more memory than its text has

_PLAIN_NUMBER = re.compile(
    r"[-+−]?\s*[$€£¥]?\s*(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?<=[\d.])(?:[eE][-+]?\d+)?\s*[%°]?", re.ASCII
)
_LATEX_NUMBER = re.compile(
    r"(?:\\(?:frac|dfrac|tfrac|sqrt|pi|times|cdot|left|right)(?![a-zA-Z])|[-+*/^(){}\[\]\d.\s])+"
)
_LATEX_COMMAND = re.compile(r"\\(?:frac|dfrac|tfrac|sqrt|pi)(?![a-zA-Z])")
_ZERO_PADDED = re.compile(r"0\d+")
_READABLE_NUMBER = re.compile(r"\d|π|(?<![a-zA-Z])pi(?![a-zA-Z])")
_LETTER = re.compile(r"\(?([A-Z])[).:]?")
_OPTION = re.compile(r"(?:^|[\s(\[,;:?])\(?([A-Z])\s?[).:](?=\s|[^\s.:)])", re.MULTILINE)
_LONE_LETTER = re.compile(r"(?<![A-Za-z])[A-Z](?![A-Za-z])")
_OBJECTS = re.compile(r"\[\s*\{")
_COUNT = re.compile(r"\d|zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|no|none", re.IGNORECASE)


def ground_truth_problem(reward_type: str, ground_truth: str) -> str | None:
    """Why no answer could ever score with this ground truth, as a short phrase to count by; None where one could.

    Unknown reward types accept any text.
    """
    text = ground_truth.strip()
    if not text:
        return None if reward_type == "llm_judge" else "empty ground truth"
    if reward_type in POINTING_TYPES:
        return None if stated_boxes(text) else "ground truth without boxes"
    if reward_type == "instruction_following":  # with a judge beside the rules, any text can still be scored by it
        return None if _instruction_names(text) else "ground truth without instructions"
    if reward_type == "web_action":
        return None if _action(text) else "ground truth is no action"
    if reward_type == "numeric":
        return None if _READABLE_NUMBER.search(text) else "ground truth is no number"
    if reward_type == "number_list":
        return None if re.search(r"\d", text) else "ground truth without numbers"
    if reward_type == "list_string_match":
        items = literal(text)
        if isinstance(items, (list, tuple, set)) and not any(str(item).strip() for item in items):
            return "ground truth is an empty list"
    return None


def ground_truth_doubt(reward_type: str, ground_truth: str) -> str | None:
    """What is odd about a ground truth without a problem, as a phrase; None for one that looks as its type should."""
    text = ground_truth.strip()
    if not text:
        return None
    if reward_type == "multiple_choice" and not _LONE_LETTER.search(text):
        return "multiple choice without a letter"
    if reward_type == "numeric" and not is_number(text):
        return "number with more than a number"
    if reward_type == "number_list":
        numbers = re.findall(r"-?\d+", text)
        return "number list with a repeated number" if len(set(numbers)) < len(numbers) else None
    if reward_type == "list_string_match" and not isinstance(literal(text), (list, tuple, set)):
        return "one text instead of a list"
    if reward_type == "counting" and not _COUNT.search(text):
        return "count without a number"
    if reward_type == "web_action" and "ACTION" not in (_action(text) or {}):
        return "action without ACTION"
    if reward_type == "instruction_following_llm_judge" and not _instruction_names(text):
        return "no instructions, only a reference"
    return None


def guess_reward_type(question: str, ground_truth: str) -> str:
    r"""The reward type of a row that states none, by its ground truth. The first rule that fits decides:

    1. one letter that is among two or more lettered options of the question: multiple_choice;
    2. a plain number (sign, thousands commas, decimals, exponent, currency or percent sign), or LaTeX that spells one
       with \frac, \sqrt or \pi: numeric. Digits with leading zeros are a code, not a number;
    3. a JSON list of objects with `bbox_2d`: grounding, or clicking where the question asks for `point_2d`;
    4. a JSON object with `instructions`: instruction_following; with ACTION: web_action;
    5. a list literal of texts: list_string_match; of two or more different whole numbers: number_list;
    6. else string_match.
    """
    text = ground_truth.strip()
    letter = _LETTER.fullmatch(text)
    options = option_letters(question)
    if letter and len(options) > 1 and letter.group(1) in options:
        return "multiple_choice"
    if is_number(text) and not _ZERO_PADDED.fullmatch(text):
        return "numeric"
    if not text.startswith(("[", "{", "(")):
        return "string_match"
    if stated_boxes(text):
        return "clicking" if "point_2d" in question else "grounding"
    value = literal(text)
    if isinstance(value, Mapping):
        if _instruction_names(text):
            return "instruction_following"
        return "web_action" if _action(text) else "string_match"
    if isinstance(value, (list, tuple)) and value:
        if all(isinstance(item, str) for item in value):
            return "list_string_match"
        whole = all(isinstance(item, int) and not isinstance(item, bool) for item in value)
        if whole and 1 < len(value) == len(set(value)):
            return "number_list"
    return "string_match"


def is_number(text: str) -> bool:
    """Whether a text is a plain number and nothing else, or LaTeX that spells one."""
    text = text.strip()
    if _PLAIN_NUMBER.fullmatch(text) and re.search(r"\d", text):
        return True
    inner = text.strip("$").strip()
    return bool(_LATEX_COMMAND.search(inner) and _LATEX_NUMBER.fullmatch(inner))


def option_letters(question: str) -> frozenset[str]:
    """The letters of lettered options ("A. cat", "(B) dog", "C: bird") in a question; none where A is not one."""
    letters = frozenset(_OPTION.findall(question))
    return letters if "A" in letters else frozenset()


def stated_boxes(ground_truth: str) -> list[tuple[float, float, float, float]]:
    """The usable boxes of a ground truth: `bbox_2d` of four finite numbers in a JSON list of objects, which may stand
    in a code fence or in prose."""
    try:
        items = json.loads(ground_truth)
    except (ValueError, RecursionError):
        inside = _OBJECTS.search(ground_truth)
        try:
            items = json.loads(ground_truth[inside.start() : ground_truth.rfind("]") + 1]) if inside else None
        except (ValueError, RecursionError):
            items = None
    boxes = []
    for item in items if isinstance(items, list) else []:
        box = item.get("bbox_2d") if isinstance(item, Mapping) else None
        if isinstance(box, list) and len(box) == 4:
            numbers = [_finite(value) for value in box]
            if None not in numbers:
                left, top, right, bottom = (number for number in numbers if number is not None)
                boxes.append((left, top, right, bottom))
    return boxes


def literal(text: str) -> Any:
    """JSON, else a Python literal (both occur in stored ground truths), else None. Nothing is evaluated."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    if len(text) > _MAX_LITERAL:
        return None
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _instruction_names(text: str) -> list[str]:
    value = literal(text)
    value = literal(value) if isinstance(value, str) else value  # some rows are encoded twice
    items = value.get("instructions") if isinstance(value, Mapping) else None
    names = [item.get("class") for item in items if isinstance(item, Mapping)] if isinstance(items, list) else []
    return [name for name in names if isinstance(name, str) and name.strip()]


def _action(text: str) -> dict[str, Any] | None:
    """The fields of an action that can be scored; None without any. MARK -1 and VALUE None say that there is none."""
    value = literal(text)
    if not isinstance(value, Mapping):
        return None
    fields = {str(key).upper(): item for key, item in value.items()}
    stated: dict[str, Any] = {name: fields[name] for name in ("ACTION", "MARK", "VALUE") if name in fields}
    if str(stated.get("MARK", "")).strip() in ("-1", "-1.0"):
        del stated["MARK"]
    if str(stated.get("VALUE", "")).strip().lower() == "none":
        del stated["VALUE"]
    return stated or None


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
