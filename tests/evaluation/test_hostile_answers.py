"""Answers and replies that are meant to hang, crash or outwit a scorer; and how fast ordinary ones are scored."""

from __future__ import annotations

import ast
import inspect
import pkgutil
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vero_jax.evaluation
from tests.evaluation.golden_eval import cases, is_ruled, task
from tests.evaluation.hostile_texts import MORE_ANSWERS, ruled_rows
from tests.rewards.hostile import HOSTILE_ANSWERS
from vero_jax.evaluation import judging
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.scorers import constraints
from vero_jax.evaluation.variants import VARIANTS

WORST_SECONDS = 5.0
SPEED = 60.0 / 10_000
"""Seconds for a rule-scored answer."""

WORDY = "The chart shows values of 12.5, 14% and 1,200 in 2019. I compare option A with option B. " * 60

SLOW_ANSWERS = [pytest.param(name, marks=pytest.mark.slow) for name in HOSTILE_ANSWERS]


@pytest.mark.parametrize("name", [*SLOW_ANSWERS, *MORE_ANSWERS])
def test_no_answer_takes_long_or_raises(name: str) -> None:
    text = {**HOSTILE_ANSWERS, **MORE_ANSWERS}[name]
    for benchmark, row in ruled_rows():
        variant = VARIANTS["qwen3_zs" if benchmark.name == "screenspotpro" else "reasoning"]
        start = time.process_time()
        score = benchmark.score(benchmark.answer(f"</think><answer>\\boxed{{{text}}}</answer>", variant), row)
        assert time.process_time() - start < WORST_SECONDS, benchmark.name
        assert isinstance(score, Score) and score.missing == "" and score.value is not None, benchmark.name


@pytest.mark.parametrize("name", [*HOSTILE_ANSWERS, *MORE_ANSWERS])
def test_no_reply_of_a_judge_takes_long_or_raises(name: str) -> None:
    text = {**HOSTILE_ANSWERS, **MORE_ANSWERS}[name]
    readers = (
        judging.yes_or_no,
        judging.extracted_and_score,
        judging.three_way,
        judging.share,
        judging.rating,
        lambda reply: judging.components(reply, ["a", "b"]),
        lambda reply: judging.components(reply, ["a", "b"], strict=True),
        judging.right_or_wrong,
        judging.constraint_scores,
        judging.summary_verdict,
        judging.zero_or_one,
    )
    for reply in (text, '{"score": ' + text, "summary " + text):
        for read in readers:
            start = time.process_time()
            read(reply)
            assert time.process_time() - start < WORST_SECONDS, read


@pytest.mark.parametrize("name", [*HOSTILE_ANSWERS, *MORE_ANSWERS])
def test_no_text_rule_takes_long(name: str) -> None:
    text = {**HOSTILE_ANSWERS, **MORE_ANSWERS}[name]
    for rule in constraints.RULES:
        parameters: list[Any] = [1, 3]
        if "keyword" in rule:
            parameters = [["a", "one"], 1, 3]
        elif rule.endswith("_list"):
            parameters = [[[1, 3]]]
        elif rule.endswith("substrings"):
            parameters = [["x"]]
        elif "substring" in rule:
            parameters = ["x"]
        elif "precision" in rule:
            parameters = [2]
        elif "arabic" in rule:
            parameters = []
        start = time.process_time()
        assert isinstance(constraints.check(rule, text, parameters), bool)
        assert time.process_time() - start < WORST_SECONDS, rule


def test_ordinary_answers_are_scored_faster_than_ten_thousand_a_minute() -> None:
    work = [(task(case), case) for case in cases("eval") if is_ruled(case)]
    start = time.process_time()
    for number in range(2 * len(work)):
        benchmark, case = work[number % len(work)]
        # A number in each makes every answer a new one: nothing that is remembered may make this look fast. The second
        # half has neither tags nor boxes, so that all of its text is searched.
        answer = str(case["response"]).replace("\\boxed{", f"\\boxed{{{number} ")
        if number >= len(work):
            answer = f"{WORDY} {number}. So it is {answer}".replace("</think>", "").replace("\\boxed", "")
        benchmark.score(benchmark.answer(answer, VARIANTS["reasoning"]), case["doc"])
    assert (time.process_time() - start) / (2 * len(work)) < SPEED


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="0123456789.,%-:[]{}()\\ABCDEabcde \n", max_size=60))
def test_any_text_has_a_score_between_0_and_1(text: str) -> None:
    for benchmark, row in ruled_rows():
        score = benchmark.score(benchmark.answer(text, VARIANTS["reasoning"]), row)
        assert score.value is not None and 0.0 <= score.value <= 1.0, benchmark.name
        assert score.strict is not None and 0.0 <= score.strict <= 1.0, benchmark.name


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_any_reply_is_read_or_left_unread(text: str) -> None:
    assert judging.yes_or_no(text) in (None, True, False)
    found = judging.share(text)
    assert found is None or 0.0 <= found <= 1.0
    graded = judging.components(text, ["a"])
    assert graded is None or 0.0 <= graded[1] <= 1.0


def test_no_file_of_the_evaluation_evaluates_text() -> None:
    forbidden = {"eval", "exec", "compile", "sympify", "parse_expr", "__import__"}
    for module in pkgutil.walk_packages(vero_jax.evaluation.__path__, "vero_jax.evaluation."):
        tree = ast.parse(Path(inspect.getfile(import_module(module.name))).read_text("utf-8"))
        called = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not called & forbidden, module.name
