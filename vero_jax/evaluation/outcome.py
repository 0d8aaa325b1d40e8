"""From the answers on disk to scored rows, the figures of benchmarks, and results.json.

With k samples of each question a figure is the mean of k runs (Avg@k); its standard error is that of this mean over the
runs, std(ddof=1) / sqrt(k), and there is none for a single run.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vero_jax.evaluation.benchmark import Answer, Benchmark
from vero_jax.evaluation.judge_desk import JudgeDesk
from vero_jax.evaluation.judges import replies, requests
from vero_jax.evaluation.loaders import order
from vero_jax.evaluation.registry import table_rows
from vero_jax.evaluation.results import Result, Table, not_run, own_answers, result, table
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.variants import Variant

Records = Mapping[str, Mapping[str, Any]]
"""What `answers/<task>.jsonl` holds, by question: {"prompt", "images", "row", "responses": [{"text", "tokens",
"stop_reason"}]}, or {"missing", "detail"} of a question that could not be asked."""


@dataclasses.dataclass(frozen=True)
class Item:
    """One answer to a question of its own."""

    id: str
    sample: int
    answer: Answer
    record: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class TaskOutcome:
    """A task's results by sample, and what is said of its answers."""

    benchmark: Benchmark
    runs: Sequence[Result]
    """One for each sample; or a single one that was not run."""
    questions: int = 0
    question_error: float | None = None
    """Standard error of the figure over questions, on the published scale; of one sample's worth of questions."""
    mean_tokens: float | None = None
    cut: float | None = None
    """Share of answers that the limit of tokens ended."""


def own_questions(benchmark: Benchmark, records: Records) -> list[str]:
    """The questions that count, in order: not those whose answers go to another one."""
    belongs_to = benchmark.belongs_to or (lambda row: None)
    names = sorted(records, key=order)
    return [name for name in names if "row" not in records[name] or belongs_to(records[name]["row"]) is None]


def items(benchmark: Benchmark, records: Records, variant: Variant) -> Iterator[Item]:
    """The answers to the questions that count, by question and sample, each with the answers that go to it."""
    names = [name for name in sorted(records, key=order) if "row" in records[name]]
    asked = [records[name] for name in names]
    rows = [record["row"] for record in asked]
    samples = min((len(record["responses"]) for record in asked), default=0)
    found = [
        Item(names[place], sample, answer, asked[place])
        for sample in range(samples)
        for place, answer in own_answers(
            benchmark, rows, [record["responses"][sample]["text"] for record in asked], variant
        )
    ]
    yield from sorted(found, key=lambda item: (order(item.id), item.sample))


def scored_rows(
    benchmark: Benchmark, records: Records, variant: Variant, desk: JudgeDesk | None
) -> Iterator[tuple[dict[str, Any], Score | None]]:
    """The lines of questions/<task>.jsonl, each with its score; None for a question that was not asked."""
    answered = defaultdict(list)
    for item in items(benchmark, records, variant):
        answered[item.id].append(item)
    for name in own_questions(benchmark, records):
        if "missing" in records[name]:
            about = {"missing": records[name]["missing"], "detail": records[name].get("detail", "")}
            yield {"task": benchmark.name, "id": name, "sample": None, "images": [], **about}, None
        for item in answered[name]:
            yield _scored(benchmark, item, desk)


def _scored(benchmark: Benchmark, item: Item, desk: JudgeDesk | None) -> tuple[dict[str, Any], Score]:
    record, response = item.record, item.record["responses"][item.sample]
    asked = requests(desk, benchmark, item.answer, record)
    given = replies(desk, asked)
    score = benchmark.score(item.answer, record["row"], given)
    line = {
        "task": benchmark.name,
        "id": item.id,
        "sample": item.sample,
        "images": record["images"],
        "prompt": record["prompt"],
        "response": response["text"],
        "tokens": response["tokens"],
        "stop_reason": response["stop_reason"],
        "extracted": item.answer.text,
        **dataclasses.asdict(score),
        "row": record["row"],
    }
    if benchmark.judge is not None:
        pairs = zip(asked, given or [None] * len(asked), strict=True)
        line["judge"] = [{"prompt": request.prompt, "reply": reply} for request, reply in pairs]
    return line, score


