"""Reading the golden cases of VeroEval, and scoring them as the benchmarks do."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from typing import Any

from tests.conftest import golden_dir
from vero_jax.evaluation import aggregation, judging
from vero_jax.evaluation.benchmark import Benchmark
from vero_jax.evaluation.benchmarks.simplevqa import label_score
from vero_jax.evaluation.extraction import Mode, final_answer
from vero_jax.evaluation.registry import all_benchmarks
from vero_jax.evaluation.results import score_answers
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers import constraints, geometry, mathvista
from vero_jax.evaluation.variants import VARIANTS, Variant

TOLERANCE = 1e-6
_FORMATS = {
    "abs_pixel": geometry.Coordinates.PIXELS,
    "relative_1000": geometry.Coordinates.THOUSANDTHS,
    "normalized": geometry.Coordinates.FRACTIONS,
}
_TASKS = {"mmmu_pro": "mmmu_pro_standard", "visual_probe": "visual_probe_easy"}
_RAISES = {"raises": "ValueError"}

Case = dict[str, Any]


def cases(kind: str) -> list[Case]:
    """All cases of golden_<kind>*.jsonl, packed or not, in the order of the files."""
    found = []
    for file in sorted(golden_dir("eval").glob(f"golden_{kind}*.jsonl*")):
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            found += [json.loads(line) for line in lines if line.strip()]
    assert found, f"no golden cases of kind {kind}"
    return found


def task(case: Case) -> Benchmark:
    """The benchmark that a case belongs to."""
    return all_benchmarks()[_TASKS.get(case["benchmark"], case["benchmark"])]


def is_random(case: Case) -> bool:
    """Does the reference guess here?"""
    return case["expected"] == {"nondeterministic": True}


def is_ruled(case: Case) -> bool:
    """Is the case an answer to a question that a benchmark's own rules score?"""
    return case["scorer"] in _FIGURES


def score_of(case: Case) -> Score:
    """The score of a rule-scored case."""
    benchmark = task(case)
    return benchmark.score(benchmark.answer(case["response"], _variant(case)), case["doc"])


def outcome(case: Case) -> Any:
    """What vero_jax makes of a case, in the form of the case's `expected`, by the reference's figure."""
    scorer = case["scorer"]
    if scorer in _FIGURES:
        return _FIGURES[scorer](case, score_of(case))
    if scorer.startswith("rule:"):
        return constraints.check(scorer.removeprefix("rule:"), case["response"], case["doc"]["params"])
    return _OTHERS[scorer](case)


def same(found: Any, expected: Any) -> bool:
    """Equal, numbers within the tolerance."""
    if isinstance(expected, dict):
        if not isinstance(found, dict) or set(found) != set(expected):
            return False
        return all(same(found[name], expected[name]) for name in expected)
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(same, found, expected))
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (found, expected)]
    if all(numbers):
        return bool(abs(found - expected) <= TOLERANCE)
    return type(found) is type(expected) and bool(found == expected)


def _variant(case: Case) -> Variant:
    """The variant under which a case was scored: the one for Vero models, with the case's coordinates."""
    doc = case["doc"]
    coordinates = _FORMATS[doc.get("pred_bbox_format", doc.get("pred_point_format", "abs_pixel"))]
    tool = case["scorer"].endswith("_tool")
    return dataclasses.replace(VARIANTS["reasoning"], coordinates=coordinates, tool_points=tool)


def _named(*names: str) -> Callable[[Case, Score], Any]:
    return lambda case, score: dict.fromkeys(names, score.value)


def _letter(case: Case, score: Score) -> Any:
    found = {"correct": bool(score.value), "pred": score.prediction}
    return {name: found[name] for name in case["expected"] if name in found}


def _chartqa(case: Case, score: Score) -> Any:
    return {"relaxed_overall": score.value, f"relaxed_{score.group}_split": score.value}


def _game(case: Case, score: Score) -> Any:
    from vero_jax.evaluation.scorers.games import game_tokens

    benchmark, doc = task(case), case["doc"]
    answer = benchmark.answer(case["response"], VARIANTS["reasoning"])
    found, truth = game_tokens(answer.text, str(doc["answer"]), doc.get("options") or [])
    return {"correct": bool(score.value), "gt": truth, "pred": found}


def _mathvista(case: Case, score: Score) -> Any:
    answer = task(case).answer(case["response"], VARIANTS["reasoning"])
    return {"correct": bool(score.value), "normalized": mathvista.mathvista_answer(answer.text, case["doc"])}


def _box(case: Case, score: Score) -> Any:
    figures = aggregation.mean([score], False)
    return {
        "aerialvg_iou": round(figures["score"], 6),
        "aerialvg_acc@0.5": figures["IoU >= 0.5"],
        "aerialvg_acc@0.75": figures["IoU >= 0.75"],
    }


def _point(case: Case, score: Score) -> Any:
    variant, doc = _variant(case), case["doc"]
    answer = task(case).answer(case["response"], variant)
    inside, point = geometry.point_in_box(
        answer.text,
        doc["bbox"],
        _FORMATS[doc["gt_bbox_format"]],
        (doc["width"], doc["height"]),
        variant.coordinates,
        tool=variant.tool_points,
    )
    assert inside == bool(score.value)
    return {"correct": bool(score.value), "pred": [round(value, 6) for value in point]}


def _vstar(case: Case, score: Score) -> Any:
    return {"score": score.value, "pred": score.prediction or None}


