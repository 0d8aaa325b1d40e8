"""Every scored case of the reference's VeroEval, and every prompt that it rendered."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import golden_dir
from tests.evaluation.golden_eval import cases, is_random, is_ruled, outcome, same, score_of, task
from vero_jax.evaluation.benchmarks.charxiv import number_instruction
from vero_jax.evaluation.variants import VARIANTS

pytestmark = pytest.mark.golden_eval


def test_every_golden_file_is_read() -> None:
    names = {file.name for file in golden_dir("eval").iterdir()}
    read = {file.name for kind in ("eval", "prompts") for file in golden_dir("eval").glob(f"golden_{kind}*.jsonl*")}
    assert names == read | {"paper_table.csv"}


def test_every_case_comes_out_as_in_the_reference() -> None:
    wrong = [case["id"] for case in cases("eval") if not is_random(case) and not same(outcome(case), case["expected"])]
    assert not wrong
    assert len(cases("eval")) >= 898


def test_where_the_reference_guesses_an_answer_without_a_letter_is_wrong() -> None:
    guesses = [case for case in cases("eval") if is_random(case)]
    assert guesses
    assert [case["id"] for case in guesses if score_of(case).value != 0.0] == []


def test_the_same_answer_always_has_the_same_score() -> None:
    ruled = [case for case in cases("eval") if is_ruled(case)]
    assert [score_of(case) for case in ruled] == [score_of(case) for case in ruled]


def test_the_documented_list_of_strict_differences_is_the_whole_list(repo: Path) -> None:
    table = (repo / "docs" / "evaluation.md").read_text("utf-8").split("## Golden cases that differ")[1]
    documented = set(re.findall(r"\bg\d{4}\b", table))
    differing = {
        case["id"] for case in cases("eval") if is_ruled(case) and score_of(case).value != score_of(case).strict
    }
    assert differing == documented


def test_every_rendered_prompt_is_the_reference_s() -> None:
    wrong = []
    for case in cases("prompts"):
        if case["scorer"] == "number_instruction":
            found = number_instruction(case["doc"]["answer"])
        else:
            found = task(case).prompt(case["doc"], VARIANTS[case["variant"]])
        expected = case["expected"]
        if case["scorer"] == "messages":
            # A picture's part is bare here; the reference's has an empty address.
            expected = [
                {
                    **turn,
                    "content": [{"type": "image"} if part["type"] == "image" else part for part in turn["content"]],
                }
                for turn in expected
            ]
        if found != expected:
            wrong.append((case["id"], found))
    assert not wrong
    assert len(cases("prompts")) >= 59


def test_the_question_is_the_last_part_of_one_user_message() -> None:
    for case in cases("prompts"):
        if case["scorer"] == "prompt":
            messages = task(case).messages(case["doc"], VARIANTS["reasoning"], image_count=2)
            assert [part["type"] for part in messages[0]["content"]] == ["image", "image", "text"]
            assert messages[0]["content"][-1]["text"] == case["expected"]
            assert len(messages) == 1 and messages[0]["role"] == "user"
