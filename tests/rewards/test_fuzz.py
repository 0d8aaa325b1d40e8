"""A short search for slow, raising or undecided scores; `python -m tests.rewards.fuzz` searches for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="the search needs hypothesis (extra: test)")

from tests.rewards import fuzz

REPO = Path(__file__).resolve().parents[2]


def test_a_recipe_is_cut_at_the_longest_text() -> None:
    assert fuzz.text_of([("ab", 2), ("c", 1)]) == "ababc"
    assert len(fuzz.text_of([("ab", 10**6), ("c", 10)])) == fuzz.LONGEST


def test_a_problem_is_seen() -> None:
    sample = {"recipe": [("5", 1)], "frame": "{}", "kind": "numeric", "truth": [("5", 1)], "extra": {}, "strict": False}
    assert fuzz.problem(sample)[0] is None
    assert str(fuzz.problem(sample, slow_s=-1.0)[0]).endswith(" s")


def search(seconds: int) -> tuple[list[str], int]:
    """What a search finds in a process of its own, as rewards are scored, and how many samples it tried."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.rewards.fuzz", "--seconds", str(seconds)],
        cwd=REPO, capture_output=True, text=True, timeout=seconds + 300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    *finds, last = done.stdout.splitlines()
    return finds, int(last.removesuffix(" samples tried").replace(",", ""))


def test_a_short_search_finds_nothing() -> None:
    finds, tried = search(5)
    assert not finds and tried > 0


@pytest.mark.slow
def test_a_search_of_a_minute_finds_nothing() -> None:
    finds, tried = search(60)
    assert not finds and tried > 0
