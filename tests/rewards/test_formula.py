"""The closed number grammars: what they read, what they refuse."""

from __future__ import annotations

import threading
import time
from fractions import Fraction

import pytest

from vero_jax.rewards import math_text
from vero_jax.rewards.arithmetic import NotArithmetic, evaluate
from vero_jax.rewards.formula import read_number, same_number
from vero_jax.rewards.numeric import numeric


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-5", -5),
        ("−5", -5),
        ("1,234.5", Fraction("1234.5")),
        ("1 234", 1234),
        ("12,34", Fraction("12.34")),
        ("3{,}000", 3000),
        ("1.2e-3", Fraction("0.0012")),
        ("1.2 \\times 10^{-3}", Fraction("0.0012")),
        ("$\\dfrac{13}{12}$", Fraction(13, 12)),
        ("\\frac12", Fraction(1, 2)),
        ("1\\frac{1}{2}", Fraction(3, 2)),
        ("\\sqrt{4}", 2),
        ("\\sqrt[3]{27}", 3),
        ("5!", 120),
        ("45^\\circ", 45),
        ("\\$1,234", 1234),
        ("50\\%", Fraction(1, 2)),
        ("12 ÷ 4", 3),
        ("Rational(84,2)", 42),
        ("2^{10}", 1024),
    ],
)
def test_usual_spellings_are_read(text: str, value: Fraction) -> None:
    number = read_number(text)
    assert number is not None and number.value == value


def test_irrational_numbers() -> None:
    for text, value in (("2\\pi", 6.283185307), ("2\\sqrt{3}", 3.464101615), ("√2", 1.414213562)):
        number = read_number(text)
        assert number is not None and float(number.value) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5 cm",
        "x",
        "5 or 6",
        "__import__('os')",
        "().__class__",
        "9**9**9",
        "99999999!",
        "1e999999999",
        "1/0",
        "(" * 200 + "1" + ")" * 200,
        "9" * 1000,
        "lambda: 1",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    assert read_number(text) is None


@pytest.mark.parametrize(
    ("gold", "prediction", "same"),
    [
        ("1/3", "0.333333", True),
        ("1/3", "0.33", False),
        ("5.0", "5.0000001", True),
        ("1", "0.9999999", False),
        ("50%", "0.5", True),
        ("50%", "50", True),
        ("50%", "0.5%", False),
        ("2", "2\\sqrt{3}", False),
        ("2\\sqrt{3}", "$2\\sqrt{3}$", True),
    ],
)
def test_equality(gold: str, prediction: str, same: bool) -> None:
    left, right = read_number(gold), read_number(prediction)
    assert left is not None and right is not None
    assert same_number(left, right) is same


def test_plain_arithmetic_follows_the_usual_precedence() -> None:
    assert evaluate("1/3+1/6") == Fraction(1, 2)
    assert evaluate("2^3^2") == 512
    assert evaluate("-2**2") == -4
    assert evaluate("0.1+0.2") == pytest.approx(0.3)


@pytest.mark.parametrize("text", ["", "1+", "9**9**9", "1/0", "007", "3(4)", "a", "1" * 5000])
def test_bad_arithmetic_is_refused(text: str) -> None:
    with pytest.raises(NotArithmetic):
        evaluate(text)


def test_the_tolerance_is_relative_to_the_truth() -> None:
    def score(prediction: str, truth: str, tolerance: object) -> float:
        return numeric(prediction, truth, tolerance, strict_reference=False, seconds=2.0)

    assert score("105", "100", 0.05) == 1.0
    assert score("106", "100", 0.05) == 0.0
    assert score("-5", "5", 0.5) == 0.0
    assert score("101", "100", "not a number") == 0.0
    assert score("45%", "0.45", 0.05) == 1.0


def use_the_processor(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_a_limit_of_time_counts_the_own_thread_only():
    over = threading.Event()

    def busy() -> None:
        while not over.is_set():
            pass

    other = threading.Thread(target=busy)
    other.start()
    try:
        with math_text.time_limit(0.5):
            use_the_processor(0.4)  # about 0.8 of the process
        with pytest.raises(math_text.OutOfTime), math_text.time_limit(0.5):
            use_the_processor(60)
    finally:
        over.set()
        other.join()
