"""MathVision: equal strings, equal tuples of numbers, or values that agree to two decimals. No text is run as code."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vero_jax.evaluation.extraction import Mode, final_answer
from vero_jax.evaluation.scorers.letters import place_labels, stated_letter
from vero_jax.rewards.formula import read_number

MAX_LENGTH = 2_000
DECIMALS = 2

_CUE = re.compile(r"(?:the\s+)?(?:final\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is|:)\s*", re.IGNORECASE)
_OPTION = re.compile(r"^(?:option|choice|answer)\s+(?=\(?[A-Z]\b)", re.IGNORECASE)
_LEADING = re.compile(r"^(?:\((?P<marked>[A-Z])\)(?:\s|\.?\s*$)|(?P<bare>[A-Z])(?:\.?\s*$|\n|\.\s))")
_TRAILING = re.compile(r"\(([A-Z])\)\.?\s*$")
_SENTENCE_END = re.compile(r"\.\s+[A-Z]")
_UNITS = re.compile(r"(?:\^\s*\{?\s*\\circ\s*\}?|\\degree|°|(?<=\d)\s*(?:degrees|cm|units)$)")
_DROPPED = ("\\left", "\\right", "\\!", "\\,", "\\;", "\\displaystyle", "\\mathrm", "\\text", "$", "\\%", "%")
_ROOT = re.compile(r"\\sqrt\s*(\w)")
_BARE_FRACTION = re.compile(r"\\frac\s*\d")
_TUPLE = re.compile(r"[(\[]([^()\[\]]*)[)\]]")


def mathvision_equal(prediction: str, answer: str, options: Sequence[str]) -> bool:
    """Is the prediction the answer, or the text of the option whose letter the answer is?"""
    prediction = prediction[-MAX_LENGTH:].strip()
    truths = [answer]
    labels = place_labels(len(options))
    if labels and answer in labels:
        truths.append(options[labels.index(answer)])
        letter = stated_letter(prediction, labels) or _trimmed_letter(prediction, labels)
        if letter == answer:
            return True
    found = _plain(_core(prediction))
    return bool(found) and any(_same(found, _plain(final_answer(truth, Mode.LAST_BOX))) for truth in truths)


def _core(text: str) -> str:
    """The formula in a prediction: after "the answer is", in a box, to the sentence's end, after the last "="."""
    cues = list(_CUE.finditer(text))
    if cues:
        text = text[cues[-1].end() :]
    text = final_answer(text, Mode.LAST_BOX)
    end = _SENTENCE_END.search(text)
    if end:
        text = text[: end.start()]
    text = text.strip().rstrip(".").strip()
    for mark in ("\\approx", "="):
        text = text.rsplit(mark, 1)[-1]
    return text.strip()


def _trimmed_letter(text: str, labels: str) -> str:
    text = _OPTION.sub("", _core(text) if _CUE.search(text) else text.strip())
    leading, trailing = _LEADING.match(text), _TRAILING.search(text)
    letter = (leading.group("marked") or leading.group("bare")) if leading else trailing.group(1) if trailing else ""
    return letter if letter and letter in labels else ""


def _plain(text: str) -> str:
    text = _UNITS.sub("", text.strip())
    for mark in _DROPPED:
        text = text.replace(mark, "")
    text = _ROOT.sub(r"\\sqrt{\1}", text)
    return text.replace(" ", "").lower()


def _same(found: str, expected: str) -> bool:
    if found == expected:
        return True
    pair = _tuple(found), _tuple(expected)
    if pair[0] is not None and pair[0] == pair[1]:
        return True
    values = _value(found), _value(expected)
    if values[0] is None or values[1] is None:
        return False
    return round(values[0], DECIMALS) == round(values[1], DECIMALS)


def _tuple(text: str) -> tuple[float, ...] | None:
    match = _TUPLE.fullmatch(text)
    if not match:
        return None
    values = [_value(part) for part in match.group(1).split(",")]
    return None if None in values else tuple(value for value in values if value is not None)


def _value(text: str) -> float | None:
    # "\frac12" is not read by the reference's grammar either.
    number = None if _BARE_FRACTION.search(text) else read_number(text)
    return None if number is None else float(number.value)
