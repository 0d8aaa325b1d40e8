"""math-verify's way of finding numbers and formulas in text, without its evaluation of plain expressions as Python.

math-verify's patterns choose the place, LaTeX goes through its ANTLR grammar, and what looks like arithmetic ("3*4-1")
through the closed grammar of `arithmetic.py`. sympy's own text parser, which is Python's `eval`, is never called.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, TypeAlias

import sympy
from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, convert_to_pct
from math_verify.grader import sympy_expr_eq
from math_verify.parser import (
    ExprExtractionConfig,
    LatexExtractionConfig,
    StringExtractionConfig,
    extract_latex,
    extract_string,
    get_extraction_regexes,
)

from vero_jax.rewards.arithmetic import NotArithmetic, evaluate

MAX_LENGTH = 5_000
"""Longer texts are read from their end only: some of the patterns are quadratic."""
MAX_LATEX_LENGTH = 2_000
MAX_DIGITS = 2_000
REMEMBERED = 1024
"""Parsed texts and compared pairs that are kept: the answers of a group share a truth, and many are equal."""
MAX_REMEMBERED_LENGTH = 256
FLOAT_DECIMALS = 6
"""Floats are compared after rounding to this many decimals."""
COMPARISON_DIGITS = 15
_CLOCKS_APART = 0.02
"""Seconds by which the clock of a timer may be ahead of a thread's."""

Target: TypeAlias = LatexExtractionConfig | ExprExtractionConfig | StringExtractionConfig

_NUMBER_PARTS = ("1", "2", "3")
_DIGITS = re.compile(r"\d+")
_EXPONENT = re.compile(r"\^\s*\{?\s*\(?\s*-?\s*(\d+)")
_TOWER = re.compile(r"\^\s*(?:\{[^{}]{0,80}\^|[({]?\s*-?[\w.]{1,40}[)}]?\s*\^)")
_FACTORIAL = re.compile(r"!|\\binom|\\prod|\\sum|\\int|\\lim|\\Gamma")


