"""Means over answers, groups, benchmarks; what was not run, not judged or left out."""

from __future__ import annotations

import csv
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import golden_dir
from vero_jax.errors import UserError
from vero_jax.evaluation import aggregation
from vero_jax.evaluation.benchmark import CATEGORIES, Answer, Row
from vero_jax.evaluation.published import published
from vero_jax.evaluation.registry import all_benchmarks, benchmark, table_rows
from vero_jax.evaluation.results import Result, not_run, result, score_answers, table
from vero_jax.evaluation.score import UNJUDGED, Score, right
from vero_jax.evaluation.variants import VARIANTS

REASONING = VARIANTS["reasoning"]


def _results(figures: dict[str, float]) -> list[Result]:
    return [Result(task, figures[task.row], figures[task.row]) for task in all_benchmarks().values()]


@pytest.mark.golden_eval
def test_the_published_categories_and_overall_figures_come_out() -> None:
    with (golden_dir("eval") / "paper_table.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    models = [name for name in lines[0] if name.startswith(("Q25VL", "Q3VL", "Vero-", "MiMoVL-7B-RL"))]
    assert len(models) == 8
    for version in {line["version"] for line in lines}:
        own = {line["benchmark"]: line for line in lines if line["version"] == version}
        averages = {
            line["category"]: line for line in lines if line["version"] == version and "Avg" in line["benchmark"]
        }
        assert set(table_rows()) == set(own) - {"Category Avg", "Overall Avg"}
        for model in models:
            found = table(_results({row: float(own[row][model]) for row in table_rows()}))
            assert found.overall[0] == pytest.approx(float(averages["Overall"][model]), abs=0.1)
            for category in CATEGORIES:
                assert found.categories[category][0] == pytest.approx(float(averages[category][model]), abs=0.1)
            assert (found.covered, found.total) == (30, 30)


def test_there_are_32_tasks_in_30_rows_and_9_rows_need_a_judge() -> None:
    tasks = all_benchmarks().values()
    assert len(tasks) == 32 and len(table_rows()) == 30
    assert len({task.row for task in tasks if task.judge is not None}) == 9
    assert all((task.scorer is None) != (task.judge is None) for task in tasks)
    counts = [sum(category == of for of in table_rows().values()) for category in CATEGORIES]
    assert counts == [6, 4, 5, 4, 8, 3]


def test_a_benchmark_that_was_not_run_is_left_out_and_never_counts_as_zero() -> None:
    figures = dict.fromkeys(table_rows(), 50.0)
    results = [
        not_run(found.benchmark, "no data") if found.benchmark.row == "ChartQA" else found
        for found in _results(figures)
    ]
    found = table(results)
    assert found.rows["ChartQA"] == (None, None)
    assert found.overall == (50.0, 50.0) and found.covered == 29
    assert found.categories["Chart & OCR"] == (50.0, 50.0)
    assert found.summary() == "overall 50.0 (strict 50.0) over 29 of 30 benchmarks"


def test_rows_without_a_strict_figure_are_told_apart() -> None:
    results = [
        dataclasses.replace(found, strict=None) if found.benchmark.row == "FVQA" else found
        for found in _results(dict.fromkeys(table_rows(), 50.0))
    ]
    found = table(results)
    assert (found.covered, found.strictly) == (30, 29) and found.rows["FVQA"] == (50.0, None)
    assert found.summary() == "overall 50.0 (strict 50.0 over 29) over 30 of 30 benchmarks"


def test_a_row_of_several_tasks_needs_all_of_them() -> None:
    results = [found for found in _results(dict.fromkeys(table_rows(), 50.0)) if found.benchmark.row == "VisualProbe"]
    assert table(results).rows["VisualProbe"] == (50.0, 50.0)
    assert table(results[:2]).rows["VisualProbe"] == (None, None)


def test_without_any_result_there_is_no_overall_figure() -> None:
    assert table([]).overall == (None, None)
    assert table([]).summary() == "no overall figure: none of 30 benchmarks was run"


def test_answers_that_nobody_judged_are_counted_and_are_no_zeros() -> None:
    task = benchmark("mmvetv2")
    found = result(task, [Score(0.8, 0.8), UNJUDGED, UNJUDGED])
    assert (found.score, found.strict, found.answers, found.unjudged) == (80.0, 80.0, 3, 2)
    assert result(task, [UNJUDGED]).score is None and result(task, [UNJUDGED]).reason == "no answer was judged"
    assert result(task, []).score is None


def test_an_unreadable_reply_is_wrong_for_the_reference_and_unjudged_for_us() -> None:
    task = benchmark("chartmuseum")
    row = {"question": "Which?", "answer": "14", "reasoning_type": "visual"}
    replies = iter(["Yes", "No", "I cannot say that.", "Yes and no, I think"])
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return next(replies)

    scores = score_answers(task, [row] * 4, ["</think>\\boxed{14}"] * 4, REASONING, ask)
    assert [(score.value, score.strict) for score in scores] == [(1.0, 1.0), (0.0, 0.0), (0.0, None), (1.0, 1.0)]
    found = result(task, scores)
    assert (found.score, found.unjudged) == (50.0, 1) and found.strict == pytest.approx(200 / 3)
    assert len(asked) == 4 and all("14" in prompt and "Which?" in prompt for prompt in asked)


def test_a_judge_that_gives_no_reply_leaves_the_answer_unjudged() -> None:
    for name in ("chartmuseum", "charxiv", "simplevqa_en", "mmvetv2", "mia_bench", "fvqa"):
        row = {
            "question": "Which?",
            "answer": "14",
            "reasoning_q": "Which?",
            "reasoning_a": "14",
            "reasoning_q_source": 1,
            "instruction": "Write.",
            "components": ["a"],
            "component_weight": [10],
            "prompt": [{"content": "Who?"}],
            "reward_model": {"ground_truth": "14", "candidate_answers": []},
        }
        (score,) = score_answers(benchmark(name), [row], ["14"], REASONING, lambda prompt: None)
        assert score == UNJUDGED, name


def test_a_row_without_what_scoring_needs_is_left_out_with_the_reason() -> None:
    task = benchmark("chartqa")
    scores = score_answers(task, [{"question": "How many?"}, {"answer": ["14"]}], ["14", "14"], REASONING)
    assert scores[0].value is None and "KeyError" in scores[0].missing
    found = result(task, scores)
    assert found.score == 100.0 and found.left_out == {"row not usable": 1}


def test_our_own_mistakes_are_not_hidden_as_bad_rows() -> None:
    def broken(answer: Answer, row: Row) -> Score:
        raise ZeroDivisionError

    task = dataclasses.replace(benchmark("chartqa"), scorer=broken)
    with pytest.raises(ZeroDivisionError):
        task.score(task.answer("14", REASONING), {})


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    from vero_jax.evaluation.variants import variant

    with pytest.raises(UserError, match=r"no benchmark is called 'chartq'; there are .*chartqa"):
        benchmark("chartq")
    with pytest.raises(UserError, match="no evaluation variant is called 'x'; there are reasoning, "):
        variant("x")


def test_groups_count_alike_where_the_benchmark_says_so() -> None:
    scores = [right(True, group="a")] * 9 + [right(False, group="b")]
    assert benchmark("blink").aggregate(scores, False)["score"] == 0.5
    assert benchmark("cv_bench").aggregate(scores, False) == {"score": 0.9, "a": 1.0, "b": 0.0}


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abc")), min_size=1))
def test_means_lie_between_the_smallest_and_the_largest_score(pairs: list[tuple[float, str]]) -> None:
    scores = [Score(value, None, group=group) for value, group in pairs]
    lowest, highest = min(value for value, _ in pairs), max(value for value, _ in pairs)
    for aggregate in (aggregation.mean, aggregation.mean_of_groups, aggregation.micro_and_macro):
        figures = aggregate(scores, False)
        assert all(lowest - 1e-9 <= value <= highest + 1e-9 for value in figures.values())
        assert aggregate(scores, True)["score"] == 0.0  # nothing was judged strictly


def test_ratings_are_published_as_the_paper_does_it() -> None:
    """Three of its baselines are ratings that their makers report: 7.7, 8.0 and 6.3 of 10."""
    task = benchmark("mm_mt_bench")
    bases = {key: figures.base for key, figures in published()["MM-MTBench"].items()}
    for key, rating in (("qwen3", 7.7), ("qwen3_thinking", 8.0), ("qwen25", 6.3)):
        assert round(task.published(rating), 1) == bases[key]
    assert (task.published(1.0), task.published(10.0), task.half_marks) == (0.0, 100.0, 5.5)
