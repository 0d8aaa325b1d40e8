"""AerialVG (Liu et al. 2025): a box for the first region of each aerial picture."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score
from vero_jax.evaluation.scorers.geometry import box_iou
from vero_jax.evaluation.variants import AnswerKind, Variant

_ARTICLE = re.compile(r"^(?:a|an|the)\s+", re.IGNORECASE)
_FORMAT = (
    'Output the bounding box(es) in a JSON array format: [{"bbox_2d": [x_min, y_min, x_max, y_max], "label": '
    '"<class name>"}]. For a single object, return one array element; for multiple objects, return one element per '
    "object in the array."
)


def _prompt(row: Row, variant: Variant) -> str:
    phrase = _ARTICLE.sub("", str(row["phrase"]).strip())
    relation = f" Relation: {row['relation']}." if row.get("relation") else ""
    scale = variant.about_coordinates(variant.coordinates)
    return f"{str(row['caption']).strip()} Where is the {phrase} located?{relation} {_FORMAT}{scale}"


def _score(answer: Answer, row: Row) -> Score:
    size = (float(row["width"]), float(row["height"]))
    iou = box_iou(answer.text, [float(value) for value in row["bbox"]], size, answer.variant.coordinates)
    return Score(iou, iou, parts={"IoU >= 0.5": float(iou >= 0.5), "IoU >= 0.75": float(iou >= 0.75)})


def _first_region(row: Row) -> Sequence[Row]:
    grounding = row["grounding"]
    region = grounding["regions"][0]
    relation = region.get("realation", region.get("relation"))  # the data set's own spelling first
    fields = {"caption": grounding.get("caption", ""), "phrase": region["phrase"], "relation": relation}
    return [{**row, **fields, "bbox": region["bbox"]}]


BENCHMARKS = (
    Benchmark(
        name="aerialvg_bbox",
        row="AerialVG",
        category="Grounding, Counting & Search",
        source=Source(
            "IPEC-COMMUNITY/AerialVG",
            "test",
            images=lambda row: [row["image"] if row.get("image") is not None else row["filename"]],
            expand=_first_region,
        ),
        prompt=_prompt,
        kind=AnswerKind.PLACE,
        scorer=_score,
        states_format=True,
    ),
)
