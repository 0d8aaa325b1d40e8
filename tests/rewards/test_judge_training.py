"""Training with a judge, as a user starts it: real processes, a real HTTP server, keys that stay secret."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.rewards.judge_endpoint import Endpoint, Handler, refuses, running, says
from tests.test_train import REPO, command, environment, metrics
from vero_jax.data import mini

SECRET = "sk-very-secret-key"
WITHOUT = ("cold_start.steps=0", "trainer.val_greedy=false", "trainer.val_blind=false", "trainer.export=false")
VARYING = ("timing", "perf/", "judge/requests", "judge/cache_hits", "judge/latency", "val/judge", "reward/")


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the hub's layout, three quarters of whose questions need a judge."""
    folder = tmp_path_factory.mktemp("questions")
    parts = {("visual_alignment", "mini_captions"): (24, 6), ("chart_ocr", "mini_printed"): (8, 2)}
    for (domain, source), counts in parts.items():
        target = folder / mini.config_name(domain, source)
        target.mkdir()
        for split, count in zip(("train", "val"), counts, strict=True):
            rows = [mini.make_row(split, 1, domain, source, index) for index in range(count)]
            pq.write_table(pa.Table.from_pylist(rows), target / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def judge() -> Iterator[Endpoint]:
    """A judge that never says the same thing twice, if it can help it."""
    chance = random.Random(0)

    def act(handler: Handler, body: dict[str, Any]) -> None:
        says(chance.randint(1, 10))(handler, body)

    with running() as endpoint:
        endpoint.otherwise = act
        yield endpoint


def train(run: Path, cache: Path, questions: Path, judge: Endpoint, *settings: str, code: int = 0) -> str:
    words = command(
        run, cache, *WITHOUT, f"data.source={questions}", "reward.judge=openai",
        f"reward.judge_server.base_url={judge.url}",
        "reward.judge_server.api_key_env=JUDGE_KEY", "reward.judge_server.max_retries=1", *settings,
    )  # fmt: skip
    done = subprocess.run(
        words, env=environment() | {"JUDGE_KEY": SECRET}, capture_output=True, text=True, timeout=800, cwd=REPO
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output[-3000:]
    assert SECRET not in output and "Traceback" not in output
    return output


def numbers(run: Path) -> list[dict[str, Any]]:
    """What must not depend on where a judgement came from."""
    return [{key: value for key, value in line.items() if not key.startswith(VARYING)} for line in metrics(run)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cache: Path, questions: Path, judge: Endpoint) -> Path:
    run = tmp_path_factory.mktemp("runs") / "judged"
    output = train(run, cache, questions, judge)
    assert f"judge: tiny-judge at {judge.url}, first score 9" in output
    return run


def test_judged_questions_are_trained_on_and_the_metrics_say_how(finished: Path, judge: Endpoint) -> None:
    lines = metrics(finished)
    assert len(lines) == 3
    for line in lines:
        assert line["judge/judged"] == 6 and line["judge/missing"] == 0 and line["rewards/missing"] == 0
        assert 1 <= line["judge/mean_score"] <= 10 and line["judge/latency_p95_s"] > 0
    assert metrics(finished, "validation")[-1]["val/judge/judged"] == 5
    assert all(header["Authorization"] == f"Bearer {SECRET}" for header in judge.headers)
    records = [json.loads(line) for line in (finished / "validation" / "final.jsonl").read_text().splitlines()]
    assert {"llm_judge", "instruction_following_llm_judge"} & {record["reward_type"] for record in records}


def test_the_key_is_neither_in_the_run_nor_in_the_cache(finished: Path, cache: Path) -> None:
    files = [file for folder in (finished, cache) for file in folder.rglob("*") if file.is_file()]
    assert any(file.parent.name == "judge" for file in files)
    assert not [file for file in files if SECRET.encode() in file.read_bytes()]
    assert "api_key_env: JUDGE_KEY" in (finished / "config.yaml").read_text()


@pytest.mark.slow
def test_an_interrupted_run_gets_the_judgements_it_had(
    finished: Path, cache: Path, questions: Path, judge: Endpoint, tmp_path: Path
) -> None:
    run, before = tmp_path / "again", len(judge.bodies)
    train(run, cache, questions, judge, "trainer.steps=2")
    assert "resuming from the checkpoint" in train(run, cache, questions, judge)
    assert numbers(run) == numbers(finished)
    assert len(judge.bodies) == before


def test_a_judge_that_refuses_the_key_stops_the_run_at_its_start(
    cache: Path, questions: Path, judge: Endpoint, tmp_path: Path
) -> None:
    judge.first, first = refuses(401, f"bad key {SECRET}"), judge.first
    try:
        output = train(tmp_path / "run", cache, questions, judge, code=2)
    finally:
        judge.first = first
    errors = [line for line in output.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "refuses access (HTTP 401): check the key in JUDGE_KEY" in errors[0]


@pytest.mark.slow
def test_a_judge_that_breaks_down_stops_the_run(questions: Path, cache: Path, judge: Endpoint, tmp_path: Path) -> None:
    judge.otherwise, otherwise = refuses(404, "model unloaded"), judge.otherwise
    settings = ("reward.judge_server.cache=false", "trainer.val_before=false", "reward.max_missing_share=1")
    try:
        output = train(tmp_path / "run", cache, questions, judge, *settings, code=2)
    finally:
        judge.otherwise = otherwise
    assert "the judge gave no score for 17 of the latest 17 responses" in output  # two steps and a validation
    assert "mostly: HTTP 404 (model unloaded)" in output


def test_without_a_judge_its_questions_are_left_out_with_a_count(
    cache: Path, questions: Path, judge: Endpoint, tmp_path: Path
) -> None:
    before = len(judge.headers)
    settings = ("reward.judge=none", "trainer.steps=0", "trainer.val_before=false")
    output = train(tmp_path / "run", cache, questions, judge, *settings)
    assert output.count("left out 24 (needs a judge, reward.judge is none)") == 1
    assert output.count("left out 6 (needs a judge, reward.judge is none)") == 1
    assert len(judge.headers) == before and os.path.isdir(tmp_path / "run")
