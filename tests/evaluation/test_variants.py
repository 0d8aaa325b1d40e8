"""A variant changes coordinates and prompts, not only sampling."""

from __future__ import annotations

import dataclasses

import pytest

from tests.evaluation.data_sets import ROWS
from vero_jax.evaluation.registry import all_benchmarks, benchmark
from vero_jax.evaluation.scorers.geometry import Coordinates
from vero_jax.evaluation.variants import VARIANTS, sampling_of

# name: new tokens, temperature, top-p, top-k, presence penalty
TABLE = {
    "reasoning": (16_384, 0.6, 0.95, 0, 0.0),
    "reasoning_samplingq3": (16_384, 1.0, 0.95, 20, 1.5),
    "qwen3_thinking_zs": (16_384, 1.0, 0.95, 20, 1.5),
    "qwen3_zs": (16_384, 1.0, 1.0, 40, 2.0),
    "qwen25_zs": (16_384, 0.0, 1.0, 0, 0.0),
    "mimo_zs": (32_768, 0.0, 1.0, 0, 0.0),
}


def _text(name: str, variant: str) -> str:
    row, expand = {"width": 64, "height": 48, **ROWS[name][0]}, benchmark(name).source.expand
    row = row if expand is None else dict(expand(row)[0])
    return str(benchmark(name).messages(row, VARIANTS[variant])[0]["content"][-1]["text"])


def test_sampling_is_the_table_s() -> None:
    found = {v.name: (v.max_new_tokens, v.temperature, v.top_p, v.top_k, v.presence_penalty) for v in VARIANTS.values()}
    assert found == TABLE


@pytest.mark.parametrize("name", ["screenspot", "screenspotpro"])
def test_the_same_point_means_another_place_in_thousandths(name: str) -> None:
    task, answer = benchmark(name), '[{"point_2d": [250, 250]}]'
    row = {"width": 100, "height": 200, "bbox": [0.2, 0.2, 0.3, 0.3] if name == "screenspot" else [20, 40, 30, 60]}
    for variant, expected in (("reasoning", 0.0), ("reasoning_samplingq3", 1.0), ("qwen25_zs", 0.0)):
        score = task.score(task.answer(answer, VARIANTS[variant]), row)
        assert (score.value, score.strict) == (expected, expected), variant


def test_the_same_box_means_another_place_in_thousandths() -> None:
    task, row = benchmark("aerialvg_bbox"), {"width": 100, "height": 200, "bbox": [10, 20, 30, 60]}
    answer = '[{"bbox_2d": [100, 100, 300, 300]}]'
    assert task.score(task.answer(answer, VARIANTS["reasoning_samplingq3"]), row).value == pytest.approx(1.0)
    assert task.score(task.answer(answer, VARIANTS["reasoning"]), row).value == 0.0


def test_the_prompt_of_vero_models_does_not_tell_the_coordinates() -> None:
    assert _text("screenspot", "reasoning") == _text("screenspot", "reasoning_samplingq3")


def test_qwen3_points_by_calls_of_a_tool_and_only_the_last_call_counts() -> None:
    assert "<tool_call>" in _text("screenspot", "qwen3_zs") and "point_2d" not in _text("screenspot", "qwen3_zs")
    task = benchmark("screenspot")
    calls = "".join(
        f'<tool_call>{{"name": "computer_use", "arguments": {{"coordinate": [{x}, {x}]}}}}</tool_call>'
        for x in (900, 150)
    )
    row = {"width": 100, "height": 200, "bbox": [0.1, 0.1, 0.2, 0.2]}
    assert task.score(task.answer(calls, VARIANTS["qwen3_zs"]), row).value == 1.0


def test_only_the_sampling_variant_for_qwen3_bases_allows_for_outside_knowledge() -> None:
    assert _text("simplevqa_en", "reasoning") == "Who?"
    assert _text("simplevqa_en", "reasoning_samplingq3").startswith("Who? ")


def test_baselines_ask_for_the_form_of_the_answer() -> None:
    for variant in ("qwen3_zs", "qwen3_thinking_zs", "qwen25_zs"):
        assert "letter" in _text("cv_bench", variant)
        assert "number" in _text("countbenchqa", variant).removeprefix("How many?")
        assert "word" in _text("chartqa", variant)
        assert _text("mia_bench", variant) == "Write."
        for judged in ("fvqa", "simplevqa_en", "charxiv"):  # whatever the form
            assert _text(judged, variant) == _text(judged, "reasoning")
    for name, asked in (("chartqa", "word"), ("cv_bench", "letter"), ("countqa", "number"), ("realworldqa", "letter")):
        assert asked in _text(name, "mimo_zs") and "boxed" not in _text(name, "mimo_zs")
    for name in ("infovqa_val", "mmmu_pro_standard", "mathvision_test", "mathvista_testmini", "countbenchqa"):
        assert _text(name, "mimo_zs").endswith("\\boxed{}.")
    assert _text("mathvision_test", "qwen3_zs").endswith("\\boxed{}.")
    assert _text("mia_bench", "mimo_zs") == "Write."
    for name in ("cv_bench", "countbenchqa", "chartqa", "mia_bench"):
        assert _text(name, "reasoning") == _text(name, "reasoning_samplingq3")


