"""Reading data out of text: JSON, and Python literals of bounded depth. Nothing is ever evaluated."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

MAX_LITERAL_LENGTH = 200_000
MAX_LITERAL_DEPTH = 60
"""Deeper or longer literals are refused: Python's parser may exhaust the C stack on them."""

_BRACKETS = re.compile(r"[\[\](){}]")


class NotData(ValueError):
    """The text is neither JSON nor a Python literal."""


def read_json(text: str) -> Any:
    """The JSON value of `text` by Python's rules (NaN allowed, last duplicate key wins). Raises NotData."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotData(str(error)) from None


def read_literal(text: str) -> Any:
    """The Python literal in `text` (list, tuple, dict, set, text, number, ...). Raises NotData."""
    if len(text) > MAX_LITERAL_LENGTH or _depth(text) > MAX_LITERAL_DEPTH:
        raise NotData("literal too long or too deep")
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise NotData(str(error)) from None


def read_json_or_literal(text: str) -> Any:
    """JSON if it parses, else a Python literal. Raises NotData."""
    try:
        return read_json(text)
    except NotData:
        return read_literal(text)


def as_float(value: Any) -> float | None:
    """`float(value)` for numbers and numeric text, None where that fails."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _depth(text: str) -> int:
    """Deepest run of open brackets, quotes not considered: an upper bound is all we need."""
    depth = deepest = 0
    for match in _BRACKETS.finditer(text):
        if match.group() in "([{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth = max(depth - 1, 0)
    # Chains of signs nest in Python's grammar too.
    return max(deepest, max((len(run) for run in re.findall(r"[-+~\s]{2,}", text)), default=0) // 2)
