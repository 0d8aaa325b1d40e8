"""Arithmetic over digits, + - * / ^ and parentheses: a closed grammar with bounded results. No names, no calls."""

from __future__ import annotations

import math
import re
from fractions import Fraction

MAX_LENGTH = 2_000
MAX_DEPTH = 50
MAX_BITS = 20_000
"""Largest numerator or denominator, in bits."""

Value = Fraction | float
"""Exact where only whole numbers were written, a float once a decimal point or a root was involved."""

_TOKEN = re.compile(r"\s*(?:(\d+\.\d*|\.\d+|\d+)|(\*\*|//|[-+*/^()]))", re.ASCII)


class NotArithmetic(ValueError):
    """The text is no arithmetic, or its value is out of bounds."""


def evaluate(text: str) -> Value:
    """The value of an arithmetic expression; "^" and "**" are powers. Raises NotArithmetic."""
    text = text.strip()
    if not text or len(text) > MAX_LENGTH:
        raise NotArithmetic("empty or too long")
    tokens: list[str] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise NotArithmetic(f"unexpected {text[at : at + 10]!r}")
        tokens.append(match.group(1) or match.group(2).replace("^", "**"))
        at = match.end()
    reader = _Reader(tokens)
    value = reader.sum(0)
    if reader.next is not None:
        raise NotArithmetic(f"unexpected {reader.next!r}")
    return value


class _Reader:
    """Recursive descent; every method returns the value of what it has read."""

    def __init__(self, tokens: list[str]):
        self._tokens = tokens
        self._at = 0

    @property
    def next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def take(self) -> str:
        token = self.next
        if token is None:
            raise NotArithmetic("unexpected end")
        self._at += 1
        return token

    def sum(self, depth: int) -> Value:
        value = self.product(depth)
        while self.next in ("+", "-"):
            sign = self.take()
            other = self.product(depth)
            value = bounded(value + other if sign == "+" else value - other)
        return value

    def product(self, depth: int) -> Value:
        value = self.signed(depth)
        while self.next in ("*", "/", "//"):
            sign = self.take()
            other = self.signed(depth)
            if sign == "*":
                value = bounded(value * other)
            else:
                quotient = divide(value, other)
                value = quotient if sign == "/" else Fraction(math.floor(quotient))
        return value

    def signed(self, depth: int) -> Value:
        negative = False
        while self.next in ("+", "-"):
            negative ^= self.take() == "-"
        value = self.power(depth)
        return -value if negative else value

    def power(self, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise NotArithmetic("too deep")
        token = self.take()
        if token == "(":
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise NotArithmetic("unclosed parenthesis")
        else:
            value = number(token)
        if self.next == "**":
            self.take()
            value = raise_to(value, self.signed(depth + 1))
        return value


def number(token: str) -> Value:
    """A decimal or whole number; whole numbers have no leading zeros, as in Python."""
    if "." in token:
        return float(token)
    if not token.isdecimal() or (token[0] == "0" and token.strip("0")) or len(token) > MAX_LENGTH:
        raise NotArithmetic(f"not a number: {token[:20]!r}")
    return Fraction(int(token))


def divide(value: Value, other: Value) -> Value:
    """value / other. Raises NotArithmetic for a zero divisor."""
    if other == 0:
        raise NotArithmetic("division by zero")
    return bounded(value / other)


def raise_to(base: Value, exponent: Value) -> Value:
    """base ** exponent for real results of bounded size. Raises NotArithmetic."""
    try:
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1:
            size = max(base.numerator.bit_length(), base.denominator.bit_length())
            if abs(exponent.numerator) * size > MAX_BITS:
                raise NotArithmetic("power too large")
            return bounded(base**exponent.numerator)
        result = math.pow(base, exponent)
    except (ArithmeticError, ValueError) as error:
        raise NotArithmetic(str(error)) from None
    return bounded(result)


def bounded(value: Value) -> Value:
    """`value`, if it is finite and not too large. Raises NotArithmetic."""
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise NotArithmetic("number too large")
    elif not math.isfinite(value):
        raise NotArithmetic("number too large")
    return value
