"""ScreenSpot (Cheng et al. 2024) and ScreenSpot-Pro (Li et al. 2025): where to click for a command."""

from __future__ import annotations

from collections.abc import Callable

from vero_jax.evaluation.benchmark import Answer, Benchmark, Row, Source
from vero_jax.evaluation.score import Score, right
from vero_jax.evaluation.scorers.geometry import Coordinates, has_point, point_in_box
from vero_jax.evaluation.variants import AnswerKind, Variant

_TOOL = (
    'You can use the computer with the tool "computer_use". Its call is a JSON object between <tool_call> and '
    '</tool_call>: {{"name": "computer_use", "arguments": {{"action": "left_click", "coordinate": [x, y]}}}}. '
    "The screen is 1000 wide and 1000 high in these coordinates. Make the one click that carries out this command: "
    "{command}"
)
_FORMAT = 'Output the point in a JSON array format: [{"point_2d": [x, y]}].'


def _prompt(row: Row, variant: Variant) -> str:
    command = str(row.get("instruction", row.get("instruction_cn", "")))
    if command and command[-1] not in ".?!":
        command += "."
    if variant.tool_points:
        return _TOOL.format(command=command)
    return f"Provide the point for the command: {command} {_FORMAT}{variant.about_coordinates(variant.points)}"


def _scorer(truth: Coordinates) -> Callable[[Answer, Row], Score]:
    def score(answer: Answer, row: Row) -> Score:
        variant, size = answer.variant, (float(row["width"]), float(row["height"]))
        box = [float(value) for value in row["bbox"]]
        inside, (x, y) = point_in_box(answer.text, box, truth, size, variant.points, tool=variant.tool_points)
        found = has_point(answer.text, tool=variant.tool_points)
        group = str(row.get("data_type") or row.get("ui_type") or "")
        return right(inside, inside and found, f"{x:g}, {y:g}" if found else "", group)

    return score


BENCHMARKS = (
    Benchmark(
        name="screenspot",
        row="ScreenSpot",
        category="Grounding, Counting & Search",
        source=Source("rootsautomation/ScreenSpot", "test"),
        prompt=_prompt,
        kind=AnswerKind.PLACE,
        scorer=_scorer(Coordinates.FRACTIONS),
        states_format=True,
    ),
    Benchmark(
        name="screenspotpro",
        row="ScreenSpotPro",
        category="Grounding, Counting & Search",
        source=Source(
            "likaixin/ScreenSpot-Pro", "test", images=lambda row: [row["img_filename"]], annotations="annotations"
        ),
        prompt=_prompt,
        kind=AnswerKind.PLACE,
        scorer=_scorer(Coordinates.PIXELS),
        states_format=True,
    ),
)
