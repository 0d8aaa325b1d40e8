"""Options of multiple-choice questions, and questions for yes or no."""

from __future__ import annotations

import pytest

from vero_jax.curation.options import accepted, is_binary, options


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Which?\nA. cat\nB. dog", {"A": "cat", "B": "dog"}),
        ("Which?\nA) cat\nB) big dog\nC) 5", {"A": "cat", "B": "big dog", "C": "5"}),
        ("Which?\n(A) cat\n(B) dog", {"A": "cat", "B": "dog"}),
        ("Which?\nA: cat\nB: dog\nAnswer with a letter.", {"A": "cat", "B": "dog"}),
        ("Which animal? (A) dog (B) cat", {"A": "dog", "B": "cat"}),
        ("Which? A. dog, B. cat, C. cow", {"A": "dog", "B": "cat", "C": "cow"}),
        ("Find angle A. Options:\nA. 30\nB. 40", {"A": "30", "B": "40"}),
        ("Point A. is left of C. Why?", {}),
        ("Which?\nA. cat\nC. dog", {}),
        ("Which?\nB. cat\nC. dog", {}),
        ("Which?\nA. cat", {}),
        ("What is it?", {}),
        ("", {}),
    ],
)
def test_options_are_lettered_from_a_without_a_gap(question: str, found: dict[str, str]) -> None:
    assert options(question) == found


@pytest.mark.parametrize(
    ("question", "truth", "binary"),
    [
        ("Is it?", "yes", True), ("Is it?", "No.", True), ("Is it?", "TRUE", True), ("Is it?", "['no', 'No']", True),
        ("Is it?\nA. Yes\nB. No", "B", True), ("Is it?\nA. True\nB. False", "A", True),
        ("Is it?\nA. Yes\nB. No\nC. Maybe", "B", False), ("Which?", "cat", False), ("Is it?", "['no', 'maybe']", False),
        ("Is it?", "", False), ("Which?", "norway", False),
    ],
)  # fmt: skip
def test_a_question_is_binary_by_its_answer_or_its_options(question: str, truth: str, binary: bool) -> None:
    assert is_binary(question, truth) == binary


@pytest.mark.parametrize(
    ("truth", "texts"),
    [("['a', 'b']", ["a", "b"]), ("[1, 2]", ["1", "2"]), ("cat", ["cat"]), ("[broken", ["[broken"]), ("[]", ["[]"])],
)
def test_a_list_literal_is_its_items(truth: str, texts: list[str]) -> None:
    assert accepted(truth) == texts
