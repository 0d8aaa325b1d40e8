"""The paper's protocol of judging behaviours: its labels, its order, and what an analysis does otherwise."""

from __future__ import annotations

import re
from pathlib import Path

from tests.evaluation.analysis_inputs import answer, group, results, run
from vero_jax.config import JudgeConfig
from vero_jax.evaluation.behaviours.catalogue import BEHAVIOURS, LABELS
from vero_jax.evaluation.behaviours.heatmap import by_prevalence
from vero_jax.evaluation.behaviours.lengths import ALL
from vero_jax.evaluation.behaviours.protocol import MAX_TRACE, deviations
from vero_jax.evaluation.behaviours.rates import rate_of
from vero_jax.evaluation.behaviours.traces import read_input

PAPER_LABELS = (
    "Logical Coherence, Selective Attention, Context Alignment, Network Organization, Verification, Abstraction, "
    "Sequential Organization, Forward Chaining, Compositionality, Spatial Organization, Knowledge Struct. Align., "
    "Decomp. & Integration, Visual Ref. / Grounding, Goal Management, Strategy Selection, Causal Organization, "
    "Mental Imagery Sim., Context Awareness, Self-Awareness, Repr. Restructuring, Conceptual-Level Proc., "
    "Temporal Organization, Perception-then-Reas., Adaptive Detail Mgmt., Syst. Regional Synth., "
    "Arithmetic Calculation, Hierarchical Org., Ordinal Organization, Pattern Recognition, Visual Foraging, "
    "Self-Evaluation, Productivity, Backward Chaining, Backtracking"
)
GREEDY = JudgeConfig(temperature=0.0, max_tokens=2048)


def test_pictures_have_the_labels_of_the_papers_heat_map() -> None:
    assert sorted(LABELS) == sorted(one.name for one in BEHAVIOURS)
    assert sorted(LABELS.values()) == sorted(PAPER_LABELS.split(", "))
    for name, label in LABELS.items():  # an abbreviation keeps the first letters of its words, in their order
        words, short = name.split("-"), re.findall(r"[a-z]+", label.lower().replace("mgmt", "management"))
        meant = [word for word in words if word not in ("and", "or")]
        assert all(word.startswith(part) for word, part in zip(meant, short, strict=True)), name


def test_the_papers_protocol_has_no_deviation(tmp_path: Path) -> None:
    found = read_input(results(tmp_path, {"chartqa": [answer("a")]}))
    for model in ("Qwen/Qwen3-32B", "qwen3-32b", "/models/Qwen3-32B-AWQ"):
        assert deviations([found], GREEDY, model, fewer=False, shortened=0, trace_characters=MAX_TRACE) == []
    for model in ("Distill-Qwen3-32B", "Qwen3-32B.5", "Qwen3-8B", "judge"):
        said = deviations([found], GREEDY, model, fewer=False, shortened=0, trace_characters=MAX_TRACE)
        assert said == [f"the judge is {model}, not Qwen3-32B"]


def test_what_differs_from_the_papers_protocol_is_named(tmp_path: Path) -> None:
    found = read_input(run(tmp_path, {"final": [group("q", "stem", "t")]}))
    config = JudgeConfig(temperature=0.7, max_tokens=1024)
    said = deviations([found], config, "Qwen3-VL-32B-Instruct", fewer=True, shortened=3, trace_characters=8_000)
    assert said == [
        "the judge is Qwen3-VL-32B-Instruct, not Qwen3-32B",
        "temperature 0.7, not 0",
        "1,024 new tokens of the judge, not 2,048",
        "--per-domain leaves answers out",
        "of 3 answers the judge sees 8,000 characters, not all",
        "questions of a run's validation, not benchmarks (mixture)",
    ]


def test_heat_maps_begin_with_the_most_frequent_behaviours() -> None:
    """By the mean of the inputs over all domains; a domain alone does not count, nor does one without a rate."""
    rates = {"a": [1, 3, 0, 2], "b": [2, 3, 0, 1]}
    cells = {
        (one, ALL, BEHAVIOURS[place].name): rate_of(one, ALL, BEHAVIOURS[place], [True] * n + [False] * (4 - n))
        for one, counts in rates.items()
        for place, n in enumerate(counts)
    }
    names = [one.name for one in BEHAVIOURS[:5]]
    cells["a", ALL, names[4]] = rate_of("a", ALL, BEHAVIOURS[4], [None])
    cells["a", "STEM", names[2]] = rate_of("a", "STEM", BEHAVIOURS[2], [True])
    assert by_prevalence(cells, ["a", "b"], names) == [names[place] for place in (1, 0, 3, 2, 4)]
