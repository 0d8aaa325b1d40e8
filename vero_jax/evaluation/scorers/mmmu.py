"""MMMU-Pro: the letter of an answer among up to ten options, by the first of many patterns that fits."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vero_jax.evaluation.scorers.letters import MANY_WORDS, place_labels, stated_letter

_PATTERNS = (
    r"^{x}",
    r"{x}$",
    r"(?<!\d)\d{{1,3}}\.\s{{0,9}}{x}\b",
    r"\b(?:ANSWER|OPTION|CHOICE)\b(?:\s{{1,9}}IS)?\s{{0,9}}:?\s{{0,9}}\(?{x}\b",
    r"\({x}\)",
    r"{x}\.",
    r"{x}:",
    r"{x}\)",
    r"{x} ",
    r"\*{x}\*",
    r"[\"']{x}[\"']",
)
"""In order of rank, for the upper-cased text; {x} is the letter."""


def mmmu_letter(text: str, options: Sequence[str]) -> str:
    """The letter of an answer, or "". Deterministic.

    First a stated letter, then the patterns in their order, an option's text in answers of more than five words, and at
    last any occurrence of a letter. Where several letters fit, the one whose last occurrence comes first.
    """
    labels = place_labels(len(options))
    text = text.strip()
    if not text or not labels:
        return ""
    found = stated_letter(text, labels)
    if found:
        return found
    upper = text.upper()
    for pattern in _PATTERNS:
        found = _earliest_of_last(upper, pattern.format(x=f"([{labels}])"))
        if found:
            return found
    if len(text.split()) > MANY_WORDS:
        places = {label: upper.rfind(option.upper()) for label, option in zip(labels, options, strict=True) if option}
        places = {label: place for label, place in places.items() if place >= 0}
        if places:
            return min(places, key=lambda label: places[label])
    return _earliest_of_last(upper, f"([{labels}])")


def _earliest_of_last(text: str, pattern: str) -> str:
    last: dict[str, int] = {}
    for match in re.finditer(pattern, text):
        last[match.group(1)] = match.start(1)
    return min(last, key=lambda label: last[label]) if last else ""
