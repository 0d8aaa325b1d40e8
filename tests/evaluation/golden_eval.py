"""Reading the golden cases of VeroEval, and scoring them as the benchmarks do."""

from __future__ import annotations

import dataclasses
import gzip
import json
from typing import Any

from tests.conftest import golden_dir
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.registry import all_benchmarks
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.scorers.geometry import Coordinates
from vero_jax.evaluation.variants import VARIANTS, Variant

TOLERANCE = 1e-6
_FORMATS = {
    "abs_pixel": Coordinates.PIXELS,
    "relative_1000": Coordinates.THOUSANDTHS,
    "normalized": Coordinates.FRACTIONS,
}
_TASKS = {"mmmu_pro": "mmmu_pro_standard", "visual_probe": "visual_probe_easy"}


def cases(kind: str) -> list[dict[str, Any]]:
    """All cases of golden_<kind>*.jsonl, packed or not, in the order of the files."""
    found = []
    for file in sorted(golden_dir("eval").glob(f"golden_{kind}*.jsonl*")):
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines if line.strip()]
    assert found, f"no golden cases of kind {kind}"
    return found


def task(case: dict[str, Any]) -> Benchmark:
    """The benchmark that a case belongs to."""
    return all_benchmarks()[_TASKS.get(case["benchmark"], case["benchmark"])]


def variant_of(case: dict[str, Any]) -> Variant:
    """The variant under which a case was scored: the one for Vero models, with the case's coordinates."""
    doc = case["doc"]
    coordinates = doc.get("pred_bbox_format", doc.get("pred_point_format", "abs_pixel"))
    tool = case["scorer"].endswith("_tool")
    return dataclasses.replace(VARIANTS["reasoning"], coordinates=_FORMATS[coordinates], tool_points=tool)


def score_of(case: dict[str, Any]) -> Score:
    """The score of a rule-scored case."""
    benchmark = task(case)
    return benchmark.score(benchmark.answer(case["response"], variant_of(case)), case["doc"])


def same(found: Any, expected: Any) -> bool:
    """Equal, numbers within the tolerance."""
    if isinstance(expected, dict):
        return (
            isinstance(found, dict) and set(found) == set(expected) and all(same(found[k], expected[k]) for k in found)
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, int | float) and not isinstance(expected, bool) and isinstance(found, int | float):
        return abs(found - expected) <= TOLERANCE
    return bool(found == expected)
