"""Numbers as the chart benchmarks read them: math-verify's reading, a tolerance, and what a percent sign may mean."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from vero_jax.rewards import math_text

TOLERANCE = 0.05
EXACT = 1e-6

_RANGE = re.compile(r"[$€£¥]?\s*\d[\d,.]*\s*%?\s*(?:-|–|—|−|to)\s*[$€£¥]?\s*\d[\d,.]*\s*%?", re.IGNORECASE)
_DASH = re.compile(r" ?(?:[-–—−]|\bto\b) ?")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
_YEAR = re.compile(r"(?:1[5-9]|20|21)\d\d")
_RATIO_LENGTH = 200
_FIRST_NUMBER = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?")


def parse_number(text: str) -> float | None:
    """The first value that math-verify finds in a text, else that of the text without its final percent sign."""
    text = text.strip()
    value = _extracted(text)
    if value is not None:
        return value
    for sign in ("\\%", "%"):
        if text.endswith(sign):
            return _extracted(text[: -len(sign)].strip())
    return None


def parse_number_or_ratio(text: str) -> float | None:
    """As `parse_number`; "a:b" is a / b where both are numbers."""
    value = parse_number(text)
    if value is None and len(text) <= _RATIO_LENGTH and text.count(":") == 1:
        first, second = (parse_number(part) for part in text.split(":"))
        if first is not None and second:
            return first / second
    return value


def first_number(text: str) -> float | None:
    """The first plain decimal number anywhere in a text."""
    match = _FIRST_NUMBER.search(text)
    return _finite(match.group().replace(",", "")) if match else None


def relaxed_match(prediction: str, target: str) -> bool:
    """ChartQA's relaxed accuracy: within 5 % of the target, else equal texts in lower case.

    Years, ranges ("10-20" is read as -10) and numbers before a unit get the same treatment. Where neither or only one
    of the two has a percent sign, a factor of 100 is forgiven (Methani et al. 2020; Masry et al. 2022).
    """
    if prediction.endswith("."):
        prediction = prediction[:-1]
    found, expected = parse_number_or_ratio(prediction), parse_number_or_ratio(target)
    if found is None or expected is None:
        return prediction.lower() == target.lower()
    return any_within(found, expected, prediction, target, fractions=True)


def strictly_relaxed_match(prediction: str, target: str) -> bool:
    """`relaxed_match` without its leaks: years must be equal, and a range equals only the same range."""
    if prediction.endswith("."):
        prediction = prediction[:-1]
    leaky = leaks(prediction, target)
    return same_year_or_range(prediction, target) if leaky else relaxed_match(prediction, target)


def leaks(prediction: str, target: str) -> bool:
    """Is a tolerance on numbers wrong here? So it is for years, and for ranges, which are read as differences."""
    return is_year(target) or is_range(target) or is_range(prediction)


def is_year(text: str) -> bool:
    return bool(_YEAR.fullmatch(text.strip()))


def is_range(text: str) -> bool:
    text = text.strip()
    return len(text) <= _RATIO_LENGTH and bool(_RANGE.fullmatch(text))


def same_text(first: str, second: str) -> bool:
    """Equal in lower case, whatever dash and spaces a range is written with; "1,999" and "1999" are equal too."""
    return _plain(first) == _plain(second)


def same_year_or_range(prediction: str, target: str) -> bool:
    """`same_text`, or the year itself with further words ("in 2014", "2014.0")."""
    if same_text(prediction, target):
        return True
    return is_year(target) and not is_range(prediction) and parse_number(prediction) == float(target)


def any_within(
    found: float,
    expected: float,
    prediction: str,
    target: str,
    *,
    fractions: bool,
    within: Callable[[float, float], bool] | None = None,
) -> bool:
    """Do two numbers agree under the readings that their percent signs allow?

    Args:
      found, expected: the values of the texts `prediction` and `target`.
      fractions: a number between 0 and 1 may stand for a percentage where no percent sign is written.
      within: the test; by default 5 % of the target, 0.05 where the target is zero.
    """
    within = within or within_relative
    if within(found, expected):
        return True
    predicted_percent, target_percent = prediction.rstrip().endswith("%"), target.rstrip().endswith("%")
    if predicted_percent and not target_percent:
        return within(found * 100, expected) or within(found / 100, expected)
    if target_percent and not predicted_percent:
        return within(found, expected * 100) or within(found, expected / 100)
    if not fractions or predicted_percent:
        return False
    return (0 < found < 1 and within(found * 100, expected)) or (0 < expected < 1 and within(found, expected * 100))


def within_relative(found: float, expected: float) -> bool:
    """|found - expected| <= 5 % of |expected|; for an expected zero |found| <= 0.05."""
    if expected == 0:
        return abs(found) <= TOLERANCE
    return abs(found - expected) / abs(expected) <= TOLERANCE


def within_relative_exact_zero(found: float, expected: float) -> bool:
    """As `within_relative`, but only zero equals zero."""
    return found == 0 if expected == 0 else within_relative(found, expected)


def _plain(text: str) -> str:
    text = _DASH.sub("-", " ".join(text.lower().split()))
    return _THOUSANDS.sub("", text)


def _extracted(text: str) -> float | None:
    found = math_text.extract(text, math_text.default_targets())
    return _real(found[0]) if found else None


def _real(value: object) -> float | None:
    if isinstance(value, str):
        return None
    try:
        # A percentage comes as an unevaluated product, which counts as no number: its digits are read without the sign.
        number = value.evalf(17, maxn=400)  # type: ignore[attr-defined]
        return _finite(number) if number.is_number and number.is_real else None
    except Exception:
        # What is no number (sets, equations, symbols) fails in many ways; none of it is a value.
        return None


def _finite(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
