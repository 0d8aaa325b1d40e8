"""CV-Bench (Tong et al. 2024): counting, relations, depth and distance."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.choices import letter_score
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.scorers.letters import labels_of
from vero_jax.evaluation.variants import AnswerKind


def _score(answer: Answer, row: Row) -> Score:
    options = row["choices"]
    return letter_score(
        answer.text, str(row["answer"]).strip("() "), labels_of(options), options, str(row.get("type") or "")
    )


BENCHMARKS = (
    Benchmark(
        name="cv_bench",
        row="CV Bench",
        category="Spatial & Action",
        source=Source("nyu-visionx/CV-Bench", "test"),
        prompt=lambda row, variant: str(row["prompt"]).strip(),
        kind=AnswerKind.LETTER,
        scorer=_score,
    ),
)
