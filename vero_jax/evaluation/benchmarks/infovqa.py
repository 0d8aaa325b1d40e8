"""InfographicVQA (Mathew et al. 2022), validation: ANLS."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.scorers.documents import document_anls
from vero_jax.evaluation.variants import AnswerKind


def _score(answer: Answer, row: Row) -> Score:
    value = document_anls([str(truth) for truth in row["answers"]], answer.whole, answer.text)
    return Score(value, value, prediction=answer.text)


BENCHMARKS = (
    Benchmark(
        name="infovqa_val",
        row="InfoVQA",
        category="Chart & OCR",
        source=Source("lmms-lab/DocVQA", "validation", ("InfographicVQA",)),
        prompt=lambda row, variant: str(row["question"]),
        kind=AnswerKind.SHORT,
        scorer=_score,
    ),
)
