"""`registry.select`: the names by which users ask for benchmarks."""

import pytest

from vero_jax.errors import UserError
from vero_jax.evaluation.benchmark import CATEGORIES
from vero_jax.evaluation.registry import all_benchmarks, category_key, select


def _names(*asked: str) -> list[str]:
    return [task.name for task in select(asked)]


def test_veroeval_is_every_benchmark_in_the_order_of_the_registry():
    assert _names("veroeval") == list(all_benchmarks())


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_category_stands_for_its_benchmarks_by_either_name(category):
    expected = [task.name for task in all_benchmarks().values() if task.category == category]
    assert expected
    assert _names(category) == _names(category_key(category)) == _names(category.upper()) == expected


def test_the_keys_of_categories_need_no_quotes():
    assert [category_key(category) for category in CATEGORIES] == [
        "chart_ocr",
        "stem",
        "spatial_action",
        "knowledge_recognition",
        "grounding_counting_search",
        "captioning_if",
    ]


def test_a_row_of_the_table_stands_for_all_of_its_tasks():
    assert _names("VisualProbe") == ["visual_probe_easy", "visual_probe_hard", "visual_probe_medium"]
    assert _names("MMMU-Pro Vis") == ["mmmu_pro_vision"]


def test_names_may_stand_between_commas_and_count_once():
    assert _names("screenspot, chartqa,", "chartqa", "ChartQA-Pro") == ["chartqa", "chartqa_pro", "screenspot"]
    assert _names("Grounding, Counting & Search") == _names("grounding_counting_search")
    assert _names("stem,chartqa")[0] == "chartqa"


def test_no_names_are_no_benchmarks():
    assert _names() == _names("") == _names(" , ") == []


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("chartq", "chartqa"), ("chart-orc", "chart_ocr"), ("vero_eval", "veroeval"), ("chartqa,mathvist", "mathvista")],
)
def test_an_unknown_name_is_an_error_that_has_the_nearest(wrong, near):
    with pytest.raises(UserError, match=rf"is called '{wrong.split(',')[-1]}': near it are .*{near}"):
        select([wrong])


def test_a_name_without_any_near_it_lists_them_all():
    with pytest.raises(UserError, match=r"there are chartmuseum, .*mmifeval"):
        select(["zzzz"])