def task_outcome(
    benchmark: Benchmark, lines: Sequence[tuple[Mapping[str, Any], Score | None]], samples: int
) -> TaskOutcome:
    """The figures of a task from its scored rows."""
    left_out = Counter(str(line["missing"]) for line, score in lines if score is None)
    by_sample: list[list[Score]] = [[] for _ in range(samples)]
    by_question: dict[str, list[float]] = defaultdict(list)
    for line, score in lines:
        if score is not None:
            by_sample[line["sample"]].append(score)
            if score.value is not None:
                by_question[line["id"]].append(score.value)
    runs = [result(benchmark, scores, left_out) for scores in by_sample]
    means = [benchmark.published(statistics.fmean(values)) for values in by_question.values()]
    asked = [line for line, score in lines if score is not None]
    return TaskOutcome(
        benchmark,
        runs,
        questions=len({line["id"] for line, _ in lines}),
        question_error=standard_error(means),
        mean_tokens=_mean([line["tokens"] for line in asked]),
        cut=_mean([line["stop_reason"] == "length" for line in asked]),
    )


def results_json(outcomes: Sequence[TaskOutcome], settings: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """What results.json holds: tasks, rows of the table, categories, and the overall mean with what it covers."""
    runs = max((len(outcome.runs) for outcome in outcomes if outcome.runs[0].score is not None), default=1)
    tables = [table([outcome.runs[min(run, len(outcome.runs) - 1)] for outcome in outcomes]) for run in range(runs)]
    overall = _pooled([found.overall for found in tables])
    covered, strictly, total = tables[0].covered, min(found.strictly for found in tables), tables[0].total
    named = Table({}, {}, (overall["score"], overall["strict"]), covered, strictly, total)
    return {
        "format": 1,
        **settings,
        "seconds": round(seconds, 1),
        "tasks": {outcome.benchmark.name: _task(outcome) for outcome in outcomes},
        "rows": {
            row: {"category": category, **_pooled([found.rows[row] for found in tables])}
            for row, category in table_rows().items()
        },
        "categories": {
            category: _pooled([found.categories[category] for found in tables]) for category in tables[0].categories
        },
        "overall": {**overall, "covered": covered, "strictly_covered": strictly, "total": total},
        "summary": named.summary(),
    }


def not_run_outcome(benchmark: Benchmark, reason: str, questions: int = 0) -> TaskOutcome:
    """A task without a figure, and why."""
    return TaskOutcome(benchmark, [not_run(benchmark, reason)], questions)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean of values: their standard deviation over the square root of their number; None for fewer than two."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def _task(outcome: TaskOutcome) -> dict[str, Any]:
    runs, benchmark = outcome.runs, outcome.benchmark
    return {
        "row": benchmark.row,
        "category": benchmark.category,
        **_pooled([(run.score, run.strict) for run in runs]),
        "question_error": outcome.question_error,
        "figures": _means([run.figures for run in runs]),
        "strict_figures": _means([run.strict_figures for run in runs]),
        "questions": outcome.questions,
        "answers": sum(run.answers for run in runs),
        "unjudged": sum(run.unjudged for run in runs),
        "left_out": dict(_left_out(runs)),
        "reason": runs[0].reason,
        "mean_tokens": outcome.mean_tokens,
        "cut": outcome.cut,
    }


def _left_out(runs: Sequence[Result]) -> Counter[str]:
    """Questions by reason: those that were not asked count once, those whose row can't be scored in the worst run."""
    found: Counter[str] = Counter()
    for run in runs:
        found |= Counter(run.left_out)
    return found


def _pooled(pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, float | None]:
    """Mean of the runs' figures and of their strict ones, and the standard error of the first."""
    scores = [score for score, _ in pairs if score is not None]
    return {
        "score": _mean(scores),
        "strict": _mean([strict for _, strict in pairs if strict is not None]),
        "standard_error": standard_error(scores),
    }


def _means(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for found in figures for name in found)
    return {name: statistics.fmean([found[name] for found in figures if name in found]) for name in names}


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def printed(results: Mapping[str, Any]) -> str:
    """The table for a terminal: the rows that were run or asked for, the categories, and the summary."""

    def number(value: float | None, width: int = 7) -> str:
        return f"{'-' if value is None else f'{value:.1f}':>{width}}"

    lines = [f"{'benchmark':28}{'score':>7}{'strict':>8}{'+-':>7}{'questions':>11}  notes"]
    for category, figures in results["categories"].items():
        tasks = {name: task for name, task in results["tasks"].items() if task["category"] == category}
        for name, task in tasks.items():
            notes = [task["reason"]] if task["reason"] else []
            notes += [f"{task['unjudged']} unjudged"] if task["unjudged"] else []
            notes += [f"{count} {reason}" for reason, count in task["left_out"].items()]
            error = task["standard_error"]
            figure = f"{number(task['score'])}{number(task['strict'], 8)}{number(error)}{task['questions']:>11}"
            lines.append(f"{name:28}{figure}  {'; '.join(notes)}".rstrip())
        if figures["score"] is not None and tasks:
            lines.append(f"{category:28}{number(figures['score'])}{number(figures['strict'], 8)}")
    return "\n".join([*lines, results["summary"]])
