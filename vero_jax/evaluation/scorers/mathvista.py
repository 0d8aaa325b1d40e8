"""MathVista: an answer is brought to the type that the row states, then compared."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vero_jax.evaluation.scorers.edit_distance import edit_distance
from vero_jax.evaluation.scorers.letters import place_labels, stated_letter
from vero_jax.evaluation.scorers.numbers import parse_number

MAX_LENGTH = 20_000
_LONGEST_NUMBER = 400
"""Characters of the longest number that `mathvista_answer` writes; what is longer is a text that it found none in."""
_SIGNS = " .$%°"
_LETTER = re.compile(r"\(([A-Za-z])\)")


def mathvista_answer(text: str, row: Mapping[str, Any]) -> str | None:
    """The answer as its type wants it: an option's text, a whole number, a rounded number, a text; None without any.

    An answer without a letter is taken for the option with the smallest edit distance, as in the reference. A whole
    number stays exact ("14.2"); what is no number stays a text.
    """
    text = text.strip()[:MAX_LENGTH]
    if not text:
        return None
    if row.get("question_type") == "multi_choice":
        options = [str(option) for option in row.get("choices") or ()]
        index = _option(text, options)
        return options[index] if options else text
    kind = row.get("answer_type")
    if kind not in ("integer", "float"):
        return text
    value = parse_number(text)
    if value is None:
        return text
    if kind == "integer":
        return str(int(value)) if value == int(value) else str(value)
    return str(round(value, _precision(row)))


def mathvista_equal(found: str | None, row: Mapping[str, Any]) -> bool:
    """Does a normalised answer equal the row's?"""
    if found is None:
        return False
    answer = str(row["answer"]).strip()
    if row.get("question_type") != "multi_choice" and row.get("answer_type") in ("integer", "float"):
        if len(found) > _LONGEST_NUMBER:
            return False  # parsing is slow for hostile texts, and would find none again
        pair = parse_number(found), parse_number(answer)
        if pair[0] is None or pair[1] is None:
            return False
        digits = _precision(row) if row.get("answer_type") == "float" else 6
        return round(pair[0], digits) == round(pair[1], digits)
    return found.strip().lower() == answer.lower()


def strict_option(text: str, options: Sequence[str]) -> str | None:
    """The option that an answer names by letter or by its own text; None where only the nearest one could be taken."""
    found = _stated(text, place_labels(len(options)))
    if found is not None:
        return options[found]
    plain = text.strip(_SIGNS).lower()
    return next((option for option in options if option.strip(_SIGNS).lower() == plain), None)


def _option(text: str, options: Sequence[str]) -> int:
    stated = _stated(text, place_labels(len(options)))
    if stated is not None:
        return stated
    return min(range(len(options)), key=lambda index: edit_distance(text, options[index]), default=0)


def _stated(text: str, labels: str) -> int | None:
    letter = stated_letter(text, labels)
    if not letter:
        match = _LETTER.search(text)
        letter = match.group(1).upper() if match else (text.strip().upper() if len(text.strip()) == 1 else "")
    return labels.index(letter) if letter and letter in labels else None


def _precision(row: Mapping[str, Any]) -> int:
    value = row.get("precision")
    return int(value) if isinstance(value, int | float) and value == value else 2
