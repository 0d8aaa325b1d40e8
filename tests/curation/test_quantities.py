"""Numbers in answers: what is one number, what is none, and what cannot be compared."""

from __future__ import annotations

from fractions import Fraction

import pytest

from vero_jax.curation.quantities import (
    COMMA,
    MULTI_VALUE,
    POSITIVE_EXPONENT,
    SCALE_WORD,
    NotOneNumber,
    plain_decimal,
    quantity,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5", "5"), ("-5", "-5"), ("−5", "-5"), ("+5", "5"), ("- 5", "-5"), ("0.5", "0.5"), (".5", "0.5"), ("5.", "5"),
        ("1.20", "1.2"), ("10.0", "10"), ("0", "0"), ("-0", "0"), ("1,234", "1234"), ("1,234,567.89", "1234567.89"),
        ("1 000 000", "1000000"), ("$222.14", "222.14"), ("$1,234.50", "1234.5"), ("-$5", "-5"), ("$-5", "-5"),
        ("€5", "5"), ("USD 5", "5"), ("5 USD", "5"), ("RM 12.50", "12.5"), ("5 dollars", "5"), ("\\$7", "7"),
        ("45%", "45"), ("45 percent", "45"), ("5 %", "5"), ("0.1%", "0.1"), ("45\\%", "45"), ("45% of people", "45"),
        ("5 cm", "5"), ("5cm", "5"), ("about 5 cm", "5"), ("5 kg.", "5"), ("5 cm^2", "5"), ("5 m²", "5"),
        ("60 km/h", "60"), ("9.8 m/s^2", "9.8"), ("5 m s^{-2}", "5"), ("5 N·m", "5"), ("30°C", "30"), ("90°", "90"),
        ("30^\\circ", "30"), ("90 degrees", "90"), ("4 K", "4"), ("12 V", "12"), ("7 in.", "7"), ("5'", "5"),
        ("1.5 years old", "1.5"), ("5\\text{ cm}", "5"), ("\\boxed{5}", "5"), ("$5$", "5"), ("\\(5\\)", "5"),
        ("3/4", "0.75"), ("-3/4", "-0.75"), ("1 1/2", "1.5"), ("-1 1/2", "-1.5"), ("\\frac{3}{4}", "0.75"),
        ("$\\frac{3}{4}$", "0.75"), ("5/8 inch", "0.625"), ("1/3", "0.3333333333"), ("2/3", "0.6666666667"),
        ("1.2e-3", "0.0012"), ("3 x 10^-4", "0.0003"), ("3×10⁻⁴", "0.0003"), ("3 \\times 10^{-4}", "0.0003"),
        ("5 x 10^{-3} m", "0.005"), ("1E-2", "0.01"), ("x = 5", "5"), ("= 5", "5"), ("~7", "7"), ("≈ 7", "7"),
        ("The answer is 5.", "5"), ("Answer: 5", "5"), ("It is 12 meters.", "12"), ("It's 12", "12"),
        ("approximately $5", "5"), ("There are 3 apples.", "3"), ("a total of 12 cars", "12"),
        ("The revenue was $5.20.", "5.2"), ("So the answer is 8", "8"), ("2014", "2014"),
    ],
)  # fmt: skip
def test_a_number_is_read_without_what_stands_around_it(text: str, number: str) -> None:
    found = quantity(text)
    assert found is not None and found.text == number


@pytest.mark.parametrize(
    "text",
    [
        "", "   ", "-", "cat", "week 2", "iPhone 12", "Route 66", "3D", "5th", "2nd floor", "12 Angry Men", "10:30",
        "1.2.3", "21/05/2018", "30-05-2018", "2018.05.21", "007", "00", "01/02", "5/0", "three", "3 apples", "H2O",
        "No. 5", "A 5", "∞", "x", "sqrt(2)", "2\\pi", "9" * 60, "1" * 300, "٣",
    ],
)  # fmt: skip
def test_what_is_no_number_is_none(text: str) -> None:
    assert quantity(text) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10-20", MULTI_VALUE), ("10 to 20", MULTI_VALUE), ("10–20", MULTI_VALUE), ("$10 - $20", MULTI_VALUE),
        ("3 and 5", MULTI_VALUE), ("3 or 4", MULTI_VALUE), ("3, 5", MULTI_VALUE), ("5 ± 2", MULTI_VALUE),
        ("2x3", MULTI_VALUE), ("2 × 3", MULTI_VALUE), ("5 cm and 7 cm", MULTI_VALUE), ("5 ft 10 in", MULTI_VALUE),
        ("5'10\"", MULTI_VALUE), ("2 hours 30 minutes", MULTI_VALUE), ("2 years and 3 months", MULTI_VALUE),
        ("between 3 and 5", MULTI_VALUE), ("from 3 to 5", MULTI_VALUE), ("more than 5", MULTI_VALUE),
        ("at least 5", MULTI_VALUE), ("> 5", MULTI_VALUE), ("≥5", MULTI_VALUE), ("5+", MULTI_VALUE),
        ("2014-2015", MULTI_VALUE), ("10%-20%", MULTI_VALUE),
        ("2.5 x 10^6", POSITIVE_EXPONENT), ("2.5 × 10⁶", POSITIVE_EXPONENT), ("1e6", POSITIVE_EXPONENT),
        ("1E+6", POSITIVE_EXPONENT), ("3 \\times 10^{5}", POSITIVE_EXPONENT), ("2^5", POSITIVE_EXPONENT),
        ("5 million", SCALE_WORD), ("$5 million", SCALE_WORD), ("5k", SCALE_WORD), ("$5m", SCALE_WORD),
        ("12.5 billion USD", SCALE_WORD), ("4K", SCALE_WORD), ("3 hundred", SCALE_WORD),
        ("1,23", COMMA), ("12,34,567", COMMA), ("1.234,56", COMMA),
    ],
)  # fmt: skip
def test_numbers_that_cannot_be_compared_exactly_say_why(text: str, reason: str) -> None:
    with pytest.raises(NotOneNumber) as caught:
        quantity(text)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "number"), [("3 apples", "3"), ("3 red apples.", "3"), ("three", "3"), ("Twelve", "12"), ("0 people", "0")]
)
def test_a_question_for_a_number_lets_words_follow_it(text: str, number: str) -> None:
    found = quantity(text, loose=True)
    assert found is not None and found.text == number


@pytest.mark.parametrize("text", ["3D", "5th", "thirty-odd", "apples", "7up"])
def test_even_then_a_code_is_no_number(text: str) -> None:
    assert quantity(text, loose=True) is None


def test_even_then_several_things_are_not_one() -> None:
    with pytest.raises(NotOneNumber):
        quantity("3 apples and 4 pears", loose=True)


def test_a_percentage_is_marked() -> None:
    assert [found.percent for text in ("45%", "45") if (found := quantity(text))] == [True, False]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(1, 8), "0.125"), (Fraction(-1, 8), "-0.125"), (Fraction(10**15), "1000000000000000"),
        (Fraction(1, 10**9), "0.000000001"), (Fraction(1, 3 * 10**6), "0.0000003333333333"), (Fraction(0), "0"),
        (Fraction(1, 2**40), "0.0000000000009094947017729282379150390625"),
    ],
)  # fmt: skip
def test_decimals_have_no_exponent_and_lose_nothing_that_ends(value: Fraction, text: str) -> None:
    assert plain_decimal(value) == text
