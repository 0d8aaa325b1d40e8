"""GameQA-Lite (Tong et al. 2025): questions about states of games."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.games import game_tokens, strict_game_match
from vero_jax.evaluation.variants import AnswerKind


def _score(answer: Answer, row: Row) -> Score:
    truth, options = str(row["answer"]), row.get("options") or row.get("choices") or []
    found, expected = game_tokens(answer.text, truth, options)
    strict = strict_game_match(answer.text, truth, options)
    return right(found == expected, strict, found, str(row.get("game_name", "")))


BENCHMARKS = (
    Benchmark(
        name="game_qa_lite",
        row="GameQA-Lite",
        category="Spatial & Action",
        source=Source("gsarch/Game-QA-Lite", "train"),
        prompt=lambda row, variant: str(row["question"]),
        kind=AnswerKind.SHORT,
        scorer=_score,
    ),
)
