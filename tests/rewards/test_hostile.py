"""No answer of up to 100,000 characters takes a second, raises, or has two scores; the full product is a slow test."""

from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from tests.rewards.hostile import HOSTILE_ANSWERS, LONGEST, HostileRow, hostile_rows, rows_of
from vero_jax.rewards.instructions.checker import CHECKS
from vero_jax.rewards.router import VERIFIERS, score_response
from vero_jax.rewards.settings import RewardSettings

LIMIT_S = 1.0
USUAL = {
    *(kind for kind in VERIFIERS if not kind.startswith("instruction") and kind not in ("counting", "search")),
    "numeric, tolerance",
    "default",
    "grounding, molmo2",
    "clicking, molmo2",
}
"""Labels of the rows that are tried every time: one of each way through the verifiers."""


def _slow(rows: Iterable[HostileRow], strict: bool) -> list[tuple[str, str, float]]:
    """The rows that take too long, in processor time, so that a busy machine does not fail the test."""
    settings, slow = RewardSettings(strict_reference=strict), []
    for row in rows:
        start = time.process_time()
        score = score_response(row.response, row.ground_truth, row.reward_type, row.extra_info, settings=settings)
        seconds = time.process_time() - start
        assert 0.0 <= score.score <= 1.0, row.label
        if seconds > LIMIT_S:
            slow.append((row.name, row.label, seconds))
    return slow


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


def test_hostile_answers_end_in_time() -> None:
    """Every reward type on every answer, and a few classes of instructions on each."""
    classes = sorted(CHECKS)
    rows = []
    for number, (name, text) in enumerate(HOSTILE_ANSWERS.items()):
        some = {classes[index % len(classes)] for index in range(3 * number, 3 * number + 3)}
        rows += [row for row in rows_of(name, text) if row.label in USUAL | some]
    assert not _slow(rows, strict=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strict", [True, False])
def test_hostile_answers_end_in_time_under_everything(strict: bool) -> None:
    assert not _slow(hostile_rows(), strict)


def test_50_000_opened_answers_are_scanned_once() -> None:
    """Longer than the limit of length, as the reference hangs on it."""
    assert not _slow(rows_of("opened answers", "<answer>" * 50_000), strict=False)