def test_a_screenshot_of_a_question_gets_the_form_of_its_answer_and_nothing_else() -> None:
    assert _text("mmmu_pro_vision", "qwen3_zs") == "Answer with the option's letter only."
    assert _text("mmmu_pro_vision", "mimo_zs") == "Put your final answer in \\boxed{}."
    assert _text("mmmu_pro_vision", "reasoning").startswith("Solve the math problem")


@pytest.mark.parametrize(
    ("name", "variant", "tokens"),
    [
        ("chartqa", "qwen25_zs", 16),
        ("countqa", "qwen25_zs", 16),
        ("infovqa_val", "qwen25_zs", 32),
        ("cv_bench", "qwen25_zs", 1_024),
        ("mmifeval", "qwen25_zs", 1_024),
        ("mm_mt_bench", "qwen25_zs", 4_096),
        ("charxiv", "qwen25_zs", 8_096),
        ("fvqa", "qwen25_zs", 16_384),
        ("chartqa", "qwen3_zs", 1_024),
        ("mmvetv2", "qwen3_zs", 1_024),
        ("fvqa", "qwen3_zs", 1_024),
        ("simplevqa_en", "qwen3_zs", 16_384),
        ("vstar_bench", "qwen3_zs", 16_384),
        ("mia_bench", "qwen3_zs", 16_384),
        ("chartqa", "qwen3_thinking_zs", 16_384),
        ("chartqa", "reasoning", 16_384),
        ("chartqa", "mimo_zs", 32_768),
        ("no task of the table", "qwen25_zs", 16_384),
    ],
)
def test_answers_of_some_baselines_have_fewer_tokens(name: str, variant: str, tokens: int) -> None:
    assert VARIANTS[variant].tokens(name) == tokens


def test_instructions_are_followed_under_a_smaller_penalty_by_one_baseline() -> None:
    found = {name: sampling_of(VARIANTS["qwen3_zs"], name).presence_penalty for name in all_benchmarks()}
    smaller = {name for name, penalty in found.items() if penalty == 1.5}
    assert smaller == {"mm_mt_bench", "mia_bench", "mmifeval"} and set(found.values()) == {1.5, 2.0}


def test_tables_by_task_name_tasks_that_exist() -> None:
    for variant in VARIANTS.values():
        named = {*variant.task_tokens, *variant.task_penalties, *variant.task_instructions}
        assert named <= set(all_benchmarks()), variant.name


def test_baselines_are_told_what_coordinates_are_and_mimo_s_points_are_thousandths() -> None:
    for variant, point, box in (
        ("qwen25_zs", "pixels", "pixels"),
        ("mimo_zs", "0 to 1000", "pixels"),
        ("qwen3_zs", "1000 wide", "0 to 1000"),
    ):
        assert point in _text("screenspot", variant) and box in _text("aerialvg_bbox", variant)
    task, row = benchmark("screenspot"), {"width": 100, "height": 200, "bbox": [0.2, 0.2, 0.3, 0.3]}
    for said, expected in ("[250, 250]", 1.0), ("[25, 50]", 0.0):
        assert task.score(task.answer(f'[{{"point_2d": {said}}}]', VARIANTS["mimo_zs"]), row).value == expected
    box_task, box_row = benchmark("aerialvg_bbox"), {"width": 100, "height": 200, "bbox": [10, 20, 30, 60]}
    box_answer = box_task.answer('[{"bbox_2d": [10, 20, 30, 60]}]', VARIANTS["mimo_zs"])
    assert box_task.score(box_answer, box_row).value == pytest.approx(1.0)


def test_a_variant_of_one_s_own_is_a_change_to_another() -> None:
    own = dataclasses.replace(VARIANTS["reasoning"], name="mine", coordinates=Coordinates.FRACTIONS)
    task, row = benchmark("screenspot"), {"width": 100, "height": 200, "bbox": [0.1, 0.1, 0.2, 0.2]}
    assert task.score(task.answer('[{"point_2d": [0.15, 0.15]}]', own), row).value == 1.0
