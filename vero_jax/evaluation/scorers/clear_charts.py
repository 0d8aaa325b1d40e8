"""EvoChart: exact numbers where the chart prints them, 5 % where they must be estimated."""

from __future__ import annotations

from vero_jax.evaluation.scorers.numbers import (
    EXACT,
    any_within,
    first_number,
    leaks,
    parse_number,
    same_text,
    within_relative,
)


def strict_or_relaxed(prediction: str, target: str, is_clear: bool) -> bool:
    """Equal texts in lower case or numbers: within 1e-6 where the value `is_clear`, else within 5 %.

    As in the reference, a text is compared by one number in it, so that "Q4 2020" equals "Q3 2020"; `strictly` does not
    do so.
    """
    return _match(prediction, target, is_clear, first_number_counts=True)


def strictly(prediction: str, target: str, is_clear: bool) -> bool:
    """`strict_or_relaxed` for a prediction that is a number as a whole, up to a unit after it; years must be equal."""
    prediction, target = prediction.strip().rstrip("."), target.strip()
    if same_text(prediction, target):
        return True
    if leaks(prediction, target) or not target:
        return False
    if _has_words_before_number(prediction) or _has_words_before_number(target):
        return False
    return _match(prediction, target, is_clear, first_number_counts=False)


def _match(prediction: str, target: str, is_clear: bool, *, first_number_counts: bool) -> bool:
    prediction, target = prediction.strip(), target.strip()
    if prediction.lower() == target.lower():
        return True
    if is_clear:
        found, expected = parse_number(prediction), parse_number(target)
        if first_number_counts:
            found = first_number(prediction) if found is None else found
            expected = first_number(target) if expected is None else expected
        return found is not None and expected is not None and abs(found - expected) <= EXACT
    found, expected = parse_number(prediction), parse_number(target)
    if found is None or expected is None:
        agree = False
    else:
        agree = any_within(found, expected, prediction, target, fractions=True)
    if agree:
        return True
    if not first_number_counts:
        return False
    found, expected = first_number(prediction), first_number(target)
    return found is not None and expected is not None and within_relative(found, expected)


def _has_words_before_number(text: str) -> bool:
    """Is there a word in front of the first digit, as in "Q4 2020" or "model 3"?"""
    head = text[: next((i for i, c in enumerate(text) if c.isdigit()), len(text))]
    return any(c.isalpha() for c in head) and head.lower().strip() not in ("about", "approximately", "around")
