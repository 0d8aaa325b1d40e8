"""EmbSpatial-Bench (Du et al. 2024): spatial relations as an embodied agent sees them."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.choices import letter_score
from vero_jax.evaluation.options import option_lines
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.scorers.letters import place_label
from vero_jax.evaluation.variants import AnswerKind, Variant


def _prompt(row: Row, variant: Variant) -> str:
    return f"{row['question']}\nOptions:\n{option_lines(row['answer_options'])}"


def _score(answer: Answer, row: Row) -> Score:
    truth = place_label(int(row["answer"]))
    return letter_score(answer.text, truth, "ABCD", row["answer_options"], str(row.get("relation", "")))


BENCHMARKS = (
    Benchmark(
        name="embspatial",
        row="EmbSpatial",
        category="Spatial & Action",
        source=Source("FlagEval/EmbSpatial-Bench", "test"),
        prompt=_prompt,
        kind=AnswerKind.LETTER,
        scorer=_score,
    ),
)
