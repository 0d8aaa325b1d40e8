"""A short search for slow, raising or undecided scores; `python -m tests.rewards.fuzz` searches for longer."""

from __future__ import annotations

import json
import os
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


def search(count: int, folder: Path, seconds: int) -> list[str]:
    """What a search of `count` samples, always the same, finds in a process of its own, as rewards are scored."""
    last = folder / "last.json"
    command = [sys.executable, "-m", "tests.rewards.fuzz", "--samples", str(count), "--last", str(last)]
    try:
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        sample = last.read_text() if last.exists() else "no sample"
        raise AssertionError(f"not done after {seconds} s, in hand: {sample}; {error.stdout}, {error.stderr}") from None
    assert done.returncode == 0, f"{done.stderr[-2000:]}, in hand: {last.read_text() if last.exists() else None}"
    *finds, summary = done.stdout.splitlines()
    assert summary == f"{count:,} samples tried"
    return finds


def test_a_short_search_finds_nothing(tmp_path: Path) -> None:
    assert not search(300, tmp_path, 400)


@pytest.mark.slow
def test_a_longer_search_finds_nothing(tmp_path: Path) -> None:
    assert not search(12_000, tmp_path, 1200)


def test_a_call_that_never_ends_is_named(tmp_path: Path) -> None:
    program = (
        "import re, pathlib; from tests.rewards import fuzz; fuzz.STUCK_S = 0.5\n"
        "with fuzz.watched({'kind': 'numeric'}, pathlib.Path('last.json')): re.match('(a*)*b', 'a' * 40)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )  # fmt: skip
    assert done.returncode == 1 and "match" in done.stderr
    assert json.loads((tmp_path / "last.json").read_text()) == {"kind": "numeric"}
