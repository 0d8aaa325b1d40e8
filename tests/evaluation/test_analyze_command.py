"""`python -m vero_jax.analyze` as a user runs it, with a judge over real HTTP."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.analysis_inputs import answer, group, results, run
from tests.rewards.judge_endpoint import Endpoint, Handler, endpoint, refuses, slow, text
from vero_jax.analyze import main
from vero_jax.config import MixtureConfig
from vero_jax.evaluation.behaviours.catalogue import BEHAVIOURS

__all__ = ["endpoint"]  # a fixture
NAMES = [one.name for one in BEHAVIOURS]


def asked(body: dict[str, Any]) -> tuple[str, str]:
    """The trace and the behaviour that a request is about."""
    content = body["messages"][0]["content"]
    match = re.search(
        r"^TRACE-(\w+) begins\n(.*)\nTRACE-\1 ends\n\nBehaviour: (.*?)\n", content, re.DOTALL | re.MULTILINE
    )
    assert match is not None
    return match[2], match[3]


def marked(handler: Handler, body: dict[str, Any]) -> None:
    """Says 1 exactly where the trace has the behaviour's name in brackets."""
    trace, name = asked(body)
    text(json.dumps({"explanation": "the mark", "present": int(f"[{name}]" in trace)}))(handler, body)


def requests(endpoint: Endpoint) -> list[tuple[str, str]]:
    """What was asked about the traces of the tests, in order; they begin with "trace"."""
    return [pair for body in endpoint.bodies if (pair := asked(body))[0].startswith("trace")]


def analyze(*words: object) -> int:
    return main([str(word) for word in words])


