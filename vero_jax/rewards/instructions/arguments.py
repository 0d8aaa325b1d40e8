"""What the checks share: reading their arguments, comparing counts, cutting a text into paragraphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from vero_jax.rewards.language.sentences import split_sentences


class Unusable(ValueError):
    """An argument is missing or of the wrong kind: the instruction can't be checked and counts as not followed."""


class Arguments:
    """The arguments of one instruction, nulls already dropped. Reading a missing or unusable one raises `Unusable`."""

    def __init__(self, values: Mapping[str, Any]):
        self._values = values

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def get(self, name: str) -> Any:
        if name not in self._values:
            raise Unusable(f"argument {name!r} is missing")
        return self._values[name]

    def number(self, name: str, *, positive: bool = False) -> float:
        """A count: zero or more, or more than zero. A negative one stands for "missing" in the data."""
        value = self.get(name)
        if not isinstance(value, int | float) or value < 0 or (positive and not value):
            raise Unusable(f"argument {name!r} is not a count: {value!r}")
        return value

    def bound(self, name: str) -> float:
        """Any number."""
        value = self.get(name)
        if not isinstance(value, int | float):
            raise Unusable(f"argument {name!r} is not a number: {value!r}")
        return value

    def text(self, name: str, *, empty: bool = True) -> str:
        value = self.get(name)
        if not isinstance(value, str) or not (value or empty):
            raise Unusable(f"argument {name!r} is not a text: {value!r}")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts; a plain text is taken letter by letter, as the data's own checker does."""
        value = self.get(name)
        if not isinstance(value, str | list | tuple) or not all(isinstance(item, str) for item in value):
            raise Unusable(f"argument {name!r} is not a list of texts: {value!r}")
        return list(value)

    def text_or_first(self, name: str) -> str:
        """A text, or the first of a list of texts."""
        value = self.get(name)
        if isinstance(value, list | tuple) and value:
            value = value[0]
        if not isinstance(value, str) or not value:
            raise Unusable(f"argument {name!r} is not a text: {value!r}")
        return value


Check = Callable[[str, Arguments], bool]
"""(answer text, arguments) -> followed?"""


def compares(count: float, relation: Any, threshold: float) -> bool:
    """ "less than" or "at least"."""
    if relation == "less than":
        return count < threshold
    if relation == "at least":
        return count >= threshold
    raise Unusable(f"unknown relation {relation!r}")


def occurrences(pattern: str, text: str) -> int:
    """Matches of an argument used as a regular expression, case ignored, not overlapping."""
    return sum(1 for _ in re.finditer(pattern, text, re.IGNORECASE))


def in_range(value: float, arguments: Arguments, low: str = "lower_bound", high: str = "upper_bound") -> bool:
    return arguments.bound(low) <= value <= arguments.bound(high)


def cleaned(text: str) -> str:
    """Every line stripped, then the whole."""
    return "\n".join(line.strip() for line in text.splitlines()).strip()


def paragraphs(text: str) -> list[str]:
    """Paragraphs of the cleaned text: runs of lines between blank ones."""
    found: list[list[str]] = [[]]
    for line in cleaned(text).split("\n"):
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return ["\n".join(lines) for lines in found if lines]


def sentences(text: str) -> list[str]:
    """Sentences of the cleaned text."""
    return split_sentences(cleaned(text))


def divided(text: str, divider: str) -> list[str] | None:
    """Pieces between dividers, a blank first or last one left out; None when a piece in the middle is blank."""
    pieces = re.split(rf"\s?{re.escape(divider)}\s?", text)
    if any(not piece.strip() for piece in pieces[1:-1]):
        return None
    return [piece for piece in pieces if piece.strip()]
