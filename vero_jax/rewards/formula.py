r"""One number, written in any usual way: a closed grammar for plain text and LaTeX that must cover the whole text.

Reads signs (also U+2212), decimals, thousands commas, 1e-3, a \times 10^{b}, percent, currency, degrees, + - * / ^,
fractions (\frac, \dfrac, \tfrac, \frac12, mixed numbers), roots, pi, factorials, sqrt(...) and Rational(a, b). Names
outside this list, calls and attributes do not exist in it, and every intermediate result is bounded.
"""

from __future__ import annotations

import dataclasses
import math
import re
from fractions import Fraction

from vero_jax.rewards.arithmetic import MAX_DEPTH, NotArithmetic, Value, bounded, divide, raise_to

MAX_LENGTH = 500
MAX_DIGITS = 200
MAX_EXPONENT = 400
"""Of the scientific notation."""
MAX_FACTORIAL = 170

_SYMBOLS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "﹣": "-",
        "－": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "÷": "/",
        "∕": "/",
        "π": " pi ",
        "√": " sqrt ",
    }
)
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_SPACES = re.compile(r"\\[,!;: ]|\\left(?![a-z])|\\right(?![a-z])|~|\\quad")
_TIMES = re.compile(r"\\(?:times|cdot)(?![a-z])")
_DIVIDED = re.compile(r"\\div(?![a-z])")
_DEGREES = re.compile(r"(?:°|\^\s*\\circ|\^\s*\{\s*\\circ\s*\})$")
_PERCENT = re.compile(r"\s*(?:%|percent|pct)$", re.IGNORECASE)
_CURRENCY = re.compile(r"^([-+]?)\s*[$€£¥₹]\s*")
_SPACED_THOUSANDS = re.compile(r"[-+]?[1-9]\d{0,2}(?: \d{3})+(?:\.\d+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d{1,2}", re.ASCII)
_FRACTION = re.compile(r"\\[dtc]?frac(?![a-z])")
_TOKEN = re.compile(
    r"""\s*(?:
      (?P<number>(?:\d{1,3}(?:(?:,|\{,\})\d{3})+(?!\d)|\d+)(?:\.\d*)?(?:[eE][-+]?\d+(?![\w.]))?|\.\d+(?:[eE][-+]?\d+(?![\w.]))?)
    | (?P<name>\\?(?:frac|sqrt|pi)(?![a-zA-Z])|Rational(?=\())
    | (?P<mark>\*\*|[-+*/^!(){}\[\],])
    )""",
    re.VERBOSE | re.ASCII,
)


@dataclasses.dataclass(frozen=True)
class Number:
    """A value with what its spelling says about it."""

    value: Value
    """Exact unless a root or pi was involved. A percentage is already divided by 100."""
    decimal: bool
    """Written with a decimal point, or irrational: compared by rounding."""
    percent: bool = False


def read_number(text: str) -> Number | None:
    """The number that the whole of `text` spells, or None."""
    if not text or len(text) > MAX_LENGTH:
        return None
    text = _plain(text)
    percent = _PERCENT.search(text)
    if percent:
        text = text[: percent.start()]
    try:
        reader = _Reader(text)
        value = reader.whole()
    except (NotArithmetic, OverflowError):
        return None
    return Number(value / 100 if percent else value, reader.decimal, bool(percent))


def same_number(gold: Number, prediction: Number) -> bool:
    """Exact for whole numbers and fractions, to six decimals where a decimal point is involved.

    A percentage equals its hundredth and the same number without the sign.
    """
    if gold.percent != prediction.percent:
        plain = dataclasses.replace(gold, percent=False), dataclasses.replace(prediction, percent=False)
        scaled = tuple(_unscaled(number) for number in (gold, prediction))
        return same_number(*plain) or same_number(scaled[0], scaled[1])
    a, b = gold.value, prediction.value
    if a == b:
        return True
    if isinstance(a, float) or isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9) or round(float(a), 6) == round(float(b), 6)
    if not (gold.decimal or prediction.decimal) or _whole(gold) or _whole(prediction):
        return False
    return round(a, 6) == round(b, 6)


def _unscaled(number: Number) -> Number:
    return Number(number.value * 100, number.decimal) if number.percent else number


def _whole(number: Number) -> bool:
    return not number.decimal and isinstance(number.value, Fraction) and number.value.denominator == 1


def _plain(text: str) -> str:
    """LaTeX and typographic spellings in the grammar's own."""
    text = text.strip()
    for opening, closing in _DELIMITERS:
        if len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    text = text.translate(_SYMBOLS).replace("\\%", "%").replace("\\$", "$").replace("{,}", ",")
    text = _DIVIDED.sub("/", _TIMES.sub("*", _SPACES.sub(" ", text))).strip()
    text = _CURRENCY.sub(r"\1", _DEGREES.sub("", text).strip())
    if _SPACED_THOUSANDS.fullmatch(text):
        text = text.replace(" ", "")
    elif _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    return _FRACTION.sub(r"\\frac", text).strip()


