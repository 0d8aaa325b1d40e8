"""MME-RealWorld-Lite (Zhang et al. 2024): high-resolution pictures, five options."""

from __future__ import annotations

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.letters import letter_a_to_e, strict_letter
from vero_jax.evaluation.variants import AnswerKind, Variant


def _prompt(row: Row, variant: Variant) -> str:
    options = "\n".join(map(str, row["multi-choice options"]))
    return (
        f"{row['question']} The choices are listed below:\n{options}\n\n"
        "Select the best answer to the above multiple-choice question based on the image."
    )


def _score(answer: Answer, row: Row) -> Score:
    found, truth = letter_a_to_e(answer.text), str(row["answer"])
    strict = strict_letter(answer.text, "ABCDE", row.get("multi-choice options") or ())
    return right(found == truth, strict == truth, found, str(row.get("category", "")))


BENCHMARKS = (
    Benchmark(
        name="mme_realworld_lite",
        row="MME-RealWorld-Lite",
        category="Grounding, Counting & Search",
        source=Source(
            "yifanzhang114/MME-RealWorld-lite-lmms-eval", "train", images=lambda row: [row["bytes"]], base64=True
        ),
        prompt=_prompt,
        kind=AnswerKind.LETTER,
        scorer=_score,
    ),
)
