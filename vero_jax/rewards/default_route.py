"""Rows without a known reward type: equal texts, or equal formulas."""

from __future__ import annotations

from vero_jax.rewards import math_text


def default_route(text: str, truth: str, *, seconds: float) -> float:
    """1 if the texts are equal ignoring case, or math-verify finds them equal, else 0."""
    text, truth = text.strip(), truth.strip()
    if text.lower() == truth.lower():
        return 1.0
    try:
        with math_text.time_limit(seconds):
            golds = math_text.extract(truth, math_text.default_targets())
            targets = math_text.default_targets()
            if not golds and len(truth) == 1 and truth.isalpha():
                letters = math_text.letter_targets("ABCD")
                golds = math_text.extract(truth, letters)
                targets = (*targets, *letters)
            return float(math_text.equal(golds or (truth,), math_text.extract(text, targets) or (text,)))
    except math_text.OutOfTime:
        return 0.0
