"""Equality of normalised strings: the reward types string_match, counting and search; also list_string_match."""

from __future__ import annotations

import re
import unicodedata

from vero_jax.rewards.literals import NotData, read_literal

_THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")
_ZERO_DECIMALS = re.compile(r"\b(\d+)\.0+\b(?!\.)")
_NOT_WORD = re.compile(r"[\W_]+")
_ARTICLES = frozenset({"a", "an", "the"})


def normalise(text: str) -> str:
    """Lower-case words of `text` without accents, punctuation, thousands commas, empty decimals and articles."""
    if not text.isascii():
        text = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text))
        marks = [ord(char) for char in set(text) if unicodedata.category(char) == "Mn"]
        text = text.translate(dict.fromkeys(marks)) if marks else text
    text = _THOUSANDS_COMMA.sub("", text)
    text = _ZERO_DECIMALS.sub(r"\1", text)
    words = _NOT_WORD.sub(" ", text.lower()).strip()
    kept = [word for word in words.split(" ") if word not in _ARTICLES]
    # "the 5" or "a b" keep their articles: too little would be left to tell answers apart.
    return " ".join(kept) if any(len(word) > 1 for word in kept) else words


def string_match(prediction: str, truth: str) -> float:
    """1 if both normalised strings are equal and not empty, else 0."""
    expected = normalise(truth)
    return float(bool(expected) and normalise(prediction) == expected)


def list_string_match(prediction: str, truth: str) -> float:
    """1 if the prediction equals any of the accepted strings in `truth`, a Python list, tuple or set of them."""
    if not truth.strip():
        return 0.0
    try:
        value = read_literal(truth)
    except NotData:
        value = None
    accepted = [str(item) for item in value] if isinstance(value, list | tuple | set) else [truth]
    found = normalise(prediction)
    return float(bool(found) and any(normalise(item) == found for item in accepted))
