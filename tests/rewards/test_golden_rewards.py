"""Every scored answer of the reference, in strict and in default mode."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import golden_dir
from tests.rewards.golden_rewards import KINDS, MUST_MATCH, TOLERANCE, cases
from vero_jax.rewards.extraction import answer_text, boxed_answer
from vero_jax.rewards.formula import read_number
from vero_jax.rewards.router import ALIASES, score_response
from vero_jax.rewards.settings import RewardSettings

pytestmark = pytest.mark.golden_rewards


def _agrees(case: dict[str, Any], settings: RewardSettings) -> bool:
    found = score_response(
        case["response"], case["ground_truth"], case["reward_type"], case["extra_info"], settings=settings
    )
    return all(abs(getattr(found, name) - case["expected"][name]) <= TOLERANCE for name in case["expected"])


def _improved_on(case: dict[str, Any]) -> bool:
    """May the default mode differ? Only for aliases, and for numbers that the formula grammar reads as a whole."""
    name = str(case["reward_type"]).strip().lower()
    if name in ALIASES:
        return True
    if name != "numeric":
        return False
    texts = boxed_answer(answer_text(str(case["response"]))), str(case["ground_truth"]).strip()
    return " or " in texts[0] or any(read_number(text) is not None for text in texts)


def test_every_golden_file_is_read_by_some_test() -> None:
    """`cases` of each kind is asked for in this file or in test_judge.py; a file of another kind would go unread."""
    files = {file.name for file in golden_dir("rewards").glob("*.jsonl*")}
    read = {file.name for kind in KINDS for file in golden_dir("rewards").glob(f"golden_{kind}*.jsonl*")}
    assert files == read and all(cases(kind) for kind in KINDS)


def test_strict_mode_is_the_reference() -> None:
    settings = RewardSettings(strict_reference=True)
    wrong = [case["id"] for case in cases("rewards") if case["quirk"] in MUST_MATCH and not _agrees(case, settings)]
    assert not wrong


def test_strict_mode_also_follows_the_safe_part_of_what_may_differ() -> None:
    settings = RewardSettings(strict_reference=True)
    free = [case for case in cases("rewards") if case["quirk"] not in MUST_MATCH]
    assert sum(_agrees(case, settings) for case in free) >= 0.9 * len(free)


def test_default_mode_differs_only_where_it_is_meant_to() -> None:
    kept = [case for case in cases("rewards") if case["quirk"] in MUST_MATCH]
    differing = [case for case in kept if not _agrees(case, RewardSettings())]
    assert not [case["id"] for case in differing if not _improved_on(case)]
    assert len(differing) < 0.02 * len(kept)
