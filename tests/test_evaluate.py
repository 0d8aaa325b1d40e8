"""A checkpoint on benchmarks: questions, the engine, a judge over HTTP, and what is left when things go wrong."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import golden_dir

from tests.evaluation.data_sets import ROWS, picture, stored, write
from tests.rewards.judge_endpoint import Endpoint, endpoint, refuses, text
from vero_jax.config import JudgeConfig
from vero_jax.errors import RunFailed, UserError
from vero_jax.evaluate import Plan, evaluate, main
from vero_jax.evaluation.folder import ResultsFolder
from vero_jax.evaluation.registry import benchmark
from vero_jax.evaluation.results import result, score_answers
from vero_jax.evaluation.variants import variant
from vero_jax.rewards.replies import read_records

__all__ = ["endpoint"]  # a fixture
pytestmark = pytest.mark.golden_model

VARIANT = "reasoning_samplingq3"
QUESTIONS = 5


@pytest.fixture(scope="module")
def policy() -> Path:
    return golden_dir("model") / "q3vl_tied_gqa2"


def chartqa_rows(count: int = QUESTIONS) -> list[dict[str, Any]]:
    kinds = ("human_test", "augmented_test")
    return [
        {
            "image": stored(picture((60 + 8 * number, 48), (30 * number % 256, 90, 200))),
            "question": f"How many bars are taller than {number}?",
            "answer": [str(number)],
            "type": kinds[number % 2],
        }
        for number in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four benchmarks: by rules, with 14 groups of a mean, with a judge, with answers that go to other answers."""
    folder = tmp_path / "data"
    write(benchmark("chartqa"), folder, chartqa_rows())
    for name in ("screenspot", "chartmuseum", "mmifeval"):
        write(benchmark(name), folder)
    return folder


def plan(policy: Path, data: Path, output: Path, tasks: str = "chartqa", **settings: Any) -> Plan:
    values: dict[str, Any] = {"max_new_tokens": 8, "context": 512, "lanes": 8} | settings
    return Plan(str(policy), tasks=(tasks,), data=str(data), output=str(output), **values)


def judged_by(server: Endpoint, **settings: Any) -> JudgeConfig:
    values: dict[str, Any] = {"timeout_s": 5.0, "max_retries": 2, "json_mode": "off", "sleep": "never"}
    return JudgeConfig(base_url=server.url, **(values | settings))


def run(wanted: Plan) -> dict[str, Any]:
    return evaluate(wanted, say=lambda line: None)


def answers(output: Path, task: str = "chartqa") -> dict[str, list[str]]:
    """The texts of a task's answers by question."""
    records = read_records(ResultsFolder(output).answers_file(task))
    return {name: [response["text"] for response in record["responses"]] for name, record in records.items()}


