"""MathVista testmini (Lu et al. 2024): typed answers."""

from __future__ import annotations

from vero_jax.evaluation.aggregation import rounded
from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.options import option_lines
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.mathvista import mathvista_answer, mathvista_equal, strict_option
from vero_jax.evaluation.variants import AnswerKind, Variant


def _prompt(row: Row, variant: Variant) -> str:
    text = str(row["question"])
    if row.get("unit"):
        text += f" (Unit: {row['unit']})"
    if row.get("choices"):
        text += f"\nChoices:\n{option_lines(row['choices'], '({}) {}')}"
    return text


def _score(answer: Answer, row: Row) -> Score:
    found = mathvista_answer(answer.text, row)
    strict = found
    if row.get("question_type") == "multi_choice":
        strict = strict_option(answer.text, [str(option) for option in row["choices"]])
    return right(mathvista_equal(found, row), mathvista_equal(strict, row), found)


BENCHMARKS = (
    Benchmark(
        name="mathvista_testmini",
        row="MathVista",
        category="STEM",
        source=Source("AI4Math/MathVista", "testmini", images=lambda row: [row["decoded_image"]]),
        prompt=_prompt,
        kind=AnswerKind.FORMULA,
        scorer=_score,
        aggregate=rounded(4),
    ),
)
