"""Levenshtein's distance and the similarity ANLS that is made of it (Biten et al. 2019, "Scene Text VQA")."""

from __future__ import annotations

from collections.abc import Sequence


def edit_distance(first: str, second: str) -> int:
    """Fewest insertions, deletions and substitutions between two texts.

    Bit-parallel (Myers 1999, in Hyyrö's form): a few operations on whole numbers for each character of the longer text,
    so that a hundred thousand characters take a fraction of a second.
    """
    if len(first) > len(second):
        first, second = second, first
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for index, character in enumerate(first):
        places[character] = places.get(character, 0) | (1 << index)
    every = (1 << len(first)) - 1
    last = 1 << (len(first) - 1)
    up, down, distance = every, 0, len(first)
    for character in second:
        match = places.get(character, 0)
        diagonal = (((match & up) + up) ^ up) | match | down
        right = down | (every & ~(diagonal | up))
        left = diagonal & up
        distance += bool(right & last)
        distance -= bool(left & last)
        right = (right << 1 | 1) & every
        left = (left << 1) & every
        up = left | (every & ~(diagonal | right))
        down = right & diagonal
    return distance


def anls(references: Sequence[str], prediction: str, threshold: float = 0.5) -> float:
    """1 - distance / length for the nearest reference; 0 below the threshold.

    Texts are compared in lower case with single spaces; lengths are those of the texts as they are.
    """
    found = _normal(prediction)
    best = 1.0
    for reference in references:
        length = max(len(reference), len(prediction))
        if length == 0:
            return 1.0
        expected = _normal(reference)
        # The distance is at least the difference in length: what can't reach the threshold needs no distance.
        if abs(len(expected) - len(found)) / length <= 1 - threshold:
            best = min(best, edit_distance(expected, found) / length)
    return 1 - best if 1 - best >= threshold else 0.0


def _normal(text: str) -> str:
    return " ".join(text.strip().lower().split())
