"""Sentences and words of English text."""

from __future__ import annotations

import pytest

from vero_jax.rewards.language.detect import detect_language
from vero_jax.rewards.language.sentences import split_sentences
from vero_jax.rewards.language.words import tokenize


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Mr. Smith met Dr. Jones.", ["Mr. Smith met Dr. Jones."]),
        ("It opens at 5 p.m. The door is red.", ["It opens at 5 p.m.", "The door is red."]),
        ("J. K. Rowling wrote it.", ["J. K. Rowling wrote it."]),
        ('He said "stop." Then he left.', ['He said "stop."', "Then he left."]),
        ("(One.) Two.", ["(One.)", "Two."]),
        ("Wait... what is it?", ["Wait... what is it?"]),
        ("It costs 3.50 dollars.", ["It costs 3.50 dollars."]),
        ("  ", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I can't.", ["I", "ca", "n't", "."]),
        ('"Hello," she said.', ["``", "Hello", ",", "''", "she", "said", "."]),
        ("It's 10:30 (or so)...", ["It", "'s", "10:30", "(", "or", "so", ")", "..."]),
        ("cannot -- $5", ["can", "not", "--", "$", "5"]),
        ("the dogs' bowl", ["the", "dogs", "'", "bowl"]),
        ("End. Next one.", ["End", ".", "Next", "one", "."]),
    ],
)
def test_words(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_languages_are_stable() -> None:
    text = "Ein breiter Fluss schlängelt sich durch das Tal."
    assert {detect_language(text) for _ in range(5)} == {"de"}
    assert detect_language("12345") is None
