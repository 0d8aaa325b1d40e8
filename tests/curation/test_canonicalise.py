"""The answer canonicaliser as a command, by rules and with a text model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.curation.curation_rows import answers, question_of, read, row, text_of, write
from tests.rewards.judge_endpoint import Endpoint, endpoint, refuses
from vero_jax.curation import __main__ as command
from vero_jax.curation.rows import Rows

__all__ = ["endpoint"]  # a fixture

ROWS = [
    row(0, truth="$222.14", question="How much is it?"),
    row(1, truth="(B) cat", question="Which?\nA. dog\nB. cat"),
    row(2, truth="10-20"),
    row(3, truth="North America."),
    row(4, truth="['rain', 'raining']", reward_type="list_string_match"),
    row(5, truth="45%"),
    row(6, truth="$5", domain="spatial_action"),
    row(7, truth="1, 2", reward_type="number_list", domain="stem"),
    row(8, truth="42", reward_type="numeric", tolerance=0.05),
]


def report(out: Path) -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in json.loads((out / "report.json").read_text())}


def run(source: Path, out: Path, *options: str) -> int:
    return command.main(["canonicalise", str(source), "--out", str(out), *options])


def test_kept_rows_carry_the_new_answer_and_its_reward_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write(tmp_path / "in", ROWS), tmp_path / "out") == 0
    rows = {entry["id"]: entry for entry in read(tmp_path / "out/train.jsonl")}
    found = {
        name[-1]: (entry["reward_model"]["ground_truth"], entry["extra_info"]["reward_type"])
        for name, entry in rows.items()
    }
    assert found == {
        "0": ("222.14", "numeric"),
        "1": ("B", "multiple_choice"),
        "3": ("North America", "string_match"),
        "4": ("['rain', 'raining']", "list_string_match"),
        "5": ("45", "numeric"),
        "6": ("$5", "string_match"),
        "7": ("1, 2", "number_list"),
        "8": ("42", "numeric"),
    }
    assert rows["pets_0"]["extra_info"]["answer"] == "$222.14"  # what was stored stays to be seen
    assert rows["pets_8"]["extra_info"]["tolerance"] == 0.05
    printed = capsys.readouterr().out
    assert "dropped, more than one value" in printed and "kept, not canonicalised" in printed


def test_the_report_has_before_and_after_type_and_reason_of_every_row(tmp_path: Path) -> None:
    run(write(tmp_path / "in", ROWS), tmp_path / "out")
    found = report(tmp_path / "out")
    assert len(found) == len(ROWS)
    assert found["pets_2"] == {
        "id": "pets_2", "split": "train", "source": "pets", "before": "10-20", "after": None,
        "type_before": "string_match", "type": None, "reason": "more than one value",
    }  # fmt: skip
    assert found["pets_0"]["reason"] == "number" and found["pets_0"]["type"] == "numeric"
    assert found["pets_8"]["reason"] == "unchanged" and found["pets_6"]["reason"] == "not canonicalised"


def test_percent_is_a_setting(tmp_path: Path) -> None:
    run(write(tmp_path / "in", ROWS), tmp_path / "out", "--percent", "fraction")
    assert report(tmp_path / "out")["pets_5"]["after"] == "0.45"


def test_a_second_pass_changes_nothing(tmp_path: Path) -> None:
    run(write(tmp_path / "in", ROWS), tmp_path / "once")
    run(tmp_path / "once/train.jsonl", tmp_path / "twice")
    assert {entry["reason"] for entry in report(tmp_path / "twice").values()} == {"unchanged", "not canonicalised"}
    assert len(report(tmp_path / "twice")) == len(ROWS) - 1


def test_marks_of_the_old_answer_do_not_stay(tmp_path: Path) -> None:
    guessed = row(0, truth="5 cm", reward_type_guessed=True, ground_truth_doubt="odd")
    run(write(tmp_path / "in", [guessed]), tmp_path / "out")
    extra = read(tmp_path / "out/train.jsonl")[0]["extra_info"]
    assert "reward_type_guessed" not in extra and "ground_truth_doubt" not in extra


def test_a_source_of_which_nothing_is_left_has_a_report_all_the_same(tmp_path: Path) -> None:
    assert run(write(tmp_path / "in", [row(0, truth="x+1")]), tmp_path / "out") == 0
    assert report(tmp_path / "out")["pets_0"]["reason"] == "symbolic" and not (tmp_path / "out/train.jsonl").exists()


@pytest.mark.real_data
def test_real_curated_answers_stay_as_they_are(shared: Path, tmp_path: Path) -> None:
    assert run(shared / "data/real_mini/hub", tmp_path / "out") == 0
    found = report(tmp_path / "out").values()
    changed = [entry for entry in found if entry["reason"] not in ("unchanged", "not canonicalised")]
    assert len(found) == 228 and {entry["source"] for entry in changed} == {"sroie", "aokvqa"}
    # Trailing zeros of amounts, and lists: one spelling, or nothing in common.
    assert all(float(e["before"]) == float(e["after"]) for e in changed if e["source"] == "sroie")
    assert sum(entry["after"] is None for entry in changed) == 4
    assert len(list(Rows(tmp_path / "out/train.jsonl"))) == 224


# With a model.


def propose(endpoint: Endpoint, by_question: dict[str, Any]) -> None:
    def reply(question: str) -> Any:
        found = by_question.get(question, {"type": "none", "answer": ""})
        return json.dumps(found) if isinstance(found, dict) else found

    endpoint.otherwise = answers(reply)


def with_model(endpoint: Endpoint, source: Path, out: Path, *options: str) -> int:
    words = ("--with-model", "--base-url", endpoint.url, "--timeout", "5", "--max-retries", "1")
    return run(source, out, *words, *options)


def test_a_models_proposals_are_asked_for_checked_and_applied(endpoint: Endpoint, tmp_path: Path) -> None:
    said = "It must be Paris, I think, because of the tower that one can see far away behind the houses"
    rows = [
        row(0, truth=said, question="city?", domain="knowledge_recognition"),
        row(1, truth=said, question="invented?", domain="knowledge_recognition"),
        row(2, truth="5 cm", question="length?"),
        row(3, truth="x+1", question="formula?"),
        row(4, truth="cat", question="dropped?"),
        row(5, truth="$5", question="place?", domain="spatial_action"),
    ]
    propose(
        endpoint,
        {
            "city?": {"type": "string", "answer": "Paris"},
            "invented?": {"type": "string", "answer": "London"},
            "length?": {"type": "numeric", "answer": 5},
            "formula?": {"type": "string", "answer": "x+1"},
        },
    )
    assert with_model(endpoint, write(tmp_path / "in", rows), tmp_path / "out") == 0
    found = {name[-1]: (entry["after"], entry["reason"]) for name, entry in report(tmp_path / "out").items()}
    assert found == {
        "0": ("Paris", "model"),
        "1": (None, "model and rules disagree"),
        "2": ("5", "number"),
        "3": (None, "symbolic"),
        "4": (None, "the model finds no form"),
        "5": ("$5", "not canonicalised"),
    }
    assert "place?" not in [question_of(body) for body in endpoint.bodies]
    assert all("image_url" not in json.dumps(body) for body in endpoint.bodies)
    assert said in text_of(endpoint.bodies[1])


@pytest.mark.parametrize(("undecided", "left"), [("rules", ["pets_0", "pets_1"]), ("drop", ["pets_0"])])
def test_where_the_model_says_nothing_readable_the_rules_decide_or_the_row_goes(
    endpoint: Endpoint, tmp_path: Path, undecided: str, left: list[str]
) -> None:
    rows = [row(0, truth="5 cm", question="good"), row(1, truth="7 cm", question="bad")]
    propose(endpoint, {"good": {"type": "numeric", "answer": "5"}, "bad": "what?"})
    source = write(tmp_path / "in", rows)
    assert with_model(endpoint, source, tmp_path / "out", "--undecided", undecided) == 0
    assert [entry["id"] for entry in read(tmp_path / "out/train.jsonl")] == left


def test_missing_replies_keep_the_result_back_and_the_next_run_goes_on(endpoint: Endpoint, tmp_path: Path) -> None:
    source = write(tmp_path / "in", [row(0, truth="5 cm", question="good"), row(1, truth="7 cm", question="bad")])
    good = {"type": "numeric", "answer": "5"}
    propose(endpoint, {"good": good, "bad": refuses(400)})
    assert with_model(endpoint, source, tmp_path / "out") == 1 and not (tmp_path / "out").exists()
    propose(endpoint, {"bad": {"type": "numeric", "answer": "7"}})
    assert with_model(endpoint, source, tmp_path / "out") == 0
    assert [entry["reward_model"]["ground_truth"] for entry in read(tmp_path / "out/train.jsonl")] == ["5", "7"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--max-words", "0"), "--max-words is 0"),
        (("--with-model", "--base-url", "nowhere"), "--base-url must be an address"),
        (("--with-model", "--offline"), "--offline needs --model"),
        (("--sources", "pet"), "--sources names 'pet'"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, options: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write(tmp_path / "in", ROWS), tmp_path / "out", *options) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
