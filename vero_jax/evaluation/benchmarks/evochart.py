"""EvoChart-QA (Huang et al. 2024): real charts, exact where values are printed."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.clear_charts import strict_or_relaxed, strictly
from vero_jax.evaluation.variants import AnswerKind


def _score(answer: Answer, row: Row) -> Score:
    truth, clear = str(row["answer"]), bool(row["is_clear"])
    return right(
        strict_or_relaxed(answer.text, truth, clear),
        strictly(answer.text, truth, clear),
        prediction=answer.text,
        group="clear" if clear else "estimated",
    )


BENCHMARKS = (
    Benchmark(
        name="evochart",
        row="EvoChart",
        category="Chart & OCR",
        source=Source("gsarch/EvoChart-QA", "train"),
        prompt=lambda row, variant: str(row["question"]).strip(),
        kind=AnswerKind.SHORT,
        scorer=_score,
    ),
)
