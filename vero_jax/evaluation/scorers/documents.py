"""InfoVQA: ANLS, forgiving about signs and separators around numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vero_jax.evaluation.scorers.edit_distance import anls

_SIGNS = str.maketrans("", "", "$€£%")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d)")
_AND = re.compile(r"\s+(?:and|&)\s+")
_COMMA = re.compile(r"\s*,\s*")
_NUMBER = re.compile(r"(\d*)(?:\.(\d+))?", re.ASCII)


def document_anls(references: Sequence[str], whole: str, answer: str) -> float:
    """The better of two similarities, 0..1.

    Args:
      references: accepted texts.
      whole: the answer's place in the completion, with its boxes, compared by ANLS.
      answer: the extracted answer, compared by ANLS without a final percent sign; 1 where it equals a reference once
        currency, percent, thousands commas, "and" and the spelling of numbers are set aside.
    """
    return max(anls(references, whole), _forgiving(references, answer))


def _forgiving(references: Sequence[str], answer: str) -> float:
    if any(_normal(reference) == _normal(answer) for reference in references) and _normal(answer):
        return 1.0
    return anls([_without_percent(reference) for reference in references], _without_percent(answer))


def _without_percent(text: str) -> str:
    text = text.strip()
    return text[:-1].rstrip() if text.endswith("%") else text


def _normal(text: str) -> str:
    text = " ".join(text.lower().translate(_SIGNS).split())
    text = _COMMA.sub(",", _AND.sub(",", _THOUSANDS.sub("", text))).strip()
    text = text.removeprefix("+").strip()
    match = _NUMBER.fullmatch(text)
    if match and text not in ("", "."):
        whole, decimals = (match.group(1) or "").lstrip("0") or "0", (match.group(2) or "").rstrip("0")
        return f"{whole}.{decimals}" if decimals else whole
    return text
