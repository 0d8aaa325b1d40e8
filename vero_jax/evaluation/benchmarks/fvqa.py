"""FVQA (Wu et al. 2025, MMSearch-R1's test set): facts beyond the picture, a judge compares answers."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.extraction import Mode
from vero_jax.evaluation.judge_prompts import fill
from vero_jax.evaluation.variants import AnswerKind, Variant
from vero_jax.evaluation.verdicts import verdict_judge


def _prompt(row: Row, variant: Variant) -> str:
    return str(row["prompt"][0]["content"]).replace("<image>", "").strip()


def _judge(answer: Answer, row: Row) -> str:
    truth = row["reward_model"]
    candidates = truth.get("candidate_answers")
    accepted = "\n".join(map(str, candidates)) if isinstance(candidates, list) else str(candidates or "")
    return fill(
        "facts",
        question=_prompt(row, answer.variant),
        truth=str(truth["ground_truth"]),
        accepted=accepted or "(none)",
        answer=answer.text,
    )


BENCHMARKS = (
    Benchmark(
        name="fvqa",
        row="FVQA",
        category="Knowledge & Recognition",
        source=Source("lmms-lab/FVQA", "test"),
        prompt=_prompt,
        kind=AnswerKind.SHORT,
        extraction=Mode.UNWRAPPED,
        judge=verdict_judge(_judge),
    ),
)