def test_every_question_has_a_scored_row_and_the_figures_are_those_of_the_rows(policy, data, tmp_path):
    output = tmp_path / "out"
    results = run(plan(policy, data, output, "chartqa,screenspot,erqa"))
    folder = ResultsFolder(output)
    assert folder.results() == json.loads(json.dumps(results))
    rows = list(folder.rows("chartqa"))
    assert [row["id"] for row in rows] == [f"chartqa-{number}" for number in range(QUESTIONS)]
    for number, row in enumerate(rows):
        assert row["prompt"] == f"How many bars are taller than {number}?" and row["row"]["answer"] == [str(number)]
        assert row["tokens"] == 8 or row["stop_reason"] == "stop"
        (place,) = row["images"]
        assert (output / place).read_bytes() == picture((60 + 8 * number, 48), (30 * number % 256, 90, 200))
    task = benchmark("chartqa")
    scores = score_answers(task, [row["row"] for row in rows], [row["response"] for row in rows], variant(VARIANT))
    assert [(score.value, score.strict) for score in scores] == [(row["value"], row["strict"]) for row in rows]
    assert results["tasks"]["chartqa"]["score"] == result(task, scores).score
    # What has no data is not run, and nowhere 0.
    assert results["tasks"]["erqa"]["score"] is None and results["tasks"]["erqa"]["reason"].startswith("no data")
    assert results["rows"]["ERQA"] == {
        "category": "Spatial & Action",
        "score": None,
        "strict": None,
        "standard_error": None,
    }
    assert results["overall"]["covered"] == 2 and results["overall"]["total"] == 30
    assert results["summary"].endswith("over 2 of 30 benchmarks")
    assert (output / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.real_data
def test_real_questions_with_their_pictures(policy, tmp_path, shared):
    """Of four benchmarks; pictures as files beside the rows."""
    folders = {"chartqa": "chartqa", "mathvision_test": "mathvision", "screenspot": "screenspot"}
    folders["game_qa_lite"] = "game_qa_examples"
    for name, folder in folders.items():
        task, place = benchmark(name), shared / "data" / "veroeval_samples" / folder
        home = tmp_path / "data" / task.source.repo
        shutil.copytree(place / "images", home / "images")
        rows = [json.loads(line) for line in (place / "samples.jsonl").read_text("utf-8").splitlines()]
        if name == "mathvision_test":
            rows = [{**row, "image": None, "decoded_image": row["image"]} for row in rows]
        (home / f"{task.source.split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    settings = {"limit": 2, "context": 2_048, "max_pixels": 200 * 200}
    results = run(plan(policy, tmp_path / "data", output, ",".join(folders), **settings))
    for name in folders:
        assert results["tasks"][name]["questions"] == 2 and not results["tasks"][name]["left_out"]
        for row in ResultsFolder(output).rows(name):
            assert row["prompt"] and (output / row["images"][0]).stat().st_size > 1_000
    assert results["overall"]["covered"] == 4


def test_an_evaluation_goes_on_where_it_was_and_asks_nothing_twice(policy, data, tmp_path):
    first, whole = tmp_path / "first", tmp_path / "whole"
    run(plan(policy, data, first, limit=2))
    file = ResultsFolder(first).answers_file("chartqa")
    before = file.read_bytes()
    assert set(answers(first)) == {"chartqa-0", "chartqa-2"}  # spread over the data set
    run(plan(policy, data, first))
    assert file.read_bytes().startswith(before) and len(answers(first)) == QUESTIONS
    run(plan(policy, data, whole))
    assert answers(first) == answers(whole)  # what is drawn does not depend on what else was asked
    again = file.read_bytes()
    results = run(plan(policy, data, first, limit=3))
    assert file.read_bytes() == again and results["tasks"]["chartqa"]["questions"] == 3


def test_tasks_of_an_earlier_command_stay_in_the_results(policy, data, tmp_path):
    output = tmp_path / "out"
    run(plan(policy, data, output, "chartqa"))
    results = run(plan(policy, data, output, "screenspot"))
    assert set(results["tasks"]) == {"chartqa", "screenspot"} and results["overall"]["covered"] == 2


def test_several_samples_give_their_mean_and_its_standard_error(policy, data, tmp_path):
    output = tmp_path / "out"
    results = run(plan(policy, data, output, samples=3))
    task, rows = benchmark("chartqa"), list(ResultsFolder(output).rows("chartqa"))
    assert [(row["id"], row["sample"]) for row in rows[:4]] == [
        ("chartqa-0", 0),
        ("chartqa-0", 1),
        ("chartqa-0", 2),
        ("chartqa-1", 0),
    ]
    figures = []
    for sample in range(3):
        kept = [row for row in rows if row["sample"] == sample]
        texts = [row["response"] for row in kept]
        figures.append(result(task, score_answers(task, [row["row"] for row in kept], texts, variant(VARIANT))).score)
    assert results["tasks"]["chartqa"]["score"] == pytest.approx(statistics.fmean(figures))
    assert results["tasks"]["chartqa"]["standard_error"] == pytest.approx(statistics.stdev(figures) / 3**0.5)
    assert results["tasks"]["chartqa"]["answers"] == 3 * QUESTIONS
    # The first sample is that of an evaluation with one.
    alone = tmp_path / "alone"
    run(plan(policy, data, alone))
    assert {name: texts[:1] for name, texts in answers(output).items()} == answers(alone)


def test_a_judge_is_asked_once_about_each_answer(policy, data, tmp_path, endpoint):
    endpoint.otherwise = text('{"is_equivalent": "Yes"}')
    output = tmp_path / "out"
    wanted = plan(policy, data, output, "chartmuseum", judge=judged_by(endpoint))
    results = run(wanted)
    assert results["tasks"]["chartmuseum"]["score"] == 100.0 and results["judge"]["model"] == "tiny-judge"
    (row,) = ResultsFolder(output).rows("chartmuseum")
    assert row["judge"][0]["reply"] == '{"is_equivalent": "Yes"}'
    asked = [body for body in endpoint.bodies if body["messages"][0]["content"] == row["judge"][0]["prompt"]]
    assert len(asked) == 1 and asked[0]["max_tokens"] == 2_048 and "response_format" not in asked[0]
    paths = len(endpoint.paths)
    assert run(wanted)["tasks"]["chartmuseum"]["score"] == 100.0
    assert len(endpoint.paths) == paths  # not even the server's name is asked for again


def test_a_judge_may_come_later(policy, data, tmp_path, endpoint):
    endpoint.otherwise = text('{"is_equivalent": "No"}')
    output = tmp_path / "out"
    results = run(plan(policy, data, output, "chartmuseum"))
    assert results["tasks"]["chartmuseum"]["score"] is None and results["tasks"]["chartmuseum"]["unjudged"] == 1
    before = answers(output, "chartmuseum")
    results = run(plan(policy, data, output, "chartmuseum", judge=judged_by(endpoint)))
    assert results["tasks"]["chartmuseum"]["score"] == 0.0 and answers(output, "chartmuseum") == before


def test_what_was_judged_stays_judged_without_the_judge(policy, data, tmp_path, endpoint):
    endpoint.otherwise = text('{"is_equivalent": "Yes"}')
    output = tmp_path / "out"
    run(plan(policy, data, output, "chartmuseum", judge=judged_by(endpoint)))
    paths = len(endpoint.paths)
    results = run(plan(policy, data, output, "chartqa"))
    assert results["tasks"]["chartmuseum"]["score"] == 100.0 and results["judge"]["model"] == "tiny-judge"
    assert len(endpoint.paths) == paths
    shutil.rmtree(data / benchmark("chartmuseum").source.repo)  # scored from what is kept, with or without its data
    results = run(plan(policy, data, output, "chartmuseum,chartqa"))
    assert results["tasks"]["chartmuseum"]["score"] == 100.0


def test_a_reply_that_cannot_be_read_is_unjudged_and_counted(policy, data, tmp_path, endpoint):
    endpoint.otherwise = text("Well, it depends.")
    results = run(plan(policy, data, tmp_path / "out", "chartmuseum", judge=judged_by(endpoint)))
    task = results["tasks"]["chartmuseum"]
    assert (task["score"], task["strict"], task["unjudged"]) == (0.0, None, 1)  # the reference takes it for wrong
    about_it = [body for body in endpoint.bodies if "14" in body["messages"][0]["content"]]
    assert len(about_it) == 2 and about_it[0]["seed"] != about_it[1]["seed"]


def test_answers_that_are_compared_with_others_reach_the_judge_together(policy, data, tmp_path, endpoint):
    def act(handler: Any, body: dict[str, Any]) -> None:
        asked = body["messages"][0]["content"]
        reply = (
            "right" if "Who?" in asked else "Score of constraint_1: 1/1" if "constraint_1" in asked else "Summary: True"
        )
        text(reply)(handler, body)

    endpoint.otherwise = act
    output = tmp_path / "out"
    results = run(plan(policy, data, output, "mmifeval", samples=2, judge=judged_by(endpoint)))
    rows = list(ResultsFolder(output).rows("mmifeval"))
    assert [(row["id"], row["sample"]) for row in rows] == [(f"mmifeval-{k}", s) for k in (0, 1) for s in (0, 1)]
    others = answers(output, "mmifeval")["mmifeval-2"]
    for row in rows[2:]:
        compared = [pair["prompt"] for pair in row["judge"] if "like a pirate" in pair["prompt"]]
        assert len(compared) == 1 and others[row["sample"]].strip() in compared[0]
    assert results["tasks"]["mmifeval"]["questions"] == 2 and results["tasks"]["mmifeval"]["unjudged"] == 0
    again = run(plan(policy, data, output, "mmifeval", samples=2, limit=1, judge=judged_by(endpoint)))
    assert again["tasks"]["mmifeval"]["questions"] == 1 and again["tasks"]["mmifeval"]["answers"] == 2


def test_a_judge_that_can_see_is_shown_the_pictures_of_what_is_about_them(policy, data, tmp_path, endpoint):
    write(benchmark("mia_bench"), data)
    endpoint.otherwise = text("score of component 1: 6/6, score of component 2: 4/4, total score: 10/10")
    tasks, output = "mia_bench,chartmuseum", tmp_path / "out"
    endpoint.models = ["reads", "sees"]
    reads, sees = judged_by(endpoint, model="reads"), judged_by(endpoint, model="sees")
    both = plan(policy, data, output, tasks, judge=reads, vision_judge=sees)
    results = run(both)
    assert results["tasks"]["mia_bench"]["strict"] == 100.0
    assert (results["judge"]["model"], results["vision_judge"]["model"]) == ("reads", "sees")
    (row,) = ResultsFolder(output).rows("mia_bench")
    (pair,) = row["judge"]
    by_model = {body["model"]: body["messages"][0]["content"] for body in endpoint.bodies}  # the latest one of each
    image, said = by_model["sees"]
    assert said == {"type": "text", "text": pair["prompt"]} and said["text"].startswith(
        "The picture that this is about"
    )
    shown = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert shown == (output / row["images"][0]).read_bytes()
    assert by_model["reads"].startswith("You compare") and "picture that this is about" not in by_model["reads"]
    # Replies are found again, also without their judges, and no judge takes the place of one that sees.
    asked = len(endpoint.bodies)
    for wanted in (both, plan(policy, data, output, tasks), plan(policy, data, output, tasks, judge=reads)):
        assert run(wanted)["tasks"]["mia_bench"]["strict"] == 100.0
    assert len(endpoint.bodies) == asked
    # A picture that is gone is named, and the other judge's benchmarks are scored all the same.
    (output / row["images"][0]).unlink()
    (output / "vision_judgements.jsonl").unlink()
    (output / "judgements.jsonl").unlink()
    with pytest.raises(RunFailed, match=f"{row['images'][0]}.*vision judge"):
        run(both)
    tasks_then = ResultsFolder(output).results()["tasks"]
    assert tasks_then["chartmuseum"]["unjudged"] == 1  # its reply says nothing about being equal
    assert (tasks_then["mia_bench"]["strict"], tasks_then["mia_bench"]["unjudged"]) == (None, 1)
    assert len(list(read_records(output / "judgements.jsonl"))) == 1


def test_without_a_judge_that_sees_the_other_one_is_told_that_it_does_not(policy, data, tmp_path, endpoint):
    write(benchmark("mia_bench"), data)
    endpoint.otherwise = text("score of component 1: 6/6, score of component 2: 4/4, total score: 10/10")
    run(plan(policy, data, tmp_path / "out", "mia_bench", judge=judged_by(endpoint)))
    assert endpoint.bodies[-1]["messages"][0]["content"].startswith("You do not see the picture")
    # One that sees alone judges what is about pictures, and nothing else.
    seen = plan(policy, data, tmp_path / "seen", "mia_bench,chartmuseum", vision_judge=judged_by(endpoint))
    results = run(seen)
    assert results["tasks"]["mia_bench"]["strict"] == 100.0 and results["judge"] is None
    assert results["tasks"]["chartmuseum"]["unjudged"] == 1
    assert len(endpoint.bodies) == 4  # twice a first question and one answer


def test_a_judge_that_thinks_can_be_given_more_tokens(policy, data, tmp_path, endpoint):
    write(benchmark("mmvetv2"), data)
    endpoint.otherwise = text("0.5")
    for most, wanted in ((128, 128), (64, 128), (3_000, 3_000)):
        output = tmp_path / f"out{most}"
        run(plan(policy, data, output, "mmvetv2", judge=judged_by(endpoint, max_tokens=most)))
        assert endpoint.bodies[-1]["max_tokens"] == wanted
        results = run(plan(policy, data, output, "mmvetv2"))  # found again without it
        assert results["tasks"]["mmvetv2"]["score"] == 50.0


def test_a_judge_that_stops_answering_costs_no_answer(policy, data, tmp_path, endpoint):
    output = tmp_path / "out"
    write(benchmark("simplevqa_en"), data, ROWS["simplevqa_en"] * 30)
    probe = text("yes")
    endpoint.otherwise = lambda handler, body: (probe if "2 + 2" in body["messages"][0]["content"] else refuses(500))(
        handler, body
    )
    wanted = plan(policy, data, output, "simplevqa_en", judge=judged_by(endpoint, max_retries=0, concurrency=2))
    # Equal questions with equal answers are one request; answers differ here, as their random numbers do.
    with pytest.raises(RunFailed, match=r"gave no reply to 20 questions in a row.*is scored in"):
        run(wanted)
    results = ResultsFolder(output).results()
    assert results["tasks"]["simplevqa_en"]["unjudged"] == 30 and results["tasks"]["simplevqa_en"]["score"] is None
    before = answers(output, "simplevqa_en")
    endpoint.otherwise = text('{"label": "正确"}')
    results = run(wanted)
    assert results["tasks"]["simplevqa_en"]["score"] == 100.0 and answers(output, "simplevqa_en") == before


def test_requests_without_a_reply_are_told_and_asked_again(policy, data, tmp_path, endpoint):
    write(benchmark("simplevqa_en"), data, [ROWS["simplevqa_en"][0] | {"question": f"Who {k}?"} for k in range(4)])
    good = text('{"label": "正确"}')
    endpoint.otherwise = lambda handler, body: (refuses(500) if "Who 2?" in body["messages"][0]["content"] else good)(
        handler, body
    )
    wanted = plan(policy, data, tmp_path / "out", "simplevqa_en", judge=judged_by(endpoint, max_retries=0))
    said: list[str] = []
    with pytest.raises(RunFailed, match=r"no reply to 1 requests \(1 x HTTP 500\).*asked again.*is scored in"):
        evaluate(wanted, say=said.append)
    assert "1 unjudged" in said[-1] and "100.0" in said[-1]  # the figures are printed all the same
    endpoint.otherwise = good
    assert run(wanted)["tasks"]["simplevqa_en"]["unjudged"] == 0


def test_a_judge_that_cannot_be_used_is_found_out_before_the_first_answer(policy, data, tmp_path):
    output = tmp_path / "out"
    dead = JudgeConfig(base_url="http://127.0.0.1:9/v1", max_retries=0, sleep="never", model="x")
    with pytest.raises(UserError, match="--judge-base-url"):
        run(plan(policy, data, output, "chartmuseum", judge=dead))
    assert answers(output, "chartmuseum") == {}


def test_what_cannot_be_asked_is_counted_by_reason(policy, tmp_path):
    rows = chartqa_rows(4)
    rows[1]["image"] = stored(picture()[:60])
    rows[2]["question"] = "Why? " * 600
    write(benchmark("chartqa"), tmp_path / "data", rows)
    output = tmp_path / "out"
    results = run(plan(policy, tmp_path / "data", output))
    task = results["tasks"]["chartqa"]
    assert task["left_out"] == {"prompt too long": 1, "image not readable": 1}
    assert (task["questions"], task["answers"]) == (4, 2)
    rows = {row["id"]: row for row in ResultsFolder(output).rows("chartqa")}
    assert rows["chartqa-1"]["missing"] == "image not readable" and rows["chartqa-1"]["sample"] is None
    file = ResultsFolder(output).answers_file("chartqa")
    before = file.read_bytes()
    run(plan(policy, tmp_path / "data", output))
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "damaged",
    [
        {},
        {"prompt": "x", "images": [], "row": {}, "responses": []},
        {"prompt": "x", "images": [], "row": [1], "responses": "text"},
        {"missing": 3},
    ],
)
def test_a_damaged_answer_is_asked_again(policy, data, tmp_path, damaged):
    output = tmp_path / "out"
    results, kept = run(plan(policy, data, output)), answers(output)
    file = ResultsFolder(output).answers_file("chartqa")
    lines = file.read_text().splitlines()
    lines[2] = json.dumps({"key": json.loads(lines[2])["key"], **damaged})
    file.write_text("\n".join(lines) + "\n")
    again = run(plan(policy, data, output))
    assert again["tasks"] == results["tasks"] and answers(output) == kept
    assert file.read_text().count("\n") == QUESTIONS + 1  # one line more, behind the damaged one


def test_a_task_that_is_not_whole_any_more_has_no_rows(policy, data, tmp_path):
    output = tmp_path / "out"
    run(plan(policy, data, output, limit=2))
    folder = ResultsFolder(output)
    settings = folder.settings()
    settings["asked"]["chartqa"]["questions"] = [f"chartqa-{number}" for number in range(QUESTIONS)]
    folder.write_settings(settings)  # as a kill leaves it that came before all answers
    results = run(plan(policy, data, output, "screenspot"))
    assert results["tasks"]["chartqa"]["reason"] == "only 2 of 5 questions are answered so far"
    assert folder.tasks() == ["screenspot"]


def test_results_may_lie_in_the_checkpoints_folder(policy, data, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(policy, checkpoint)
    wanted = plan(checkpoint, data, checkpoint / "results", limit=2)
    assert run(wanted)["tasks"] == run(wanted)["tasks"]
    # Where the checkpoint lies in the results' folder its weights still count.
    results = tmp_path / "results"
    inner = results / "checkpoint"
    shutil.copytree(policy, inner)
    run(plan(inner, data, results, limit=2))
    (inner / "more.safetensors").write_bytes(b"weights")
    with pytest.raises(UserError, match="weights that have changed since"):
        run(plan(inner, data, results, limit=2))


@pytest.mark.parametrize("asked", [[1], {"chartqa": {}}, {"chartqa": {"questions": [1]}}])
def test_settings_that_were_spoilt_are_one_sentence(policy, data, tmp_path, asked):
    output = tmp_path / "out"
    run(plan(policy, data, output, limit=1))
    folder = ResultsFolder(output)
    folder.write_settings(folder.settings() | {"asked": asked})
    with pytest.raises(UserError, match=r"settings\.json does not hold what was asked"):
        run(plan(policy, data, output, limit=1))


def test_answers_of_other_settings_are_not_mixed(policy, data, tmp_path):
    output = tmp_path / "out"
    run(plan(policy, data, output, limit=1))
    for settings, word in (
        ({"variant": "qwen25_zs"}, "variant"),
        ({"samples": 2}, "samples"),
        ({"seed": 7}, "seed"),
        ({"max_new_tokens": 9}, "max new tokens"),
    ):
        with pytest.raises(UserError, match=rf"were made with {word} .*another --output"):
            run(plan(policy, data, output, **settings))
    other = tmp_path / "other"
    shutil.copytree(policy, other)
    weights = other / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-8:] = bytes(8)
    weights.write_bytes(content)
    with pytest.raises(UserError, match="weights that have changed since"):
        run(plan(other, data, output))
    shutil.rmtree(data / benchmark("chartqa").source.repo)
    write(benchmark("chartqa"), data, chartqa_rows(3))
    with pytest.raises(UserError, match="the data of chartqa has changed"):
        run(plan(policy, data, output))


def test_pictures_can_be_kept_for_failures_only(policy, data, tmp_path):
    output = tmp_path / "out"
    run(plan(policy, data, output, pictures="none"))
    assert list(ResultsFolder(output).images_folder.glob("*")) == []
    output = tmp_path / "failures"
    run(plan(policy, data, output, pictures="failures"))
    wrong = {row["images"][0] for row in ResultsFolder(output).rows("chartqa") if row["strict"] == 0}
    assert {f"images/{path.name}" for path in ResultsFolder(output).images_folder.glob("*")} == wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/folder"], "does not exist"),
        (["POLICY", "--tasks", "chartqx"], "no benchmark or category of VeroEval is called 'chartqx'"),
        (["POLICY", "--limit", "0"], "--limit 0 must be at least 1"),
        (["POLICY", "--samples", "0"], "--samples 0 must be at least 1"),
        (["POLICY", "--max-new-tokens", "0"], "--max-new-tokens 0 must be at least 1"),
        (["POLICY", "--lanes", "0"], "--lanes 0 must be at least 1"),
        (["POLICY", "--max-pixels", "1"], "--max-pixels"),
        (["POLICY", "--tasks", ","], "--tasks names no benchmark"),
        (["POLICY", "--data", "EMPTY"], "nothing to evaluate: chartqa: no data: "),
        (["POLICY", "--data", "EMPTY", "--tasks", "stem"], "(and 3 more); correct --data"),
        (["POLICY", "--output", "FILE"], "give another --output"),
        (["POLICY", "--context", "1"], "--context 1 leaves no room"),
        (["POLICY", "--tensor", "3"], "cannot be split over 3 of 8 devices"),
        (["POLICY", "--judge-base-url", "nonsense"], "--judge-base-url"),
        (["POLICY", "--vision-judge-base-url", "nonsense"], "--vision-judge-base-url"),
        (
            ["POLICY", "--vision-judge-base-url", "http://127.0.0.1:8000/v1", "--pictures", "none"],
            "a vision judge needs --pictures all",
        ),
        (["DATA"], "is no checkpoint"),
        (["POLICY", "--data", "/no/data"], "there is no folder /no/data of data sets"),
    ],
)
def test_mistakes_are_one_sentence(policy, data, tmp_path, arguments, message, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    places = {"POLICY": policy, "DATA": data, "EMPTY": tmp_path / "empty", "FILE": tmp_path / "file"}
    words = [str(places.get(word, word)) for word in arguments]
    usual = {"--data": str(data), "--output": str(tmp_path / "out"), "--max-new-tokens": "8", "--context": "512"}
    usual["--tasks"] = "chartqa"
    given = [word for option, value in usual.items() if option not in words for word in (option, value)]
    assert main([*words, *given]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error


def test_what_cannot_be_downloaded_is_not_run_and_says_why(policy, data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    results = run(plan(policy, data, tmp_path / "out", "chartqa,erqa", download=True))
    assert results["tasks"]["erqa"]["score"] is None and "erqa" in results["tasks"]
    assert "FlagEval/ERQA" in results["tasks"]["erqa"]["reason"]
    assert results["tasks"]["chartqa"]["questions"] == QUESTIONS  # what is there already serves


def test_an_exported_run_is_evaluated(policy, data, tmp_path):
    trained = tmp_path / "run"
    trained.mkdir()
    (trained / "config.yaml").write_text("seed: 1\n")
    shutil.copytree(policy, trained / "hf")
    results = run(plan(trained, data, tmp_path / "out", limit=1))
    assert results["tasks"]["chartqa"]["questions"] == 1


COMMAND = [sys.executable, "-m", "vero_jax.evaluate"]


def command(policy: Path, data: Path, output: Path) -> list[str]:
    words = ["--tasks", "chartqa", "--data", str(data), "--output", str(output), "--lanes", "2", "--context", "512"]
    return [*COMMAND, str(policy), *words, "--max-new-tokens", "24"]


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_a_killed_evaluation_loses_no_answer_and_asks_none_twice(policy, tmp_path, repo):
    data = tmp_path / "data"
    count = 60
    write(benchmark("chartqa"), data, chartqa_rows(count))
    environment = os.environ | {"PYTHONPATH": str(repo), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    output = tmp_path / "killed"
    file = ResultsFolder(output).answers_file("chartqa")
    kept = b""
    for wanted in (3, 20, 41):
        process = subprocess.Popen(command(policy, data, output), env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while lines(file) < wanted and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        whole = file.read_bytes()[: file.read_bytes().rfind(b"\n") + 1]
        assert whole.startswith(kept)
        kept = whole
    with open(file, "ab") as cut:
        cut.write(b'{"key": "chartqa-59", "resp')  # a line that a kill cut short
    subprocess.run(command(policy, data, output), env=environment, check=True, capture_output=True, timeout=300)
    unbroken = tmp_path / "unbroken"
    subprocess.run(command(policy, data, unbroken), env=environment, check=True, capture_output=True, timeout=300)
    assert answers(output) == answers(unbroken) and len(answers(output)) == count
    names = Counter(json.loads(line)["key"] for line in file.read_bytes().splitlines() if line.endswith(b"}"))
    assert set(names.values()) == {1}
    rows = [row["id"] for row in ResultsFolder(output).rows("chartqa")]
    assert rows == [f"chartqa-{number}" for number in range(count)]
    same = ("tasks", "rows", "categories", "overall")
    a, b = ResultsFolder(output).results(), ResultsFolder(unbroken).results()
    assert {name: a[name] for name in same} == {name: b[name] for name in same}


@pytest.mark.slow
def test_sigterm_leaves_with_its_status_and_two_processes_do_not_share_a_folder(policy, tmp_path, repo):
    data, output = tmp_path / "data", tmp_path / "out"
    write(benchmark("chartqa"), data, chartqa_rows(200))
    environment = os.environ | {"PYTHONPATH": str(repo), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    process = subprocess.Popen(
        command(policy, data, output), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    file = ResultsFolder(output).answers_file("chartqa")
    while lines(file) < 2 and process.poll() is None:
        time.sleep(0.01)
    other = subprocess.run(command(policy, data, output), env=environment, capture_output=True, text=True, timeout=120)
    assert other.returncode == 2 and "is in use by another process" in other.stderr
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "the same command goes on" in error
    assert not ResultsFolder(output).results_file.exists()


@pytest.mark.slow
def test_all_thirty_rows_are_asked_and_scored_in_one_command(policy, tmp_path, endpoint):
    from vero_jax.evaluation.registry import all_benchmarks

    def act(handler: Any, body: dict[str, Any]) -> None:
        # One text that each judge's reader takes something from.
        reply = '{"score": 1, "correct": "yes"} [[7]] right Total score: 5/10 Score of constraint_1: 1/1 Summary: True'
        text(reply)(handler, body)

    endpoint.otherwise = act
    data = tmp_path / "data"
    for task in all_benchmarks().values():
        write(task, data)
    output = tmp_path / "out"
    results = run(plan(policy, data, output, "veroeval", judge=judged_by(endpoint)))
    assert results["overall"]["covered"] == 30 and len(results["tasks"]) == 32
    for name, task in results["tasks"].items():
        assert task["score"] is not None and not task["left_out"], (name, task)
    assert (output / "report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_our_own_server_can_be_the_judge(policy, data, tmp_path, repo):
    environment = os.environ | {"PYTHONPATH": str(repo), "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    server = subprocess.Popen(
        [sys.executable, "-m", "vero_jax.serve", str(policy), "--port", "0", "--max-prompt-tokens", "4096"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = next(line.split()[1] for line in server.stdout if line.startswith("ready: "))
        judge = JudgeConfig(
            base_url=url,
            max_tokens=128,
            json_mode="off",
            sleep="never",
            top_k=20,
            presence_penalty=0.0,
            frequency_penalty=0.0,
        )
        output = tmp_path / "out"
        write(benchmark("mmvetv2"), data)  # its judge has 128 tokens, which a policy of random weights always uses up
        write(benchmark("mia_bench"), data)
        results = run(plan(policy, data, output, "mmvetv2,mia_bench", judge=judge, vision_judge=judge))
        # A judge with random weights says nothing that can be read, but it says it.
        assert results["judge"]["model"] == policy.name
        for name in ("mmvetv2", "mia_bench"):  # MIA-Bench's picture goes with the request
            (row,) = ResultsFolder(output).rows(name)
            assert [type(pair["reply"]) for pair in row["judge"]] == [str]
            assert results["tasks"][name]["unjudged"] == 1
    finally:
        server.terminate()
        server.wait(timeout=60)


def test_a_plan_is_what_the_options_say(policy, data, tmp_path, monkeypatch):
    seen: list[Plan] = []

    def fake(wanted: Plan, **_: Any) -> dict[str, Any]:
        seen.append(wanted)
        return {"categories": {}, "tasks": {}, "summary": ""}

    monkeypatch.setattr("vero_jax.evaluate.evaluate", fake)
    words = [
        "--tasks",
        "stem,chartqa",
        "--samples",
        "5",
        "--limit",
        "50",
        "--variant",
        "reasoning",
        "--seed",
        "3",
    ]
    judge = ["--judge-base-url", "http://127.0.0.1:8000/v1", "--judge-model", "m", "--judge-concurrency", "3"]
    judge += ["--judge-max-tokens", "700"]
    judge += ["--vision-judge-base-url", "http://127.0.0.1:8001/v1", "--vision-judge-model", "v"]
    assert main([str(policy), *words, *judge, "--lanes", "16"]) == 0
    expected = Plan(str(policy), tasks=("stem,chartqa",), samples=5, limit=50, variant="reasoning", seed=3, lanes=16)
    assert dataclasses.replace(seen[0], judge=None, vision_judge=None) == expected
    assert seen[0].judge is not None and seen[0].judge.model == "m" and seen[0].judge.concurrency == 3
    assert seen[0].judge.json_mode == "off" and "enable_thinking" in seen[0].judge.extra_body
    assert seen[0].judge.max_tokens == 700
    assert seen[0].vision_judge == dataclasses.replace(seen[0].judge, base_url="http://127.0.0.1:8001/v1", model="v")
