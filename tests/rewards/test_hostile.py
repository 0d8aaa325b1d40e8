"""No answer of up to 100,000 characters takes a second, raises, or has two scores; the full product is a slow test."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.rewards.hostile import (
    HOSTILE_ANSWERS,
    LONGEST,
    USUAL,
    HostileRow,
    hostile_rows,
    rows_of,
    slow_rows,
    usual_rows,
)
from vero_jax.rewards.instructions.checker import CHECKS
from vero_jax.rewards.router import VERIFIERS

LIMIT_S = 1.0


def _slow(rows: Callable[[], Iterable[HostileRow]], strict: bool) -> list[tuple[str, str, float]]:
    """The rows that take too long in a process of their own, as rewards are scored.

    In this one, other tests' objects make every pass of the garbage collector a long one.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(slow_rows, rows, strict, LIMIT_S).result()


def test_the_answers_that_must_not_hang_are_among_the_hostile_ones() -> None:
    texts = set(HOSTILE_ANSWERS.values())
    assert {"9**9**9", "99999999!", "9" * 100_000} <= texts
    assert all(len(text) <= LONGEST + 2 for text in texts)
    assert HOSTILE_ANSWERS["opened answers"].count("<answer>") >= 10_000
    assert HOSTILE_ANSWERS["nested LaTeX"].count("\\sqrt{") == 10_000
    assert HOSTILE_ANSWERS["brackets"].count("[") == 50_000


def test_every_hostile_row_has_a_label_of_its_own_and_all_types_are_tried() -> None:
    rows = list(rows_of("power tower", "9**9**9"))
    assert {row.reward_type for row in rows} >= set(VERIFIERS) - {"instruction_following_llm_judge"}
    assert {row.label for row in rows} >= USUAL | set(CHECKS)


@pytest.mark.slow
def test_hostile_answers_end_in_time() -> None:
    """Every reward type on every answer, and a few classes of instructions on each."""
    assert not _slow(usual_rows, strict=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strict", [True, False])
def test_hostile_answers_end_in_time_under_everything(strict: bool) -> None:
    assert not _slow(hostile_rows, strict)


def test_50_000_opened_answers_are_scanned_once() -> None:
    """Longer than the limit of length, as the reference hangs on it."""
    assert not _slow(functools.partial(rows_of, "opened answers", "<answer>" * 50_000), strict=False)
