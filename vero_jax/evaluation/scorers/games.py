"""GameQA: a letter, a number or a text, after the last word "answer"."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from vero_jax.evaluation.scorers.letters import place_label, place_labels, strict_letter
from vero_jax.rewards import math_text

_ANSWER = re.compile(r"answer", re.IGNORECASE)
_LETTER = re.compile(r"\b([A-Za-z])\b")
_INTEGER = re.compile(r"\b\d+\b", re.ASCII)
_CHOICES = "ABCDEFGHIJKLM123456789"
_LETTERS = 13
"""Of `_CHOICES`."""


def game_tokens(text: str, truth: str, options: Sequence[object]) -> tuple[str, str]:
    """(predicted, true) tokens, which are equal where the answer is right.

    A token is a choice A..M or 1..9 where the truth is one, else the first letter that stands alone, else the first
    whole number, else the whole text. Where there are options, a number is the letter at its place.
    """
    choice = len(truth.strip()) == 1 and truth.strip().upper() in _CHOICES and truth.strip() != "0"
    found, expected = (_token(value, choice) for value in (after_answer(text), truth.strip()))
    return _as_letter(found, options), _as_letter(expected, options)


def strict_game_match(text: str, truth: str, options: Sequence[object]) -> bool:
    """As `game_tokens` for choices and plain numbers; a truth of several tokens must be met as a whole.

    A letter must be one that the answer states, or that of an option which it names: "it is a wall" is no A.
    """
    truth = truth.strip()
    found, expected = game_tokens(text, truth, options)
    if len(truth) == 1 and truth.upper() in string.ascii_uppercase[:_LETTERS]:
        answer = after_answer(text)
        labels = place_labels(len(options) or _LETTERS)
        return (strict_letter(answer, labels, options) or _as_letter(answer.strip(" ."), options)) == truth.upper()
    if len(truth) == 1 or re.fullmatch(r"-?\d+", truth):
        whole = after_answer(text).strip(" .:*\"'()[]")
        if re.fullmatch(r"-?\d+(?:\.\d+)?", whole) and re.fullmatch(r"-?\d+", truth):
            return float(whole) == float(truth)
        return found == expected
    return _plain(after_answer(text)) == _plain(truth)


def after_answer(text: str) -> str:
    """What follows the last "answer" in a text, else the text."""
    matches = list(_ANSWER.finditer(text))
    return (text[matches[-1].end() :] if matches else text).strip()


def _token(text: str, choice: bool) -> str:
    if choice:
        found = math_text.extract(text, math_text.letter_targets(_CHOICES))
        if found:
            return str(found[0]).upper()
    match = _LETTER.search(text)
    if match:
        return match.group(1).upper()
    match = _INTEGER.search(text)
    return match.group() if match else text


def _as_letter(token: str, options: Sequence[object]) -> str:
    if options and token.isascii() and token.isdigit() and 1 <= len(token) <= 2 and 1 <= int(token) <= len(options):
        return place_label(int(token) - 1)
    return token


def _plain(text: str) -> str:
    text = " ".join(text.strip().lower().split()).strip(" .:*\"'")
    return re.sub(r"\s*([,;:()\[\]])\s*", r"\1", text.removeprefix("is ").strip(" .:*\"'"))
