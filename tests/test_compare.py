"""Two evaluations compared: exact differences, honest intervals, and refusals in one sentence."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.results_folders import answer, not_asked, score_of, write_folder
from vero_jax.compare import compare, main, table
from vero_jax.evaluation import paired
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.paired import Paired, difference, mean_difference
from vero_jax.evaluation.registry import all_benchmarks, benchmark
from vero_jax.evaluation.score import Score

PROBES = [f"visual_probe_{level}" for level in ("easy", "medium", "hard")]


def plain(values) -> list[list[Score]]:
    """One sample for each question."""
    return [[Score(float(value), float(value))] for value in values]


def rows(task: str, values, **fields) -> list[dict]:
    return [answer(task, index, value, **fields) for index, value in enumerate(values)]


def two(tmp_path: Path, a: dict, b: dict, **settings) -> tuple[Path, Path]:
    return write_folder(tmp_path / "a", a), write_folder(tmp_path / "b", b, **settings)


def test_interval_is_that_of_scipys_paired_bootstrap():
    rng = np.random.default_rng(3)
    a = rng.random(80)
    b = np.clip(a + rng.normal(0.05, 0.2, 80), 0, 1)
    ours = difference(Paired(benchmark("chartqa"), plain(a), plain(b)), 20_000, seed=0)
    theirs = stats.bootstrap(
        (a, b), lambda x, y, axis: (y - x).mean(axis=axis), paired=True, vectorized=True, n_resamples=20_000,
        method="percentile", rng=np.random.default_rng(5),
    )  # fmt: skip
    assert ours.value == pytest.approx(100 * (b - a).mean(), abs=1e-9)
    assert ours.low == pytest.approx(100 * theirs.confidence_interval.low, abs=0.15)
    assert ours.high == pytest.approx(100 * theirs.confidence_interval.high, abs=0.15)
    assert ours.draws.std() == pytest.approx(100 * theirs.standard_error, rel=0.03)


def test_draws_have_the_variance_of_the_mean_of_pairs():
    """The variance over draws of a mean of n differences is their variance over n, exactly, in the limit."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 400))
    found = difference(Paired(benchmark("chartqa"), plain(a), plain(b)), 20_000, seed=1)
    assert found.draws.var() == pytest.approx(1e4 * (b - a).var() / 400, rel=0.04)
    assert found.draws.mean() == pytest.approx(found.value, abs=5 * found.draws.std() / 20_000**0.5)
    assert found.above == pytest.approx(stats.norm.sf(0, found.value, found.draws.std()), abs=0.02)


def test_interval_covers_the_true_difference_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    hits = 0
    for trial in range(300):
        skill = rng.random(100)
        a = rng.random(100) < 0.8 * skill
        b = rng.random(100) < 0.8 * skill + 0.1
        found = difference(Paired(benchmark("chartqa"), plain(a), plain(b)), 500, seed=trial)
        hits += found.low <= 10 <= found.high
    assert 0.91 <= hits / 300 <= 0.98  # three standard deviations around 95 % are 3.8 points


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", list(all_benchmarks()))
def test_figures_are_those_of_the_benchmarks_aggregator(name, strict):
    """What is computed for all draws at once is the aggregator's figure, with gaps, groups and uneven samples."""
    task = benchmark(name)
    rng = np.random.default_rng(0)
    full = 100 / task.scale

    def score() -> Score:
        value, other = (None if rng.random() < 0.1 else float(rng.integers(-1, 3)) * full / 2 for _ in range(2))
        right = float(rng.random() < 0.5)
        return Score(value, other, group="abc"[rng.integers(3)], parts={"right": right, "wrong": 1 - right})

    sides = [[[score() for _ in range(rng.integers(1, 4))] for _ in range(30)] for _ in range(2)]
    found = difference(Paired(task, *sides, strict=strict), 10, seed=0)
    for value, side in ((found.a, sides[0]), (found.b, sides[1])):
        figure = task.aggregate([item for scores in side for item in scores], strict)["score"]
        assert value == pytest.approx(task.published(figure), abs=0.006)  # rounded to 4 digits at most


def median(scores, strict):
    return {"score": float(np.median([score.value for score in scores]))}