def rates(folder: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    with (folder / "behaviours.csv").open(newline="") as file:
        return {(row["trained_on"], row["evaluated_on"], row["behaviour"]): row for row in csv.DictReader(file)}


def trace(number: int, *names: str) -> dict[str, Any]:
    marks = " ".join(f"[{name}]" for name in names)
    return answer(f"trace {number} {marks}</think><answer>{number} [productivity]</answer>")


def test_a_judge_that_knows_the_truth_gives_exactly_the_true_rates(endpoint: Endpoint, tmp_path: Path, capsys) -> None:
    """Behaviour k of 34 is marked in the traces whose number is below k modulo 11."""
    charts = [trace(n, *(name for place, name in enumerate(NAMES) if n < place % 11)) for n in range(10)]
    games = [trace(100 + n, "backtracking") for n in range(3)] + [trace(200)]
    path = results(tmp_path / "r", {"chartqa": charts, "game_qa_lite": games})
    endpoint.otherwise = marked
    assert analyze(f"stem={path}", "--judge-url", endpoint.url, "--output", tmp_path / "out") == 0
    found = rates(tmp_path / "out")
    assert len(found) == 3 * 34
    for place, name in enumerate(NAMES):
        row = found["stem", "Chart & OCR", name]
        assert (row["present"], row["judged"], row["unjudged"]) == (str(place % 11), "10", "0")
        assert float(row["rate"]) == (place % 11) / 10 and float(row["low"]) <= float(row["rate"]) <= float(row["high"])
    assert float(found["stem", "Spatial & Action", "backtracking"]["rate"]) == 0.75
    assert float(found["stem", "Spatial & Action", "verification"]["rate"]) == 0.0
    assert found["stem", "all", "backtracking"]["judged"] == "14"
    asked_about = requests(endpoint)
    assert len(asked_about) == len(set(asked_about)) == 34 * 14
    out = capsys.readouterr().out
    assert re.search(r"^backtracking +0\.50 \[0\.24 0\.76\] +0\.75 \[0\.30 0\.95\] +0\.57 \[", out, re.MULTILINE)
    assert re.search(r"^answers judged +10 +4 +14$", out, re.MULTILINE)


def test_what_is_sent_is_greedy_and_holds_the_thinking_part_only(endpoint: Endpoint, tmp_path: Path) -> None:
    path = results(tmp_path / "r", {"chartqa": [trace(1)]})
    endpoint.otherwise = marked
    analyze(path, "--judge-url", endpoint.url, "--output", tmp_path / "out")
    sent = next(body for body in endpoint.bodies if asked(body)[0].startswith("trace"))
    wanted = {"temperature": 0.0, "max_tokens": 2048, "seed": 42, "top_p": 1.0, "model": "tiny-judge"}
    assert {name: sent[name] for name in wanted} == wanted and "top_k" not in sent
    assert sent["response_format"] == {"type": "json_object"}
    assert sent["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked(sent)[0] == "trace 1 " and len(sent["messages"]) == 1
    assert rates(tmp_path / "out")["r", "all", "productivity"]["rate"] == "0.0"  # marked in the answer alone


def test_replies_that_cannot_be_read_are_unjudged_and_not_0(endpoint: Endpoint, tmp_path: Path, capsys) -> None:
    def partly(handler: Handler, body: dict[str, Any]) -> None:
        about, name = asked(body)
        bad = (name == "verification" and about.startswith("trace 3")) or name == "abstraction"
        (text("I would say it is present") if bad else marked)(handler, body)

    path = results(tmp_path / "r", {"chartqa": [trace(n, "verification") for n in range(1, 5)]})
    endpoint.otherwise = partly
    assert analyze(path, "--judge-url", endpoint.url, "--output", tmp_path / "out") == 0
    found = rates(tmp_path / "out")
    row = found["r", "Chart & OCR", "verification"]
    assert (row["present"], row["judged"], row["unjudged"], row["rate"]) == ("3", "3", "1", "1.0")
    row = found["r", "Chart & OCR", "abstraction"]
    assert (row["judged"], row["unjudged"], row["rate"], row["low"]) == ("0", "4", "", "")
    assert "5 replies could not be read: unjudged, in no rate" in capsys.readouterr().out
    entry = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert entry["judge"]["unreadable"] == 5 and entry["judge"]["no_reply"] == 0
    assert next(one for one in entry["behaviours"] if one["behaviour"] == "abstraction")["rate"] is None
    before = len(endpoint.bodies)
    analyze(path, "--judge-url", endpoint.url, "--judge-model", "tiny-judge", "--output", tmp_path / "out")
    assert len(endpoint.bodies) == before  # nobody is asked again what it said before, nor anything else


def test_questions_without_a_reply_are_counted_and_asked_the_next_time(
    endpoint: Endpoint, tmp_path: Path, capsys
) -> None:
    def picky(handler: Handler, body: dict[str, Any]) -> None:
        (refuses(400, "no") if asked(body) == ("trace 1 ", "abstraction") else marked)(handler, body)

    path = results(tmp_path / "r", {"chartqa": [trace(1), trace(2)]})
    words = (path, "--judge-url", endpoint.url, "--output", tmp_path / "out")
    endpoint.otherwise = picky
    assert analyze(*words) == 1
    row = rates(tmp_path / "out")["r", "all", "abstraction"]
    assert (row["judged"], row["unjudged"]) == ("1", "1")
    assert "1 questions have no reply; the same command asks them again" in capsys.readouterr().out
    endpoint.otherwise, endpoint.bodies = marked, []
    assert analyze(*words) == 0
    assert requests(endpoint) == [("trace 1 ", "abstraction")]
    assert rates(tmp_path / "out")["r", "all", "abstraction"]["unjudged"] == "0"


@pytest.mark.slow  # two processes and about 10 s of answers
def test_kept_replies_are_not_asked_again_after_a_kill(endpoint: Endpoint, tmp_path: Path) -> None:
    path = results(tmp_path / "r", {"chartqa": [trace(n, NAMES[n]) for n in range(6)]})
    endpoint.otherwise = slow(0.1, marked)
    words = [path, "--judge-url", endpoint.url, "--output", tmp_path / "out", "--judge-concurrency", "4"]
    command = [sys.executable, "-m", "vero_jax.analyze", *map(str, words)]
    replies = tmp_path / "out" / "replies.jsonl"
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    deadline = time.monotonic() + 60
    while not (replies.exists() and replies.read_bytes().count(b"\n") >= 40):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    lines = [json.loads(line)["id"] for line in replies.read_text().splitlines() if line.endswith("}")]
    kept = {tuple(line.removeprefix("chartqa/chartqa-").split(": ")) for line in lines}
    assert 40 <= len(kept) < 6 * 34
    with replies.open("a") as file:
        file.write('{"key": "cut by the ki')  # as a kill in the middle of a write leaves it
    time.sleep(0.3)  # the requests of the killed process end
    endpoint.bodies, endpoint.otherwise = [], marked
    assert subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ, check=False).returncode == 0
    again = {(about.split()[1], name) for about, name in requests(endpoint)}
    everything = {(str(n), name) for n in range(6) for name in NAMES}
    assert again == everything - kept and len(requests(endpoint)) == len(again)
    found = rates(tmp_path / "out")
    marks = [found["r", "all", name]["present"] for name in NAMES[:7]]
    assert marks == ["1"] * 6 + ["0"] and {row["judged"] for row in found.values()} == {"6"}


def test_runs_and_results_are_compared_by_what_they_were_trained_on(endpoint: Endpoint, tmp_path: Path) -> None:
    stem = [group(f"q{n}", "stem", f"trace {n} [backtracking]</think>4") for n in range(4)]
    mixed = [group(f"q{n}", "stem", f"trace {n}</think>4") for n in range(4)]
    one = run(tmp_path / "one", {"final": stem}, MixtureConfig(domains=("stem",)))
    all_of_them = run(tmp_path / "all", {"final": mixed})
    other = results(tmp_path / "base", {"mathvista_testmini": [trace(9, "backtracking"), trace(8)]})
    endpoint.otherwise = marked
    out = tmp_path / "out"
    assert analyze(one, all_of_them, f"base model={other}", "--judge-url", endpoint.url, "--output", out) == 0
    found = rates(out)
    got = [found[name, "STEM", "backtracking"]["rate"] for name in ("STEM", "mixture", "base model")]
    assert got == ["1.0", "0.0", "0.5"]
    for picture in ("behaviours.png", "behaviours_by_training.png", "behaviours_overall.png"):
        with Image.open(out / picture) as image:
            assert image.size[0] > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 20
    assert analyze(one, "--judge-url", endpoint.url, "--output", out) == 0
    assert sorted(file.name for file in out.glob("*.png")) == ["behaviours.png"]
    assert analyze(one, "--output", out) == 0
    assert sorted(file.name for file in out.iterdir()) == ["analysis.json", "lengths.csv", "replies.jsonl"]


def test_equal_traces_are_asked_about_once(endpoint: Endpoint, tmp_path: Path) -> None:
    for name in ("a", "b"):
        results(tmp_path / name, {"chartqa": [trace(1), trace(2, "backtracking")]})
    endpoint.otherwise = marked
    analyze(tmp_path / "a", tmp_path / "b", "--judge-url", endpoint.url, "--output", tmp_path / "out")
    assert len(requests(endpoint)) == 2 * 34
    assert rates(tmp_path / "out")["b", "all", "backtracking"]["rate"] == "0.5"


def test_no_more_answers_of_a_domain_are_judged_than_wanted(endpoint: Endpoint, tmp_path: Path) -> None:
    path = results(
        tmp_path / "r", {"chartqa": [trace(n) for n in range(9)], "blink": [trace(n) for n in range(20, 22)]}
    )
    endpoint.otherwise = marked
    analyze(path, "--judge-url", endpoint.url, "--output", tmp_path / "out", "--per-domain", 3)
    assert len(requests(endpoint)) == 34 * 5
    found = rates(tmp_path / "out")
    assert [found["r", name, NAMES[0]]["judged"] for name in ("Chart & OCR", "Spatial & Action", "all")] == [
        "3",
        "2",
        "5",
    ]


def test_larger_benchmarks_are_sampled_down_to_the_smallest_of_their_domain(
    endpoint: Endpoint, tmp_path: Path, capsys
) -> None:
    tasks = {"chartqa": 7, "infovqa_val": 3, "mathvista_testmini": 5}
    start = {"chartqa": 100, "infovqa_val": 200, "mathvista_testmini": 300}
    path = results(
        tmp_path / "r", {task: [trace(start[task] + n) for n in range(many)] for task, many in tasks.items()}
    )
    endpoint.otherwise = marked
    words = (path, "--judge-url", endpoint.url, "--output", tmp_path / "out")
    assert analyze(*words) == 0
    hundreds = [about.split()[1][0] for about, name in requests(endpoint) if name == NAMES[0]]
    assert sorted(hundreds) == ["1"] * 3 + ["2"] * 3 + ["3"] * 5
    out = capsys.readouterr().out
    assert re.search(r"^r +Chart & OCR +ChartQA +7 +3$", out, re.MULTILINE)
    entry = json.loads((tmp_path / "out" / "analysis.json").read_text())["judge"]
    assert [(one["benchmark"], one["questions"], one["judged"]) for one in entry["answers"]] == [
        ("ChartQA", 7, 3),
        ("InfoVQA", 3, 3),
        ("MathVista", 5, 5),
    ]
    assert entry["not_as_in_the_paper"] == ["the judge is tiny-judge, not Qwen3-32B"]
    assert "not as in the Vero paper: the judge is tiny-judge, not Qwen3-32B\n" in out
    before = len(endpoint.bodies)
    assert analyze(*words, "--per-domain", 4, "--judge-model", "tiny-judge") == 0
    assert len(endpoint.bodies) == before  # what --per-domain takes is part of what was judged
    entry = json.loads((tmp_path / "out" / "analysis.json").read_text())["judge"]
    assert [one["judged"] for one in entry["answers"]] == [2, 2, 4]
    assert "--per-domain leaves answers out" in entry["not_as_in_the_paper"]
    assert analyze(*words, "--per-domain", 6, "--judge-model", "tiny-judge") == 0
    entry = json.loads((tmp_path / "out" / "analysis.json").read_text())["judge"]
    assert "--per-domain leaves answers out" not in entry["not_as_in_the_paper"]


def test_a_judge_with_a_short_context_is_shown_both_ends_of_a_trace(endpoint: Endpoint, tmp_path: Path) -> None:
    long = "trace " + "a" * 40_000 + "b" * 40_000
    path = results(tmp_path / "r", {"chartqa": [answer(f"{long}</think>4")]})
    endpoint.otherwise = marked
    words = (path, "--judge-url", endpoint.url, "--output")
    assert analyze(*words, tmp_path / "whole") == 0
    assert {about for about, _ in requests(endpoint)} == {long}  # all of it by default
    endpoint.bodies = []
    assert analyze(*words, tmp_path / "out", "--trace-characters", 1000) == 0
    wanted = f"trace {'a' * 494}\n[... 79,006 characters left out ...]\n{'b' * 500}"
    assert {about for about, _ in requests(endpoint)} == {wanted}
    entry = json.loads((tmp_path / "out" / "analysis.json").read_text())["judge"]
    assert entry["characters_of_a_trace"] == 1000
    assert "of 1 answers the judge sees 1,000 characters, not all" in entry["not_as_in_the_paper"]


def test_lengths_need_no_judge(tmp_path: Path, capsys) -> None:
    path = results(
        tmp_path / "r", {"chartqa": [answer("a b c</think>4", tokens=1200), answer("a</think>4", right=False)]}
    )
    assert analyze(path, "--output", tmp_path / "out", "--trained-on", "charts") == 0
    out = capsys.readouterr().out
    assert re.search(r"^charts +Chart & OCR +2 +2\.0 +1\.0 +2\.0 +1\.2 +2\.8 +0\.0% +3\.0 +1\.0$", out, re.MULTILINE)
    assert "length: answer tokens" in out and "1,200.0" in out
    with (tmp_path / "out" / "lengths.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["evaluated_on"], row["measure"], row["mean"]) for row in rows[:3]] == [
        ("Chart & OCR", "thinking words", "2.0"),
        ("Chart & OCR", "answer words", "3.0"),
        ("Chart & OCR", "answer tokens", "605.0"),
    ]
    entry = json.loads((tmp_path / "out" / "analysis.json").read_text())
    assert entry["inputs"][0]["trained_on"] == "charts" and entry["behaviours"] is None and len(entry["lengths"]) == 6


# Mistakes.


def test_a_judge_whose_replies_can_never_be_read_is_one_sentence(endpoint: Endpoint, tmp_path: Path, capsys) -> None:
    path = results(tmp_path / "r", {"chartqa": [trace(1)]})
    endpoint.otherwise = text("Yes!")
    assert analyze(path, "--judge-url", endpoint.url, "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: none of the judge's 34 replies could be read, and 0 questions have none")
    assert not (tmp_path / "out" / "behaviours.csv").exists()


def test_no_server_is_one_sentence(tmp_path: Path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    path = results(tmp_path / "r", {"chartqa": [trace(1)]})
    words = ("--judge-url", f"http://127.0.0.1:{port}/v1", "--judge-max-retries", "0", "--output", tmp_path / "out")
    assert analyze(path, *words) == 2
    assert re.fullmatch(
        r"error: the judge's server at .* does not answer .*: start it, or correct --judge-base-url, or leave it out\n",
        capsys.readouterr().err,
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("absent",), "absent is neither a results folder"),
        (("one", "--trace-characters", "999"), "--trace-characters must be 1,000 or more, not 999"),
        (("one", "--per-domain", "0"), "--per-domain must be 1 or more, not 0"),
        (("one", "two", "--trained-on", "stem"), "--trained-on is given 1 times for 2 inputs"),
        (("x=one", "x=two"), "two inputs are called 'x'"),
        (("one", "one"), "is given twice"),
        (("one", "--judge-url", "localhost"), "must be an address such as"),
        (("one", "--output", "file"), r"cannot write into file \(File exists\)"),
    ],
)
def test_a_wrong_word_is_one_sentence(
    words: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name in ("one", "two"):
        results(tmp_path / name, {"chartqa": [trace(1)]})
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert analyze(*words) == 2
    error = capsys.readouterr().err
    assert re.search(sentence, error) and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("names", [("one", "two"), ("a/same", "b/same")])
def test_runs_of_the_same_domains_are_told_apart_by_their_places(names: tuple[str, str], tmp_path: Path) -> None:
    paths = [run(tmp_path / name, {"final": [group("q", "stem", "x")]}) for name in names]
    assert analyze(*paths, "--output", tmp_path / "out") == 0
    entry = json.loads((tmp_path / "out" / "analysis.json").read_text())
    short = [f"mixture ({path.name})" for path in paths]
    wanted = short if short[0] != short[1] else [f"mixture (same) ({path})" for path in paths]
    assert [one["trained_on"] for one in entry["inputs"]] == wanted


def test_the_help_says_what_comes_in_and_what_the_judge_is(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        analyze("--help")
    out = capsys.readouterr().out
    assert "--judge-url" in out and "Qwen3-32B" in out and "--per-domain" in out and "--trained-on" in out
