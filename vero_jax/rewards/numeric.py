"""Numbers, exact or within a relative tolerance: reward type numeric."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

from vero_jax.rewards import math_text
from vero_jax.rewards.formula import read_number, same_number
from vero_jax.rewards.literals import as_float

_SAME = 1e-12
MAX_PYTHON_LENGTH = 5_000
_OR = re.compile(r"\s+or\s+")
_NOT_PYTHON = re.compile(r"[\\%${}]")
_UNDERSCORES = re.compile(r"(?<=\d)_(?=\d)")
_HEXADECIMAL = re.compile(r"0[xX][0-9a-fA-F]{1,16}")
_ZERO_IMAGINARY = re.compile(r"\s*\+\s*0\s*\*\s*I$")


def numeric(prediction: str, truth: str, tolerance: Any, *, strict_reference: bool, seconds: float) -> float:
    """1 if the numbers agree: exactly, or within a relative `tolerance` where that is a number >= 0; else 0."""
    allowed = as_float(tolerance)
    try:
        with math_text.time_limit(seconds):
            if allowed is not None and not allowed < 0:
                return float(_within(prediction, truth, allowed, strict_reference))
            return float(_exactly(prediction, truth, strict_reference))
    except math_text.OutOfTime:
        return 0.0


def _exactly(prediction: str, truth: str, strict_reference: bool) -> bool:
    if not strict_reference:
        gold, found = read_number(truth), read_number(prediction)
        if gold is not None and found is not None:
            return same_number(gold, found)
    golds = math_text.extract(truth, math_text.box_first_targets())
    return bool(golds) and math_text.equal(golds, math_text.extract(prediction, math_text.box_first_targets()))


def _within(prediction: str, truth: str, tolerance: float, strict_reference: bool) -> bool:
    golds = _truth_candidates(truth, strict_reference)
    found = _candidates(prediction, strict_reference) if golds else ()
    # An infinite tolerance times a gold of zero is NaN, which never matches, as in the reference.
    return any(
        abs(gold - value) <= (tolerance * abs(gold) if abs(gold) > _SAME else tolerance)
        for gold in golds
        for value in found
    )


@functools.lru_cache(maxsize=256)
def _truth_candidates(truth: str, strict_reference: bool) -> tuple[float, ...]:
    return _candidates(truth, strict_reference)


def _candidates(text: str, strict_reference: bool) -> tuple[float, ...]:
    """The finite numbers that a text may mean. By default a text that is one number, as a whole, means only that."""
    whole = _whole_text(text, strict_reference)
    if whole is not None and not strict_reference:
        number = read_number(text)
        return (whole, whole * 100) if number is not None and number.percent else (whole,)
    extracted = math_text.extract(text, math_text.box_first_targets())
    values = [] if whole is None else [whole]
    values += [value for item in extracted if (value := _real(item, strict_reference)) is not None]
    return tuple(_distinct(values))


def _distinct(values: Sequence[float]) -> list[float]:
    kept: list[float] = []
    for value in values:
        if math.isfinite(value) and all(abs(value - other) > _SAME for other in kept):
            kept.append(value)
    return kept


def _whole_text(text: str, strict_reference: bool) -> float | None:
    """The number that a whole text spells. The reference hands it to sympy's parser, that is to Python; we never do."""
    number = as_float(text)
    if number is not None:
        return number if math.isfinite(number) else None
    if strict_reference:
        return _as_python_would(text)
    found = read_number(text)
    return None if found is None else _finite(found.value)


def _as_python_would(text: str) -> float | None:
    """What Python arithmetic makes of a text, for the harmless part of what it can hold."""
    text = text.strip()
    if _HEXADECIMAL.fullmatch(text):
        return float(int(text, 16))
    if (
        len(text) > MAX_PYTHON_LENGTH
        or not text.isascii()
        or _NOT_PYTHON.search(text)
        or ("," in text and "Rational" not in text)
    ):
        return None
    for choice in _OR.split(text):
        found = read_number(_ZERO_IMAGINARY.sub("", _UNDERSCORES.sub("", choice)))
        if found is None:
            return None
        if found.value:
            return _finite(found.value)
    return 0.0


def _real(item: Any, strict_reference: bool) -> float | None:
    """A candidate out of what was extracted: an expression's value, or a text's number."""
    if isinstance(item, str):
        return _whole_text(item, strict_reference)
    try:
        value = item.evalf(17, maxn=400)
        return _finite(float(value)) if value.is_number and value.is_real else None
    except Exception:
        # Expressions that are no number (sets, equations, symbols) fail in many ways; none of them is a candidate.
        return None


def _finite(value: Any) -> float | None:
    number = as_float(value)
    return number if number is not None and math.isfinite(number) else None