def test_an_aggregator_of_ones_own_is_called_for_fewer_draws():
    own = dataclasses.replace(benchmark("chartqa"), aggregate=median)
    rng = np.random.default_rng(0)
    a = rng.random(60)
    found = difference(Paired(own, plain(a), plain(a + 0.3)), 5_000, seed=0)
    assert len(found.draws) == paired.SLOW_DRAWS
    assert found.value == pytest.approx(30) and found.draws == pytest.approx(30)


def test_called_draws_agree_with_those_at_once():
    def same(scores, strict):
        return benchmark("blink").aggregate(scores, strict)

    rng = np.random.default_rng(2)
    sides = [[[Score(float(rng.random() < p), 0.0, group="abcd"[i % 4])] for i in range(60)] for p in (0.4, 0.6)]
    blink = benchmark("blink")
    once = difference(Paired(blink, *sides), 20_000, seed=0)
    called = difference(Paired(dataclasses.replace(blink, aggregate=same), *sides), 1_000, seed=0)
    assert called.value == pytest.approx(once.value)
    assert called.draws.std() == pytest.approx(once.draws.std(), rel=0.1)


def test_the_mean_of_benchmarks_is_surer_than_each_of_them():
    rng = np.random.default_rng(0)
    parts = []
    for name in ("chartqa", "erqa", "countqa", "evochart"):
        a, b = rng.integers(0, 2, (2, 200))
        parts.append(difference(Paired(benchmark(name), plain(a), plain(b)), 10_000, seed=0))
    whole = mean_difference(parts)
    assert whole.value == pytest.approx(np.mean([part.value for part in parts]))
    assert whole.draws.var() == pytest.approx(sum(part.draws.var() for part in parts) / 16, rel=0.06)


def test_same_seed_same_draws_whatever_else_is_compared(tmp_path):
    values = [0, 1] * 10
    alone = compare(*two(tmp_path / "1", {"erqa": rows("erqa", values)}, {"erqa": rows("erqa", values[::-1])}))
    many = compare(
        *two(
            tmp_path / "2",
            {"chartqa": rows("chartqa", values), "erqa": rows("erqa", values)},
            {"chartqa": rows("chartqa", values), "erqa": rows("erqa", values[::-1])},
        )
    )
    by_name = {line.name: line.difference for line in many.rows}
    assert np.array_equal(by_name["ERQA"].draws, alone.rows[0].difference.draws)
    assert by_name["ChartQA"].low == by_name["ChartQA"].high == 0 and by_name["ChartQA"].above == 0


def test_questions_are_paired_by_id_and_the_rest_is_counted(tmp_path):
    a = [*rows("chartqa", [1, 0, 0, 1, None]), not_asked("chartqa", 5), answer("chartqa", 6, 1)]
    b = [*rows("chartqa", [0, 1, 1, 1, 1])[::-1], answer("chartqa", 5, 1), answer("chartqa", 7, 0)]
    a[4]["missing"] = "unjudged"
    (line,) = compare(*two(tmp_path, {"chartqa": a}, {"chartqa": b})).rows
    assert (line.shared, line.only_a, line.only_b, line.no_figure) == (4, 1, 2, 1)
    assert (line.turned_right, line.turned_wrong) == (2, 1)
    assert (line.difference.a, line.difference.b) == (50, 75)


def test_strict_compares_the_strict_figures(tmp_path):
    folders = two(
        tmp_path, {"chartqa": rows("chartqa", [1, 1], strict=0.0)}, {"chartqa": rows("chartqa", [1, 1], strict=1.0)}
    )
    assert compare(*folders).overall.value == 0
    assert compare(*folders, strict=True).overall.value == 100


