"""MathVision (Wang et al. 2024): competition problems with a figure, options or a free answer."""

from __future__ import annotations

import re

from vero_jax.evaluation.aggregation import rounded
from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.options import option_lines
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.mathvision import mathvision_equal
from vero_jax.evaluation.variants import AnswerKind, Variant

_TAG = re.compile(r"<image\d+>")


def _prompt(row: Row, variant: Variant) -> str:
    text = _TAG.sub("", str(row["question"]))
    if row.get("options"):
        text += f"\nChoices: {option_lines(row['options'])}"
    return text.strip()


def _score(answer: Answer, row: Row) -> Score:
    options = [str(option) for option in row.get("options") or ()]
    return right(mathvision_equal(answer.text, str(row["answer"]), options), prediction=answer.text)


BENCHMARKS = (
    Benchmark(
        name="mathvision_test",
        row="MathVision",
        category="STEM",
        source=Source("MathLLMs/MathVision", "test", images=lambda row: [row["decoded_image"]]),
        prompt=_prompt,
        kind=AnswerKind.FORMULA,
        scorer=_score,
        aggregate=rounded(4),
    ),
)
