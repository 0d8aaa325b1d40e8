"""MMMU-Pro (Yue et al. 2024): ten options, as text and as a screenshot."""

from __future__ import annotations

from vero_jax.evaluation.aggregation import rounded
from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.options import option_lines
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.letters import place_labels, strict_letter
from vero_jax.evaluation.scorers.mmmu import mmmu_letter
from vero_jax.evaluation.variants import AnswerKind, Variant
from vero_jax.rewards.literals import read_literal

_VISION = "Solve the math problem in the image and answer with the letter of the correct option."


def _options(row: Row) -> list[str]:
    options = row["options"]
    return [str(option) for option in (read_literal(options) if isinstance(options, str) else options)]


def _prompt(row: Row, variant: Variant) -> str:
    return f"{row['question']}\n{option_lines(_options(row))}\n\n"


def _vision_prompt(row: Row, variant: Variant) -> str:
    """The screenshot has the question; baselines are told the form of the answer and nothing else."""
    return variant.instruction("mmmu_pro_vision", AnswerKind.LETTER).strip() or _VISION


def _score(answer: Answer, row: Row) -> Score:
    options = _options(row)
    found = mmmu_letter(answer.text, options)
    strict = strict_letter(answer.text, place_labels(len(options)), options)
    truth = str(row["answer"]).upper()
    return right(found.upper() == truth, strict == truth, found, str(row.get("subject", "")))


BENCHMARKS = (
    Benchmark(
        name="mmmu_pro_standard",
        row="MMMU-Pro Std",
        category="STEM",
        source=Source("MMMU/MMMU_Pro", "test", ("standard (10 options)",)),
        prompt=_prompt,
        kind=AnswerKind.LETTER,
        scorer=_score,
        aggregate=rounded(5),
    ),
    Benchmark(
        name="mmmu_pro_vision",
        row="MMMU-Pro Vis",
        category="STEM",
        source=Source("MMMU/MMMU_Pro", "test", ("vision",)),
        prompt=_vision_prompt,
        kind=AnswerKind.LETTER,
        scorer=_score,
        aggregate=rounded(5),
        states_format=True,
    ),
)
