"""What came of an evaluation: figures of benchmarks, rows of the table, the overall mean and how much it covers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from vero_jax.evaluation.benchmark import CATEGORIES, Answer, Benchmark, Row
from vero_jax.evaluation.registry import all_benchmarks, table_rows
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.variants import Variant

Ask = Callable[[str], "str | None"]
"""One request to the judge: its reply, or None where it gave none."""


@dataclasses.dataclass(frozen=True)
class Result:
    """One benchmark. Figures are on the published scale; None stands for "not run", never for 0."""

    benchmark: Benchmark
    score: float | None
    """The reference's figure."""
    strict: float | None
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """All of the aggregator's, by the reference."""
    strict_figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    answers: int = 0
    unjudged: int = 0
    """Answers that no judge graded, or whose reply could not be read; the strict figure leaves them out."""
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Questions that were not asked or scored (corrupt rows and pictures), by reason."""
    reason: str = ""
    """Why it was not run."""


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of the published table."""

    rows: Mapping[str, tuple[float | None, float | None]]
    """(reference's figure, strict figure) by row."""
    categories: Mapping[str, tuple[float | None, float | None]]
    """Means of the rows of a category that were run."""
    overall: tuple[float | None, float | None]
    """Mean of all rows that were run; not the mean of the categories."""
    covered: int
    """Rows in the overall figure."""
    strictly: int
    """Rows in the overall strict figure: without those of which no reply of a judge can be read."""
    total: int

    def summary(self) -> str:
        """One line, such as "overall 61.3 (strict 60.9) over 21 of 30 benchmarks"."""
        if self.overall[0] is None:
            return f"no overall figure: none of {self.total} benchmarks was run"
        fewer = "" if self.strictly == self.covered else f" over {self.strictly}"
        strict = "" if self.overall[1] is None else f" (strict {self.overall[1]:.1f}{fewer})"
        return f"overall {self.overall[0]:.1f}{strict} over {self.covered} of {self.total} benchmarks"


def own_answers(
    benchmark: Benchmark, rows: Sequence[Row], completions: Sequence[str], variant: Variant
) -> list[tuple[int, Answer]]:
    """(place in `rows`, answer) of the rows that are questions of their own, with the answers that go to them.

    Args:
      completions: one to each row.
    """
    answers = [benchmark.answer(completion, variant) for _, completion in zip(rows, completions, strict=True)]
    if benchmark.belongs_to is None:
        return list(enumerate(answers))
    others: dict[str, dict[str, str]] = {}
    own = []
    for place, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        other = benchmark.belongs_to(row)
        if other is None:
            own.append((place, answer))
        else:
            others.setdefault(other[0], {})[other[1]] = answer.text
    return [
        (place, dataclasses.replace(answer, others=others.get(str(rows[place].get("id")), {}))) for place, answer in own
    ]


def score_answers(
    benchmark: Benchmark,
    rows: Sequence[Row],
    completions: Sequence[str],
    variant: Variant,
    ask: Ask | None = None,
) -> list[Score]:
    """The scores of completions to rows; of those rows only that are questions of their own.

    Args:
      ask: the judge; without one, judged answers come back unjudged.
    """
    scores = []
    for place, answer in own_answers(benchmark, rows, completions, variant):
        replies = None if ask is None else [ask(prompt) for prompt in benchmark.requests(answer, rows[place])]
        scores.append(benchmark.score(answer, rows[place], replies))
    return scores


def result(benchmark: Benchmark, scores: Sequence[Score], broken: Mapping[str, int] | None = None) -> Result:
    """The figures of a benchmark.

    Args:
      scores: of all answers.
      broken: questions that were not asked, by reason.
    """
    unjudged = sum(score.missing == "unjudged" for score in scores)
    left_out = Counter(broken or {})
    left_out.update(score.missing.split(" (")[0] for score in scores if score.missing not in ("", "unjudged"))
    counted = any(score.value is not None for score in scores)
    strictly = any(score.strict is not None for score in scores)
    figures = _scaled(benchmark, benchmark.aggregate(scores, False)) if counted else {}
    strict_figures = _scaled(benchmark, benchmark.aggregate(scores, True)) if strictly else {}
    reason = "" if counted else "no answer was judged" if unjudged else "no question could be used"
    return Result(
        benchmark,
        figures.get("score"),
        strict_figures.get("score"),
        figures,
        strict_figures,
        len(scores),
        unjudged,
        dict(left_out),
        reason,
    )


def not_run(benchmark: Benchmark, reason: str) -> Result:
    """A benchmark that was not run, and why."""
    return Result(benchmark, None, None, reason=reason)


def table(results: Sequence[Result]) -> Table:
    """The rows, the categories and the overall mean. A row counts when all of its tasks were run."""
    by_name = {found.benchmark.name: found for found in results}
    rows: dict[str, tuple[float | None, float | None]] = {}
    for row in table_rows():
        tasks = [by_name.get(task.name) or not_run(task, "") for task in all_benchmarks().values() if task.row == row]
        rows[row] = _mean([task.score for task in tasks]), _mean([task.strict for task in tasks])
    of = table_rows()
    categories = {
        category: _mean_of_run([pair for row, pair in rows.items() if of[row] == category]) for category in CATEGORIES
    }
    covered, strictly = (sum(pair[kind] is not None for pair in rows.values()) for kind in (0, 1))
    return Table(rows, categories, _mean_of_run(list(rows.values())), covered, strictly, len(rows))


def _scaled(benchmark: Benchmark, figures: Mapping[str, float]) -> dict[str, float]:
    return {name: benchmark.published(value) for name, value in figures.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean, None where any value is missing."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _mean_of_run(pairs: Sequence[tuple[float | None, float | None]]) -> tuple[float | None, float | None]:
    first = [value for value, _ in pairs if value is not None]
    second = [value for _, value in pairs if value is not None]
    return (sum(first) / len(first) if first else None), (sum(second) / len(second) if second else None)
