"""BLINK (Fu et al. 2024): 14 sub-tasks, whose accuracies are averaged without weights."""

from __future__ import annotations

from vero_jax.evaluation.aggregation import mean_of_groups
from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.choices import letter_score
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.scorers.letters import labels_of
from vero_jax.evaluation.variants import AnswerKind

TASKS = (
    "Art_Style", "Counting", "Forensic_Detection", "Functional_Correspondence", "IQ_Test", "Jigsaw",
    "Multi-view_Reasoning", "Object_Localization", "Relative_Depth", "Relative_Reflectance",
    "Semantic_Correspondence", "Spatial_Relation", "Visual_Correspondence", "Visual_Similarity",
)  # fmt: skip


def _score(answer: Answer, row: Row) -> Score:
    options = row["choices"]
    truth = str(row["answer"]).strip("() ")
    return letter_score(answer.text, truth, labels_of(options), options, str(row.get("sub_task", "")))


BENCHMARKS = (
    Benchmark(
        name="blink",
        row="Blink",
        category="Spatial & Action",
        source=Source("BLINK-Benchmark/BLINK", "val", TASKS),
        prompt=lambda row, variant: str(row["prompt"]).strip(),
        kind=AnswerKind.LETTER,
        scorer=_score,
        aggregate=mean_of_groups,
    ),
)
