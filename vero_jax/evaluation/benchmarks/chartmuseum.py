"""ChartMuseum (Tang et al. 2025): a judge compares answers."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.variants import AnswerKind
from vero_jax.evaluation.verdicts import verdict_judge


def _judge(answer: Answer, row: Row) -> str:
    return fill("chart", question=str(row["question"]), truth=str(row["answer"]), answer=answer.text)


BENCHMARKS = (
    Benchmark(
        name="chartmuseum",
        row="ChartMuseum",
        category="Chart & OCR",
        source=Source("gsarch/ChartMuseum", "test"),
        prompt=lambda row, variant: str(row["question"]),
        kind=AnswerKind.SHORT,
        judge=verdict_judge(_judge, lambda row: str(row.get("reasoning_type", "")), truth_values=False),
    ),
)
