"""ChartQA-Pro: lists of answers, element by element, each a number, a year, a choice or a text."""

from __future__ import annotations

from collections.abc import Sequence

from vero_jax.evaluation.scorers.edit_distance import anls
from vero_jax.evaluation.scorers.numbers import (
    any_within,
    leaks,
    parse_number_or_ratio,
    same_year_or_range,
    within_relative_exact_zero,
)
from vero_jax.rewards.literals import NotData, read_literal

MAX_ELEMENTS = 200
_EXACT_KINDS = frozenset({"Fact Checking", "Multi Choice"})
_CURLY = str.maketrans("‘’“”", "''\"\"")
_OPEN, _CLOSE = "[({", "])}"


def list_match(
    prediction: str, target: str, kind: str = "", years: Sequence[str] = (), *, strict: bool = False
) -> float:
    """Mean score of the elements of two lists (a text that is no list is a list of one), 0 for each one missing.

    Args:
      prediction, target: texts, possibly `[...]`; the order matters.
      kind: the row's question type; in fact checks and multiple choice only equal texts score.
      years: "YES" for each element that is a year, which must be equal; one flag holds for all elements.
      strict: years and ranges must be equal also where no flag says so, and typographic quotes, which the benchmark's
        own prompt shows, do not cost anything.
    """
    if strict:
        prediction = prediction.translate(_CURLY) if prediction.lstrip().startswith("[") else prediction
    expected, found = _elements(target), _elements(prediction)
    length = max(len(expected), len(found))
    flags = [flag.upper() == "YES" for flag in years] or [False]
    flags = (flags * length)[:length]
    exact = kind in _EXACT_KINDS
    pairs = zip(expected, found, flags, strict=False)
    return sum(_match(e, f, exact or year, strict) for e, f, year in pairs) / length if length else 0.0


def _match(target: str, prediction: str, exact: bool, strict: bool) -> float:
    prediction, target = prediction.strip(". "), target.strip(". ")
    if exact:
        return float(prediction.lower() == target.lower())
    if strict and leaks(prediction, target):
        return float(same_year_or_range(prediction, target))
    found, expected = parse_number_or_ratio(prediction), parse_number_or_ratio(target)
    if found is None or expected is None:
        return anls([target], prediction)
    return float(any_within(found, expected, prediction, target, fractions=False, within=within_relative_exact_zero))


def _elements(text: str) -> list[str]:
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        # Some truths are lists without their brackets: "'USA', 'China'".
        return _quoted(text) or [text]
    try:
        value = read_literal(text)
    except NotData:
        value = None
    if not isinstance(value, list):
        value = [part.strip().strip("'\"") for part in _split(text[1:-1])]
    return [str(item) for item in value[:MAX_ELEMENTS]]


def _quoted(text: str) -> list[str]:
    if not (len(text) > 1 and text[0] == text[-1] == "'" and "," in text):
        return []
    try:
        value = read_literal(f"[{text}]")
    except NotData:
        return []
    return [str(item) for item in value]


def _split(text: str) -> list[str]:
    """Parts between the commas that stand outside of brackets; no parts in an empty text."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth = max(depth - 1, 0)
        elif character == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [*parts, text[start:]] if text.strip() else []
