"""One number in an answer as people write it: units, currency, percent, thousands, fractions, small exponents.

    quantity("$1,234.50")  ->  Quantity(1234.5)          quantity("about 5 cm")  ->  Quantity(5)

A text that holds a number in a form that no exact comparison can use raises `NotOneNumber`, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import re
from fractions import Fraction

MAX_LENGTH = 200
MAX_DIGITS = 40
SIGNIFICANT = 10
"""Digits that are kept of a fraction without an end, such as 1/3."""

MULTI_VALUE = "more than one value"
POSITIVE_EXPONENT = "positive exponent"
SCALE_WORD = "scale word"
COMMA = "comma of unclear meaning"


class NotOneNumber(ValueError):
    """The text speaks of numbers in a form that cannot be compared exactly. `reason` is a short phrase to count by."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number, without what stood around it."""

    value: Fraction
    percent: bool = False
    """Written with a percent sign; the value is that before the sign."""
    rest: str = ""
    """What followed the number and is no known unit ("apples"), "" where nothing did."""

    @property
    def text(self) -> str:
        """The value as a plain decimal."""
        return plain_decimal(self.value)


_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_DASHES = str.maketrans({"−": "-", "–": "-", "—": "-", "－": "-", "×": "x", "⋅": "·", "≈": "~", "∼": "~", "％": "%"})
_DELIMITERS = (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("$", "$"))
_BOXED = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname|rm)\s*\{([^{}]*)\}")
_LATEX_FRACTION = re.compile(r"\\[dtc]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_LATEX_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree")
_LATEX_SPACE = re.compile(r"\\[,;:! ]|~(?=\S*\\)|\\quad")

