"""CountBenchQA (Beyer et al. 2024) and CountQA (Tamarapalli et al. 2025): how many there are."""

from __future__ import annotations

from collections.abc import Sequence

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.counting import last_integer, strict_count, true_count
from vero_jax.evaluation.variants import AnswerKind


def _score(answer: Answer, row: Row) -> Score:
    truth = true_count(row["number"] if "number" in row else row["answer"])
    found = last_integer(answer.text)
    return right(found == truth is not None, strict_count(answer.text) == truth is not None, found)


def _pairs(row: Row) -> Sequence[Row]:
    """The questions of a picture, each a row."""
    rest = {name: value for name, value in row.items() if name not in ("questions", "answers")}
    pairs = zip(row["questions"], row["answers"], strict=True)
    return [{**rest, "question": question, "answer": answer} for question, answer in pairs]


BENCHMARKS = (
    Benchmark(
        name="countbenchqa",
        row="CountBenchQA",
        category="Grounding, Counting & Search",
        source=Source("vikhyatk/CountBenchQA", "test"),
        prompt=lambda row, variant: str(row["question"]).strip(),
        kind=AnswerKind.NUMBER,
        scorer=_score,
    ),
    Benchmark(
        name="countqa",
        row="CountQA",
        category="Grounding, Counting & Search",
        source=Source("Jayant-Sravan/CountQA", "test", expand=_pairs),
        prompt=lambda row, variant: str(row["question"]),
        kind=AnswerKind.NUMBER,
        scorer=_score,
    ),
)
