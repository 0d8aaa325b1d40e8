"""The table of types, malformed rows, hostile answers, and that nothing here needs jax."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vero_jax.config import RewardConfig
from vero_jax.errors import UserError
from vero_jax.rewards.custom import load_function
from vero_jax.rewards.router import VERIFIERS, is_known, score_response
from vero_jax.rewards.settings import RewardSettings

DEFAULT = RewardSettings()
SIZE = {"image_sizes": [[640, 480]]}


def wrapped(answer: str) -> str:
    return f"<think>x</think><answer>{answer}</answer>"


def boxed(answer: str) -> str:
    return wrapped(f"\\boxed{{{answer}}}")


def test_all_thirteen_types_are_known() -> None:
    assert len(VERIFIERS) == 13
    assert all(is_known(name, DEFAULT) for name in VERIFIERS)
    assert not is_known("no_such_type", DEFAULT) and not is_known(None, DEFAULT)


@pytest.mark.parametrize(
    ("name", "answer", "truth"),
    [("exact_match", "Red", "red"), ("ordering", "[2, 1]", "2,1"), ("list_match", "b", "['a', 'b']")],
)
def test_aliases_by_default_only(name: str, answer: str, truth: str) -> None:
    assert score_response(boxed(answer), truth, name, {}, settings=DEFAULT).score == 1.0
    assert is_known(name, DEFAULT) and not is_known(name, RewardSettings(strict_reference=True))


def test_accuracy_falls_with_the_format() -> None:
    scores = [score_response(text, "5", "numeric", {}, settings=DEFAULT) for text in (boxed("5"), wrapped("5"), "5")]
    assert [score.score for score in scores] == [1.0, pytest.approx(0.9), 0.0]


@pytest.mark.parametrize("coordinates", ["pixels", "normalized_1000"])
def test_the_coordinate_setting_holds_unless_the_row_says_otherwise(coordinates: Any) -> None:
    settings = RewardSettings(coordinates=coordinates)
    answers = {"pixels": [64, 48, 128, 96], "normalized_1000": [100, 100, 200, 200]}
    truth = '[{"bbox_2d": [64, 48, 128, 96]}]'

    def accuracy(kind: str, **extra: bool) -> float:
        answer = wrapped(json.dumps([{"bbox_2d": answers[kind]}]))
        return score_response(answer, truth, "grounding", {**SIZE, **extra}, settings=settings).accuracy

    for kind in answers:
        assert accuracy(kind) == float(kind == coordinates)
        assert accuracy(kind, normalize_bbox_to_1000=kind == "normalized_1000") == 1.0


def test_flat_sizes_and_lists_as_truths_are_accepted_by_default() -> None:
    answer = wrapped('[{"bbox_2d": [1, 2, 30, 40], "more": [{"a": 1}]}, 5]')
    truth = [{"bbox_2d": [1, 2, 30, 40]}]
    assert score_response(answer, truth, "grounding", {"image_size": [64, 48]}, settings=DEFAULT).accuracy == 1.0


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", [*sorted(VERIFIERS), "no_such_type", "", None, 3])
def test_malformed_rows_never_raise(name: Any, strict: bool) -> None:
    settings = RewardSettings(strict_reference=strict)
    answers = [
        "",
        "x",
        "[]",
        "{}",
        "[[]]",
        "null",
        "NaN",
        "[NaN, 1e999]",
        '[{"bbox_2d": [NaN, 1, 2, 3]}]',
        "\ud800",
        "1" * 5000,
    ]
    truths = [None, "", [], {}, 3, float("nan"), "[{]", "{'a'", "\x00", '[{"bbox_2d": [0, 0, "x", 1e999]}]']
    extras = [None, [], {}, {"tolerance": []}, {**SIZE, "normalize_bbox_to_1000": True}, {"image_sizes": [[0, 0]]}]
    extras += [{**SIZE, "model_family": "molmo2", "component_weights": 3, "iou_threshold": "x"}]
    for answer in answers:
        for truth in truths:
            for extra in extras:
                score = score_response(boxed(answer), truth, name, extra, settings=settings)
                assert 0.0 <= score.score <= 1.0


@pytest.mark.parametrize(
    "source",
    [
        '{"results": [{"x_min": 1e999, "y_min": 0, "x_max": 1, "y_max": 1}]}',
        '{"results": [{"x_min": ' + "9" * 400 + "}]}",
    ],
)
def test_molmo_overflow_is_a_wrong_answer(source: str) -> None:
    extra = {**SIZE, "model_family": "molmo2"}
    assert (
        score_response(wrapped(source), '[{"bbox_2d": [0, 0, 5, 5]}]', "grounding", extra, settings=DEFAULT).accuracy
        == 0.0
    )


def test_importing_the_rewards_leaves_jax_out() -> None:
    code = (
        "import pkgutil, importlib, sys, vero_jax.rewards as room\n"
        "for module in pkgutil.walk_packages(room.__path__, 'vero_jax.rewards.'):\n"
        "    importlib.import_module(module.name)\n"
        "sys.exit('jax' in sys.modules or 'torch' in sys.modules or 'nltk' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The example of docs/rewards.md.
CUSTOM = '''
def colour(response_text, ground_truth, extra_info):
    """Half a point for the right colour family."""
    answer = response_text.rpartition("<answer>")[2].partition("</answer>")[0].strip().lower()
    if answer == ground_truth.lower():
        return 1.0
    return 0.5 if answer in extra_info.get("also", []) else 0.0


def with_format(response_text, ground_truth, extra_info):
    return {"accuracy": 1.0, "format": 0.5}
'''


@pytest.fixture
def custom(tmp_path: Path) -> Path:
    file = tmp_path / "my_rewards.py"
    file.write_text(CUSTOM)
    return file


def test_a_users_own_function_scores_its_type(custom: Path) -> None:
    settings = RewardSettings(custom=f"{custom}:colour", custom_types={"always": f"{custom}:with_format"})
    assert is_known("custom", settings) and is_known("always", settings) and not is_known("custom", DEFAULT)
    score = score_response(wrapped("Teal"), "green", "custom", {"also": ["teal"]}, settings=settings)
    assert (score.accuracy, score.format, score.score) == (0.5, 1.0, pytest.approx(0.6))
    score = score_response("anything", "x", "always", {}, settings=settings)
    assert (score.accuracy, score.format) == (1.0, 0.5)


@pytest.mark.parametrize("target", ["nothing", "no_such_file.py:f", "{file}:no_such_function", "{file}:1x"])
def test_a_wrong_target_is_one_clear_sentence(custom: Path, target: str) -> None:
    with pytest.raises(UserError, match=r"reward\.custom"):
        load_function(target.format(file=custom))


def test_a_file_that_fails_on_import_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("import no_such_module_at_all")
    with pytest.raises(UserError, match=r"broken\.py fails on import"):
        load_function(f"{file}:f")


def test_settings_of_a_run_name_the_users_functions() -> None:
    config = RewardConfig(custom="a.py:f", custom_types=("Mine=b.py:g",), strict_reference=True)
    settings = RewardSettings.from_config(config, "normalized_1000")
    assert (settings.custom, settings.custom_types) == ("a.py:f", {"mine": "b.py:g"})
    assert settings.strict_reference and settings.coordinates == "normalized_1000"
    with pytest.raises(UserError, match=r"reward\.custom_types"):
        RewardSettings.from_config(RewardConfig(custom_types=("b.py:g",)))