class _Reader:
    """Recursive descent over the tokens of one text."""

    def __init__(self, text: str):
        self._tokens: list[tuple[str, str]] = []
        self._at = 0
        self.decimal = False
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise NotArithmetic(f"unexpected {text[at : at + 10]!r}")
            kind = match.lastgroup or ""
            self._tokens.append((kind, match.group(kind).lstrip("\\").replace("^", "**")))
            at = match.end()

    def whole(self) -> Value:
        value = self._sum(0)
        if self._at < len(self._tokens):
            raise NotArithmetic(f"unexpected {self._next!r}")
        return value

    @property
    def _next(self) -> str | None:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else None

    def _take(self, wanted: str | None = None) -> tuple[str, str]:
        if self._at >= len(self._tokens) or (wanted is not None and self._next != wanted):
            raise NotArithmetic(f"expected {wanted or 'more'}")
        self._at += 1
        return self._tokens[self._at - 1]

    def _sum(self, depth: int) -> Value:
        value = self._product(depth)
        while self._next in ("+", "-"):
            sign = self._take()[1]
            other = self._product(depth)
            value = bounded(value + other if sign == "+" else value - other)
        return value

    def _product(self, depth: int) -> Value:
        value = self._signed(depth)
        while True:
            if self._next in ("*", "/"):
                sign = self._take()[1]
                other = self._signed(depth)
                value = bounded(value * other) if sign == "*" else divide(value, other)
            elif self._next in ("sqrt", "pi"):  # 2\sqrt{3}, 2\pi
                value = bounded(value * self._power(depth))
            else:
                return value

    def _signed(self, depth: int) -> Value:
        negative = False
        while self._next in ("+", "-"):
            negative ^= self._take()[1] == "-"
        value = self._power(depth)
        return -value if negative else value

    def _power(self, depth: int) -> Value:
        value = self._atom(depth)
        while self._next == "!":
            self._take()
            value = _factorial(value)
        if self._next == "**":
            self._take()
            value = raise_to(value, self._group(depth + 1) if self._next == "{" else self._signed(depth + 1))
            self.decimal |= isinstance(value, float)
        return value

    def _atom(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise NotArithmetic("too deep")
        kind, token = self._take()
        if kind == "number":
            whole = self._number(token)
            # 1\frac{1}{2}: a whole number right before a fraction is a mixed number.
            if self._next == "frac" and whole.denominator == 1 and "." not in token:
                return bounded(whole + self._atom(depth + 1))
            return whole
        if token == "frac":
            numerator = self._argument(depth)
            return divide(numerator, self._argument(depth))
        if token == "Rational":
            self._take("(")
            numerator = self._sum(depth + 1)
            self._take(",")
            value = divide(numerator, self._sum(depth + 1))
            self._take(")")
            return value
        if token == "pi":
            self.decimal = True
            return math.pi
        if token == "sqrt":
            return self._root(depth)
        if token in ("(", "{"):
            value = self._sum(depth + 1)
            self._take(")" if token == "(" else "}")
            return value
        raise NotArithmetic(f"unexpected {token!r}")

    def _root(self, depth: int) -> Value:
        degree: Value = Fraction(2)
        if self._next == "[":
            self._take()
            degree = self._sum(depth + 1)
            self._take("]")
        value = self._argument(depth)
        if value < 0 or degree <= 0:
            raise NotArithmetic("root of a negative number")
        root = raise_to(float(value), 1 / float(degree))
        if isinstance(value, Fraction) and isinstance(degree, Fraction) and degree.denominator == 1 and degree < 100:
            nearest = Fraction(round(root))
            if nearest ** int(degree) == value:
                return nearest
        self.decimal = True
        return root

    def _argument(self, depth: int) -> Value:
        r"""What follows \frac or \sqrt: a group, or a single digit where LaTeX takes one."""
        if self._next in ("{", "("):
            return self._group(depth + 1)
        kind, token = self._take()
        if kind != "number" or not token.isdecimal():
            raise NotArithmetic("expected a group")
        if len(token) > 1:  # \frac12 is 1 over 2
            self._at -= 1
            self._tokens[self._at] = (kind, token[1:])
        return Fraction(int(token[0]))

    def _group(self, depth: int) -> Value:
        closing = "}" if self._take()[1] == "{" else ")"
        value = self._sum(depth)
        self._take(closing)
        return value

    def _number(self, token: str) -> Fraction:
        token = token.replace(",", "").replace("{", "").replace("}", "")
        digits, _, exponent = token.lower().partition("e")
        if len(digits) > MAX_DIGITS or len(exponent) > 5 or abs(int(exponent or 0)) > MAX_EXPONENT:
            raise NotArithmetic("number too large")
        self.decimal |= "." in digits or bool(exponent)
        return Fraction(token)


def _factorial(value: Value) -> Fraction:
    if not isinstance(value, Fraction) or value.denominator != 1 or not 0 <= value <= MAX_FACTORIAL:
        raise NotArithmetic("factorial out of bounds")
    return Fraction(math.factorial(int(value)))
