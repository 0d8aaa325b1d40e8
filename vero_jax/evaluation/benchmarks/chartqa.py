"""ChartQA (Masry et al. 2022): questions about charts, relaxed accuracy."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.numbers import relaxed_match, strictly_relaxed_match
from vero_jax.evaluation.variants import AnswerKind


def _score(answer: Answer, row: Row) -> Score:
    truths = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    truths = [str(truth) for truth in truths if truth is not None]
    return right(
        any(relaxed_match(answer.text, truth) for truth in truths),
        any(strictly_relaxed_match(answer.text, truth) for truth in truths),
        prediction=answer.text,
        group="augmented" if str(row.get("type", "")).startswith("augmented") else "human",
    )


BENCHMARKS = (
    Benchmark(
        name="chartqa",
        row="ChartQA",
        category="Chart & OCR",
        source=Source("lmms-lab/ChartQA", "test"),
        prompt=lambda row, variant: str(row["question"]),
        kind=AnswerKind.SHORT,
        scorer=_score,
    ),
)
