"""Counts: the last whole number of an answer."""

from __future__ import annotations

import re

WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
MAX_DIGITS = 300

_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_NUMBER = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?=(?:st|nd|rd|th)?(?!\w))", re.ASCII)
_WORD = re.compile(rf"\b(?:{'|'.join(WORDS)})\b", re.IGNORECASE)


def last_integer(text: str) -> int | None:
    """The last digits in a text with the sign before them, else the largest number word that it contains anywhere.

    "1,024" is 24, "5.0" is 0 and "often" is 10, as in the reference; `strict_count` reads them as people do.
    """
    found = _INTEGER.findall(text)
    if found:
        return int(found[-1]) if len(found[-1]) <= MAX_DIGITS else None
    text = text.lower()
    return next((index for index in reversed(range(len(WORDS))) if WORDS[index] in text), None)


def true_count(truth: object) -> int | None:
    """The count in a row: its first whole number, else the smallest number word in it."""
    text = str(truth)
    match = _INTEGER.search(text)
    if match:
        return int(match.group()) if len(match.group()) <= MAX_DIGITS else None
    text = text.lower()
    return next((index for index, word in enumerate(WORDS) if word in text), None)


def strict_count(text: str) -> int | None:
    """The last number in a text if it is whole ("1,024", "5.0"), else the last number word that stands alone."""
    found = _NUMBER.findall(text)
    if found:
        number = found[-1].replace(",", "")
        whole, _, decimals = number.partition(".")
        return int(whole) if not decimals.strip("0") and len(whole) <= MAX_DIGITS else None
    words = _WORD.findall(text)
    return WORDS.index(words[-1].lower()) if words else None
