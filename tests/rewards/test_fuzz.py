"""A short search for slow, raising or undecided scores; `python -m tests.rewards.fuzz` searches for longer."""

from __future__ import annotations

import pytest

pytest.importorskip("hypothesis", reason="the search needs hypothesis (extra: test)")

from tests.rewards import fuzz


def test_a_recipe_is_cut_at_the_longest_text() -> None:
    assert fuzz.text_of([("ab", 2), ("c", 1)]) == "ababc"
    assert len(fuzz.text_of([("ab", 10**6), ("c", 10)])) == fuzz.LONGEST


def test_a_problem_is_seen() -> None:
    sample = {"recipe": [("5", 1)], "frame": "{}", "kind": "numeric", "truth": [("5", 1)], "extra": {}, "strict": False}
    assert fuzz.problem(sample)[0] is None
    assert str(fuzz.problem(sample, slow_s=-1.0)[0]).endswith(" s")


def test_a_short_search_finds_nothing() -> None:
    finds: list[str] = []
    assert fuzz.search(8.0, report=finds.append) > 20
    assert not finds


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_of_ten_minutes_finds_nothing() -> None:
    finds: list[str] = []
    fuzz.search(600.0, report=finds.append)
    assert not finds
