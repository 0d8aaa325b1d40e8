"""An ordered list of whole numbers, without repeats: reward type number_list."""

from __future__ import annotations

import re

_WHOLE_NUMBER = re.compile(r"-?\d+")
MISPLACED_WEIGHT = 0.2
"""Most that a permutation in the wrong order can earn."""


def number_list(prediction: str, truth: str) -> float:
    """1 for the same numbers in the same order; 0.2 * (share of places that agree) for a permutation; else 0."""
    try:
        found = [int(number) for number in _WHOLE_NUMBER.findall(prediction)]
        expected = [int(number) for number in _WHOLE_NUMBER.findall(truth)]
    except ValueError:  # more than 4,300 digits
        return 0.0
    if not found or len(set(found)) != len(found) or sorted(found) != sorted(expected):
        return 0.0
    agreeing = sum(a == b for a, b in zip(found, expected, strict=True))
    return 1.0 if agreeing == len(expected) else MISPLACED_WEIGHT * agreeing / len(expected)