_LEAD = re.compile(
    r"""(?:
      (?:so|thus|therefore|hence)\b[\s,]*
    | (?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is|:|=)\s*
    | (?:it|that|this)(?:\s+is|'s|\s+was|\s+equals)\s+
    | there\s+(?:is|are|was|were)\s+
    | (?:about|around|approximately|approx\.?|roughly|nearly|almost|circa|ca\.|some|exactly|precisely|only|just)\s+
    | a\s+total\s+of\s+ | (?:the\s+)?total\s*(?:is|:|=)\s*
    | [a-z]\s*= \s*
    | [=~:]\s*
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"[A-Z][^.\d=]*\b(?:is|was|are|were|equals|has|have)\s+(?=[-+$€£¥~\d]|about|approximately|around)"
)
_BOUND = re.compile(
    r"(?:[<>≤≥]|(?:more|less|fewer|greater|higher|lower)\s+than|at\s+(?:least|most)|over|under|above|below|up\s+to"
    r"|between|from)\s*=?\s*[-+$€£¥]?\s*\.?\d",
    re.IGNORECASE,
)
_FEET_AND_INCHES = re.compile(r"\d+\s*['′’]\s*\d")
_SPACED_THOUSANDS = re.compile(r"^[-+]?[1-9]\d{0,2}(?: \d{3})+(?![\d ]*\d)")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_CURRENCY_CODE = r"(?:USD|US\$|EUR|GBP|JPY|CNY|RMB|INR|Rs\.?|RM|CHF|CAD|AUD)"
_QUANTITY = re.compile(
    rf"""
    (?P<sign>[-+]?)\s*
    (?:(?P<currency>[$€£¥₹]|{_CURRENCY_CODE}(?![A-Za-z]))\s*)?
    (?P<sign2>[-+]?)
    (?:
      (?P<whole>\d+)[ -](?P<mixed_top>\d+)\s*/\s*(?P<mixed_bottom>\d+)(?![\d/])
    | (?P<top>{_NUMBER})\s*/\s*(?P<bottom>{_NUMBER})(?![\d/])
    | (?P<number>{_NUMBER})
      (?: [eE](?P<e>[-+]?\d+)(?![\w.])
        | \s*(?:x|\*|·|\\times|\\cdot)\s*10\s*\^?\s*\{{?\s*(?P<power>[-+]?\d+)\s*\}}?
      )?
    )
    (?P<after>.*)
    """,
    re.VERBOSE | re.DOTALL | re.ASCII,
)
_PERCENT = re.compile(r"\s*(?:\\?%|percent\b|pct\b|per\s*cent\b)\s*", re.IGNORECASE)
_SCALE = re.compile(r"(?:hundred|thousand|million|billion|trillion|lakh|crore|mn|bn|[kKMB])(?![A-Za-z/])")
_SECOND = re.compile(
    rf"^(?:-|to\b|and\b|or\b|±|\+/?-|\+-|,|;|/|:|x(?=\s*\d)|\*|by\b|&)\s*[-+]?[$€£¥₹]?\s*(?:{_NUMBER})", re.IGNORECASE
)
_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}")
_UNIT = re.compile(r"""[\s·*/]*([A-Za-zµμΩω°]+|['"′″](?!\S))((?:\^?\{?-?\d\}?|²|³)?)(?![A-Za-z\d])[.]?""")
_WORDS = {
    word: number
    for number, word in enumerate(
        (
            *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
            *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
            "twenty",
        )
    )
}


@functools.cache
def _unit_words() -> frozenset[str]:
    text = importlib.resources.files("vero_jax.curation").joinpath("units.txt").read_text("utf-8")
    return frozenset(text.split())


def quantity(text: str, *, loose: bool = False) -> Quantity | None:
    """The one number that a text states, or None where it states none.

    Args:
      text: an answer: a number with what people put around it ("about", "The answer is", currency, unit, percent).
      loose: the question asks for a number, so any words may follow it ("3 red apples"), and "three" is 3.

    Raises:
      NotOneNumber: a range, several numbers, a power of ten, "million", or a comma that may mean two things.
    """
    if not text.strip() or len(text) > MAX_LENGTH:
        return None
    text, said = _without_lead(_plain(text))
    loose |= said
    word = _WORDS.get(text.rstrip(".").lower())
    if word is not None:
        return Quantity(Fraction(word)) if loose else None
    if _BOUND.match(text) or _FEET_AND_INCHES.match(text):
        raise NotOneNumber(MULTI_VALUE)
    text = _SPACED_THOUSANDS.sub(lambda digits: digits.group().replace(" ", ""), text, count=1)
    match = _QUANTITY.fullmatch(text)
    if match is None or _DATE.match(text) or _has_leading_zero(match):
        return None  # a date, a code such as 007
    after = match["after"]
    if re.match(r"\d|[,.:]\d", after):
        if after.startswith(","):
            raise NotOneNumber(COMMA)
        return None  # a version, a time
    if after.strip() == "+":
        raise NotOneNumber(MULTI_VALUE)
    percent = _PERCENT.match(after)
    rest = (after[percent.end() :] if percent else after).strip()
    _refuse_powers(match, after, rest)
    rest, glued = _without_unit(rest), not after[:1].isspace() and not percent
    if _SECOND.match(rest) or rest[:1].isdigit():
        raise NotOneNumber(MULTI_VALUE)
    glued &= rest == after.strip()  # no unit lies between: "5th", "3D"
    rest = rest.rstrip(".!").strip()
    if rest and (glued or not (loose or (percent and rest.startswith("of ")))):
        return None
    if rest and not _is_phrase(rest):
        if re.search(r"\d", rest):
            raise NotOneNumber(MULTI_VALUE)
        return None
    value = _value(match)
    return None if value is None else Quantity(value, percent is not None, rest)


def _refuse_powers(match: re.Match[str], after: str, rest: str) -> None:
    """Raises for sizes that people write in several ways, of which a verifier would take one."""
    exponent = match["e"] or match["power"]
    if (exponent is not None and int(exponent[:8]) >= 0) or re.match(r"\^|\*\*", rest):
        raise NotOneNumber(POSITIVE_EXPONENT)
    kelvin = rest.startswith("K") and after[:1].isspace()
    money = match["currency"] is not None and re.match(r"(?:m|b|bn|tn)\b", rest)
    if money or (_SCALE.match(rest) and not kelvin):
        raise NotOneNumber(SCALE_WORD)


def plain_decimal(value: Fraction) -> str:
    """Decimal notation without an exponent: exact where it ends, else to ten significant digits."""
    sign, value = ("-" if value < 0 else ""), abs(value)
    scale = _decimals(value.denominator)
    if scale is None:
        scale = SIGNIFICANT
        while value and value * 10 ** (scale - SIGNIFICANT + 1) < 1:
            scale += 1
    digits = str(round(value * 10**scale)).rjust(scale + 1, "0")
    whole, decimals = digits[: len(digits) - scale], digits[len(digits) - scale :].rstrip("0")
    return sign + whole + (f".{decimals}" if decimals else "")


def _decimals(denominator: int) -> int | None:
    """Decimal places that 1 / denominator needs, None where it has no end."""
    count = 0
    while denominator % 10 == 0:
        denominator //= 10
        count += 1
    for factor in (2, 5):
        while denominator % factor == 0:
            denominator //= factor
            count += 1
    return count if denominator == 1 else None


def _plain(text: str) -> str:
    """LaTeX and typographic spellings as plain text."""
    text = text.strip()
    boxed = _BOXED.fullmatch(text)
    text = boxed[1].strip() if boxed else text
    for opening, closing in _DELIMITERS:
        inner = text[len(opening) : len(text) - len(closing)]
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = inner.strip()
            break
    text = _LATEX_TEXT.sub(r" \1 ", text)
    text = _LATEX_FRACTION.sub(r"\1/\2", _LATEX_DEGREES.sub("°", text))
    text = text.replace("\\%", "%").replace("\\$", "$").replace("{,}", ",").replace("\\approx", "~")
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run.group().translate(_SUPERSCRIPTS), text)
    text = _LATEX_SPACE.sub(" ", text).translate(_DASHES)
    return " ".join(text.split())


def _without_lead(text: str) -> tuple[str, bool]:
    """The text without what leads up to a number, and whether that counts things ("There are ...")."""
    counts = False
    while match := _LEAD.match(text) or _SUBJECT.match(text):
        counts |= match.group().lower().startswith(("there ", "a total", "the total", "total"))
        text = text[match.end() :]
    return text.strip(), counts


def _without_unit(text: str) -> str:
    """What is left of a text behind a number when the known units at its beginning are taken away."""
    rest = text
    while rest:
        match = _UNIT.match(rest)
        degrees = re.match(r"\s*°", rest) if match is None else None
        if degrees is not None:
            rest = rest[degrees.end() :]
            continue
        if match is None or match[1].lower() not in _unit_words():
            break
        rest = rest[match.end() :]
    return rest.strip()


def _has_leading_zero(match: re.Match[str]) -> bool:
    return any(
        len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
        for digits in (match["number"], match["whole"], match["top"], match["bottom"])
        if digits
    )


def _is_phrase(text: str) -> bool:
    """Words of a sentence and nothing of mathematics."""
    return re.fullmatch(r"[A-Za-z][A-Za-z',;()\s/-]*[.!]?", text) is not None


def _value(match: re.Match[str]) -> Fraction | None:
    def read(name: str) -> Fraction:
        return Fraction(match[name].replace(",", ""))

    if sum(char.isdigit() for char in match.group()) > MAX_DIGITS:
        return None
    if match["mixed_top"]:
        bottom = read("mixed_bottom")
        value = read("whole") + read("mixed_top") / bottom if bottom else None
    elif match["top"]:
        bottom = read("bottom")
        value = read("top") / bottom if bottom else None
    else:
        exponent = int(match["e"] or match["power"] or 0)
        value = read("number") * Fraction(10) ** exponent if exponent > -MAX_DIGITS else None
    negative = (match["sign"] == "-") != (match["sign2"] == "-")
    return None if value is None else -value if negative else value
