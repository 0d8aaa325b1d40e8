"""V* (Wu and Xie 2024): attributes and relations of small objects."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.options import OPTION_LETTER, with_bracketed_lines
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.letters import letter_vstar, strict_letter
from vero_jax.evaluation.variants import AnswerKind, Variant


def _prompt(row: Row, variant: Variant) -> str:
    return with_bracketed_lines(OPTION_LETTER.sub("", str(row["text"])))


def _score(answer: Answer, row: Row) -> Score:
    found, truth = letter_vstar(answer.text), str(row["label"])
    return right(found == truth, strict_letter(answer.text, "ABCD") == truth, found, str(row.get("category", "")))


BENCHMARKS = (
    Benchmark(
        name="vstar_bench",
        row="VStarBench",
        category="Grounding, Counting & Search",
        source=Source("lmms-lab/vstar-bench", "test"),
        prompt=_prompt,
        kind=AnswerKind.LETTER,
        scorer=_score,
    ),
)