_FIGURES: dict[str, Callable[[Case, Score], Any]] = {
    "relaxed_accuracy": _chartqa,
    "relaxed_list_anls": _named("relaxed_overall"),
    "anls_format_max": _named("anls"),
    "strict_or_relaxed": _named("accuracy"),
    "mcq_mmmu": _letter,
    "mcq_letter_generic": _letter,
    "mcq_letter_AE": _letter,
    "mcq_letter_vstar": _vstar,
    "mcq_or_exact": _named("exact_match"),
    "game_choice": _game,
    "mathvision_equal": _letter,
    "mathvista_typed_equal": _mathvista,
    "last_int": _named("exact_match"),
    "bbox_iou": _box,
    "point_in_box": _point,
    "point_in_box_tool": _point,
}


def _extracted(case: Case) -> Any:
    doc = case["doc"]
    unwrapped = Mode.UNWRAPPED if doc["strip_latex_wrappers"] else Mode.PLAIN
    return final_answer(case["response"], Mode.LAST_BOX if doc["parse_boxed"] else unwrapped)


def _three_way(case: Case) -> Any:
    label = judging.three_way(case["response"]) or judging.NOT_ATTEMPTED
    return {"label": label, "score": label_score(label).value}


def _extract_score(case: Case) -> Any:
    found = judging.extracted_and_score(case["response"])
    return found and {"extracted": found[0], "score": found[1]}


def _rating(case: Case) -> Any:
    found = judging.rating(case["response"])
    return -1.0 if found is None else found


def _components(case: Case) -> Any:
    names = case["doc"]["components"]
    found = judging.components(case["response"], names)
    shares, total = found or (dict.fromkeys(names, 0), 0)
    return {**{name: round(share, 6) for name, share in shares.items()}, "total_score": round(total, 6)}


def _or_raises(read: Callable[[str], Any]) -> Callable[[Case], Any]:
    def outcome(case: Case) -> Any:
        found = read(case["response"])
        return _RAISES if found is None else found

    return outcome


def _items(case: Case) -> Any:
    """MMIFEval's items, whose requests to the judge are answered in order."""
    benchmark, rows = task(case), case["doc"]["items"]
    waiting = list(json.loads(case["response"]))
    scores = score_answers(
        benchmark,
        rows,
        [row["prediction"] for row in rows],
        VARIANTS["reasoning"],
        ask=lambda prompt: str(waiting.pop(0)),
    )
    assert not waiting, "the judge was asked less often than the reference asks"
    own = [row for row in rows if row.get("infer_type") == "main"]
    figures = benchmark.aggregate(scores, False)
    failed = [int(score.missing == "unjudged") for score in scores]
    return {
        "overall": figures["score"],
        "p_level": figures.get("P-Level", 0.0),
        "c_level": figures.get("C-Level", 0.0),
        "failed": sum(failed),
        "items": [
            {"id": row["id"], "ret": ret, "total": score.value}
            for row, score, ret in zip(own, scores, failed, strict=True)
        ],
    }


def _aggregate(case: Case) -> Any:
    benchmark, doc, name = task(case), case["doc"], case["benchmark"]
    if name == "simplevqa_en":
        figures = benchmark.aggregate([label_score(label) for label in doc["labels"]], False)
        return {
            "is_correct": figures["right"],
            "is_incorrect": figures["wrong"],
            "is_not_attempted": figures["not attempted"],
            "is_given_attempted": figures["attempted"],
            "accuracy_given_attempted": figures["accuracy of attempts"],
            "f1": figures["f1"],
        }
    if name == "mm_mt_bench":
        scores = [Score(float(value), float(value), group=group) for value, group, _ in doc["rows"]]
        figures = benchmark.aggregate(scores, False)
        return {"micro": figures["score"], "macro_category": figures["macro"]}
    if name == "mmmu_pro":
        scores = [right(found == truth, group=subject) for subject, found, truth in doc["rows"]]
    else:
        values = doc.get("values", doc.get("scores", doc.get("total_scores")))
        scores = [Score(float(value), float(value)) for value in values]
    return benchmark.aggregate(scores, False)["score"]


def _group_aggregate(case: Case) -> Any:
    pairs = zip(case["doc"]["metrics"], case["doc"]["sizes"], strict=True)
    scores = [Score(value, value, group=str(number)) for number, (value, size) in enumerate(pairs) for _ in range(size)]
    return task(case).aggregate(scores, False)["score"]


_OTHERS: dict[str, Callable[[Case], Any]] = {
    "extract_final_answer": _extracted,
    "extract_json_candidate": lambda case: judging.json_object(case["response"]),
    "judge_input": lambda case: task(case).answer(case["response"], VARIANTS["reasoning"]).text,
    "judge_yesno": lambda case: bool(judging.yes_or_no(case["response"])),
    "judge_bool": lambda case: bool(judging.yes_or_no(case["response"], truth_values=True)),
    "judge_extract_score": _extract_score,
    "judge_three_way": _three_way,
    "judge_score01": lambda case: judging.share(case["response"]),
    "judge_bracket_score": _rating,
    "judge_components": _components,
    "judge_right_wrong": _or_raises(judging.right_or_wrong),
    "judge_constraint_scores": _or_raises(judging.constraint_scores),
    "judge_summary_truefalse": _or_raises(judging.summary_verdict),
    "judge_binary01": lambda case: judging.zero_or_one(case["response"]) or 0,
    "item_aggregate": _items,
    "aggregate": _aggregate,
    "group_aggregate": _group_aggregate,
}
