"""RealWorldQA (xAI 2024): photographs from cars and elsewhere, with options or a short answer."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.choices import letter_score
from vero_jax.evaluation.options import ONE_WORD, ONLY_LETTER, has_options, inline_options, with_option_lines
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.variants import AnswerKind, Variant


def _question(row: Row) -> str:
    return ONE_WORD.sub("", ONLY_LETTER.sub("", str(row["question"])))


def _prompt(row: Row, variant: Variant) -> str:
    return with_option_lines(_question(row)) + "\n"


def _score(answer: Answer, row: Row) -> Score:
    question, truth = _question(row), str(row["answer"]).strip()
    if has_options(question):
        return letter_score(answer.text, truth, "ABCD", inline_options(question))
    found = answer.text.removesuffix(".").strip().lower()
    return right(found == truth.removesuffix(".").strip().lower(), prediction=answer.text)


BENCHMARKS = (
    Benchmark(
        name="realworldqa",
        row="RealWorldQA",
        category="Knowledge & Recognition",
        source=Source("lmms-lab/RealWorldQA", "test"),
        prompt=_prompt,
        kind=AnswerKind.SHORT,
        scorer=_score,
    ),
)