def test_samples_of_a_question_stay_together(tmp_path):
    """Four samples that always agree are as sure as one, not four times as sure."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2, (2, 100)).tolist()
    many = [[{**row, "sample": k} for row in rows("chartqa", side) for k in range(4)] for side in (a, b)]
    four = compare(*two(tmp_path / "4", {"chartqa": many[0]}, {"chartqa": many[1]}))
    one = compare(*two(tmp_path / "1", {"chartqa": rows("chartqa", a)}, {"chartqa": rows("chartqa", b)}))
    assert four.overall.value == pytest.approx(one.overall.value)
    assert (four.overall.low, four.overall.high) == pytest.approx((one.overall.low, one.overall.high))
    assert four.rows[0].shared == 100


def test_a_row_of_three_tasks_is_their_mean_and_counts_only_when_complete(tmp_path):
    a = {name: rows(name, [0, 0, 0, 1]) for name in PROBES}
    b = {name: rows(name, [int(name != PROBES[0]), 0, 0, 1]) for name in PROBES}
    whole = compare(*two(tmp_path / "whole", a, b))
    assert [line.name for line in whole.rows] == ["VisualProbe"] and len(whole.parts) == 3
    assert whole.overall.value == pytest.approx(np.mean([0, 25, 25]))
    assert whole.rows[0].shared == 12 and whole.rows[0].turned_right == 2
    del b[PROBES[0]]
    folders = two(tmp_path / "part", {**a, "chartqa": rows("chartqa", [0])}, {**b, "chartqa": rows("chartqa", [1])})
    part = compare(*folders)
    assert [line.name for line in part.rows] == ["ChartQA"]
    assert {line.name for line in part.parts} == set(PROBES[1:])
    assert part.summary() == "overall +100.0 [+100.0, +100.0] over 1 of 30 benchmarks"


def test_overall_is_the_mean_of_rows_not_of_questions_or_categories(tmp_path):
    a = {"chartqa": rows("chartqa", [0] * 9), "evochart": rows("evochart", [0]), "erqa": rows("erqa", [0])}
    b = {"chartqa": rows("chartqa", [1] * 9), "evochart": rows("evochart", [0]), "erqa": rows("erqa", [0])}
    found = compare(*two(tmp_path, a, b))
    assert found.overall.value == pytest.approx(100 / 3)
    assert found.categories["Chart & OCR"].value == pytest.approx(50)
    assert set(found.categories) == {"Chart & OCR", "Spatial & Action"}


def test_a_folder_is_no_file_for_figures(tmp_path, capsys):
    assert main([str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --json {tmp_path} is a folder: give a file\n"


def test_a_file_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").touch()
    folders = [write_folder(tmp_path / name, {"chartqa": rows("chartqa", [1, 0])}) for name in "ab"]
    assert main([*map(str, folders), "--draws", "10", "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert "cannot write" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_command_prints_an_aligned_table_and_json(tmp_path, capsys):
    a = {"chartqa": rows("chartqa", [0, 1, 0, 1] * 5), "erqa": rows("erqa", [1, 0] * 5)}
    b = {"chartqa": rows("chartqa", [1, 1, 0, 1] * 5), "erqa": rows("erqa", [1, 0] * 5)}
    folders = two(tmp_path, a, b, limit=20, variant="qwen3_zs")
    out = tmp_path / "out.json"
    assert main([*map(str, folders), "--draws", "500", "--json", str(out)]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    head = next(line for line in lines if "95 % interval" in line)
    row = next(line for line in lines if line.startswith("  ChartQA"))
    assert row.split()[:4] == ["ChartQA", "50.0", "75.0", "+25.0"]
    assert row.index("+25.0") + len("+25.0") == head.index("B - A") + len("B - A")
    assert "over 2 of 30 benchmarks" in printed.out and "500 draws of questions, seed 0" in printed.out
    assert "differ in variant: reasoning and qwen3_zs" in printed.err and "differ in limit: 50 and 20" in printed.err
    found = json.loads(out.read_text())
    assert found["covered"] == 2 and found["rows"][0]["difference"]["difference"] == pytest.approx(25)
    assert found["overall"]["draws"] == 500 and found["rows"][0]["turned_right"] == 5


def test_no_difference_is_printed_without_a_sign_of_one(tmp_path):
    folders = two(tmp_path, {"erqa": rows("erqa", [1, 0])}, {"erqa": rows("erqa", [1, 0])})
    printed = table(compare(*folders, draws=100))
    assert "[0.0, 0.0]" in printed and "-0.0" not in printed and "+0.0" not in printed


def test_other_questions_under_the_same_id_are_told(tmp_path):
    b = rows("chartqa", [1, 1, 0])
    b[1]["prompt"] = "Something else?"
    found = compare(*two(tmp_path, {"chartqa": rows("chartqa", [1, 0, 0])}, {"chartqa": b}))
    assert found.warnings == ("chartqa: 1 of 3 questions have another text or picture",)


def test_settings_that_differ_are_told(tmp_path):
    tasks = {"chartqa": rows("chartqa", [1, 0])}
    judge = {"model": "Qwen3-32B", "base_url": "http://one:8000/v1"}
    first = {"limit": 5, "questions": ["chartqa-0"], "data": "x"}
    asked = {"chartqa": first, "erqa": first}
    other = {"chartqa": {**first, "limit": None, "data": "y"}}
    a = write_folder(tmp_path / "a", tasks, judge=judge, asked=asked)
    b = write_folder(tmp_path / "b", tasks, judge={**judge, "base_url": "http://two:8000/v1"}, asked=other)
    c = write_folder(tmp_path / "c", tasks, judge={**judge, "model": "Qwen3-8B"}, asked=asked, max_pixels=1000)
    assert compare(a, b, draws=10).warnings == (
        "chartqa: the data sets' files differ",
        "chartqa: limits of questions differ: 5 and none",
    )
    assert compare(a, c, draws=10).warnings == (
        "the folders differ in max_pixels: none and 1000",
        'the folders differ in judge: {"model": "Qwen3-32B"} and {"model": "Qwen3-8B"}',
    )


def refused(capsys, *arguments) -> str:
    assert main([str(item) for item in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    return printed


def test_what_cannot_be_compared_is_refused_in_one_sentence(tmp_path, capsys):
    a, b = two(tmp_path, {"chartqa": rows("chartqa", [1])}, {"erqa": rows("erqa", [1])})
    link = tmp_path / "link"
    link.symlink_to(a)
    assert "same folder" in refused(capsys, a, link)
    assert "share no question" in refused(capsys, a, b)
    assert "no results folder" in refused(capsys, a, tmp_path / "nowhere")
    assert "--draws" in refused(capsys, a, b, "--draws", "0")
    assert "--seed" in refused(capsys, a, b, "--seed", "-1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "chartqa-0", "samp', "chartqa.jsonl"),
        ("[]", "chartqa.jsonl"),
        (json.dumps(answer("chartqa", 0, float("nan"))), "value is nan"),
        (json.dumps({**answer("chartqa", 0, 1), "strict": "1"}), "strict is '1'"),
        (json.dumps({**answer("chartqa", 0, 1), "parts": [1]}), "parts is [1]"),
        (json.dumps({**answer("chartqa", 0, 1), "id": None}), "without an id"),
        (json.dumps(answer("chartqa", 0, 1)) + "\n" + json.dumps(answer("chartqa", 0, 1)), "there twice"),
    ],
)
def test_broken_rows_are_refused_with_their_place(tmp_path, capsys, line, words):
    a, b = two(tmp_path, {"chartqa": rows("chartqa", [1])}, {"chartqa": rows("chartqa", [1])})
    (b / "questions" / "chartqa.jsonl").write_text(line + "\n")
    assert words in refused(capsys, a, b)


def test_thirty_benchmarks_of_a_thousand_questions_take_seconds():
    """Processor time; 2.6 to 2.9 s on one core of a cloud machine."""
    rng = np.random.default_rng(0)
    tasks: list[Benchmark] = list(all_benchmarks().values())[:30]
    pairs = [Paired(task, plain(rng.integers(0, 2, 1000)), plain(rng.integers(0, 2, 1000))) for task in tasks]
    start = time.process_time()
    for pair in pairs:
        difference(pair, 10_000, seed=0)
    assert time.process_time() - start < 12


def test_rebuilt_scores_give_the_published_figure(tmp_path):
    """With all questions shared, A's and B's figures are those in results.json."""
    rng = np.random.default_rng(0)
    sides = [
        [answer("blink", i, float(rng.random() < 0.5), group=f"task {i % 3}") for i in range(20)] for _ in range(2)
    ]
    folders = two(tmp_path, {"blink": sides[0]}, {"blink": sides[1]})
    (line,) = compare(*folders, draws=10).rows
    for value, folder, side in zip((line.difference.a, line.difference.b), folders, sides, strict=True):
        stored = json.loads((folder / "results.json").read_text())["tasks"]["blink"]["score"]
        assert value == pytest.approx(stored)
        assert stored == pytest.approx(
            100 * benchmark("blink").aggregate([score_of(row) for row in side], False)["score"]
        )
