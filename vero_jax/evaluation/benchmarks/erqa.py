"""ERQA (Gemini Robotics team 2025): embodied reasoning over several pictures, options inside the question."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.choices import letter_score
from vero_jax.evaluation.options import ONLY_LETTER, has_options, inline_options, with_option_lines
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.variants import AnswerKind, Variant


def _question(row: Row) -> str:
    return ONLY_LETTER.sub("", str(row["question"]))


def _prompt(row: Row, variant: Variant) -> str:
    return with_option_lines(_question(row))


def _score(answer: Answer, row: Row) -> Score:
    question = _question(row)
    labels = "ABCD" if has_options(question) else ""
    return letter_score(
        answer.text, str(row["answer"]), labels, inline_options(question), str(row.get("question_type", ""))
    )


BENCHMARKS = (
    Benchmark(
        name="erqa",
        row="ERQA",
        category="Spatial & Action",
        source=Source("FlagEval/ERQA", "test"),
        prompt=_prompt,
        kind=AnswerKind.LETTER,
        scorer=_score,
    ),
)