class OutOfTime(BaseException):
    """The time of one formula is over. Not an Exception, so that the libraries' own handlers let it through."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTime in the body after `seconds` of this thread's processor time, or half a second more.

    So neither a busy machine nor another thread of the process changes a score.

    Works in the main thread of a process that can take signals; elsewhere there is no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    running, end = True, time.thread_time() + seconds

    def ring(*_: object) -> None:
        # The timer counts the time of all threads, by a clock of its own.
        if running and time.thread_time() >= end - _CLOCKS_APART:
            raise OutOfTime

    # An exception that is raised inside a callback of the garbage collector, or a finalizer, is printed and lost. So
    # the collector rests meanwhile, and the alarm rings again every half second.
    collects = gc.isenabled()
    gc.disable()
    handler = signal.signal(signal.SIGPROF, ring)
    left, interval = signal.setitimer(signal.ITIMER_PROF, seconds, 0.5)
    try:
        try:
            yield
        finally:
            running = False  # the alarm may ring at the very end: what is put back below must be put back
    finally:
        signal.setitimer(signal.ITIMER_PROF, left, interval)
        signal.signal(signal.SIGPROF, handler)
        if collects:
            gc.enable()


@functools.cache
def box_first_targets() -> tuple[Target, ...]:
    """LaTeX with boxes before everything else, and plain expressions."""
    return (
        LatexExtractionConfig(boxed_match_priority=0, normalization_config=_normalization()),
        ExprExtractionConfig(),
    )


@functools.cache
def default_targets() -> tuple[Target, ...]:
    """LaTeX with boxes after stated answers, and plain expressions."""
    return (LatexExtractionConfig(normalization_config=_normalization()), ExprExtractionConfig())


@functools.cache
def letter_targets(letters: str) -> tuple[Target, ...]:
    """Single capital letters standing alone."""
    return (StringExtractionConfig(strings=tuple(letters)),)


def extract(text: str, targets: Sequence[Target]) -> tuple[Any, ...]:
    """What the best pattern found: (value, its text), (text,) where no value could be made of it, or nothing.

    Values are sympy expressions, or a lower-case letter for letter targets. Of texts longer than MAX_LENGTH only the
    end is read.
    """
    if len(text) <= MAX_REMEMBERED_LENGTH:
        return _remembered(text, tuple(targets))
    return _extract(text[-MAX_LENGTH:], tuple(targets))


@functools.lru_cache(maxsize=REMEMBERED)
def _remembered(text: str, targets: tuple[Target, ...]) -> tuple[Any, ...]:
    return _extract(text, targets)


def _extract(text: str, targets: tuple[Target, ...]) -> tuple[Any, ...]:
    texts: list[str] = []
    for same_priority in _patterns(targets):
        matches = [(match, target) for pattern, target in same_priority for match in pattern.finditer(text)]
        # The rightmost end first, then the leftmost start.
        matches.sort(key=lambda entry: (entry[0].end(), -entry[0].start()), reverse=True)
        for match, target in matches:
            try:
                value, source = _value(match, target)
            except Unreadable:
                return ()
            if source:
                texts.append(source)
            if value is not None:
                return (value, texts[0]) if texts else (value,)
    return tuple(texts[:1])


@functools.cache
def _patterns(targets: tuple[Target, ...]) -> list[list[tuple[re.Pattern[str], Target]]]:
    """math-verify's patterns, the most telling first; those of one list have the same priority.

    Kept here because math-verify keeps those of one target only, and compiles them again when two kinds alternate.
    """
    entries = [
        (priority, pattern, target) for found, target in get_extraction_regexes(targets) for pattern, priority in found
    ]
    entries.sort(key=lambda entry: entry[0])
    return [
        [(pattern, target) for _, pattern, target in group]
        for _, group in itertools.groupby(entries, key=lambda entry: entry[0])
    ]


def equal(golds: Sequence[Any], predictions: Sequence[Any]) -> bool:
    """Is any gold equal to any prediction? Texts compare with texts, expressions with expressions."""
    return any(_equal(gold, prediction) for gold, prediction in itertools.product(golds, predictions))


class Unreadable(ValueError):
    """A number that stops the whole reading, as in math-verify: digits of other scripts, or thousands of them."""


def _equal(gold: Any, prediction: Any) -> bool:
    if isinstance(gold, str) and isinstance(prediction, str):
        return bool(gold.strip()) and gold.strip() == prediction.strip()
    if isinstance(gold, str) or isinstance(prediction, str):
        return False
    return _same_expression(gold, prediction)


@functools.lru_cache(maxsize=REMEMBERED, typed=True)
def _same_expression(gold: Any, prediction: Any) -> bool:
    try:
        return bool(sympy_expr_eq(gold, prediction, FLOAT_DECIMALS, COMPARISON_DIGITS, False, True))
    except Exception:
        # sympy raises all kinds of errors on odd expressions; two that can't be compared are not equal.
        return False


def _value(match: re.Match[str], target: Target) -> tuple[Any, str]:
    if isinstance(target, StringExtractionConfig):
        return extract_string(match, target)
    if isinstance(target, LatexExtractionConfig):
        if not latex_is_bounded(match.group()):
            return None, ""
        try:
            return extract_latex(match, target)
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise Unreadable(str(error)) from None
    return _plain_value(match.groupdict())


def _plain_value(groups: dict[str, str | None]) -> tuple[Any, str]:
    integer = next((found for part in _NUMBER_PARTS if (found := groups.get(f"integer{part}"))), "")
    decimal = next((found for part in _NUMBER_PARTS if (found := groups.get(f"decimal{part}"))), "")
    if integer or decimal:
        source = (integer.replace(",", "").replace(" ", "").lstrip("0") or "0") + decimal.replace(",", ".")
        if not source.isascii() or len(source) > MAX_DIGITS:
            raise Unreadable("not a plain decimal number")
        number = sympy.Float(source) if decimal else sympy.Integer(int(source))
        return (convert_to_pct(number) if groups.get("percent") else number), source
    source = groups.get("expr") or ""
    try:
        return _to_sympy(evaluate(source.replace("\n", " "))), source
    except NotArithmetic:
        return None, source


def _to_sympy(value: Fraction | float) -> Any:
    if isinstance(value, Fraction):
        return sympy.Rational(value.numerator, value.denominator)
    return sympy.Float(value)


def latex_is_bounded(latex: str) -> bool:
    """Is this LaTeX short and free of powers, factorials and sums that would take for ever?"""
    if len(latex) > MAX_LATEX_LENGTH or _TOWER.search(latex):
        return False
    if any(len(run) > 400 for run in _DIGITS.findall(latex)):
        return False
    if any(len(exponent) > 4 for exponent in _EXPONENT.findall(latex)):
        return False
    return not _FACTORIAL.search(latex) or not any(len(run) > 3 for run in _DIGITS.findall(latex))


def _normalization() -> NormalizationConfig:
    return NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="all", equations=False
    )
