"""Asking a server many questions over real HTTP: what is sent, what is kept, and what stops the command."""

from __future__ import annotations

import argparse
import base64
import io
import json
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.curation.curation_rows import picture
from tests.rewards.judge_endpoint import Act, Endpoint, body, endpoint, refuses, says, slow, text, wire
from vero_jax.config import JudgeConfig
from vero_jax.data.images import ImageError
from vero_jax.errors import UserError
from vero_jax.rewards.asking import WORDING, Ask, Outcome, add_server_arguments, collect, data_url, server_config
from vero_jax.rewards.judge_server import JudgeServer
from vero_jax.rewards.replies import ReplyFile

__all__ = ["endpoint"]  # a fixture


def config(*words: str, url: str = "http://127.0.0.1:9/v1") -> JudgeConfig:
    parser = argparse.ArgumentParser()
    defaults = JudgeConfig(temperature=0.6, top_p=0.8, top_k=20, max_tokens=8096, concurrency=4, timeout_s=5.0)
    add_server_arguments(parser, defaults)
    return server_config(parser.parse_args(["--base-url", url, *words]))


def ask_all(
    endpoint: Endpoint, path: Path, questions: Sequence[str], *words: str, said: list[str] | None = None
) -> tuple[Outcome, dict[str, str]]:
    settings = config(*words, url=endpoint.url)
    with ReplyFile(path, lambda record: record.get("reply", record.get("error"))) as replies:
        server = JudgeServer(settings, (said if said is not None else []).append, WORDING)
        missing = [Ask(f"id {q}", q, (lambda q=q: q), lambda reply: reply != "again") for q in questions]
        outcome = collect(
            server,
            "probe",
            lambda: [ask for ask in missing if replies.get(ask.key) is None],
            replies,
            concurrency=settings.concurrency,
            say=print,
        )
        return outcome, {q: replies.get(q) for q in questions}


def echo(handler, request) -> None:
    text(f"to {request['messages'][0]['content']}")(handler, request)


QUESTIONS = [f"q{n}" for n in range(12)]


def test_every_question_is_asked_once_with_the_sampling_of_the_paper(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.otherwise = echo
    outcome, found = ask_all(endpoint, tmp_path / "r.jsonl", QUESTIONS)
    assert outcome.asked == 12 and not outcome.failures and found == {q: f"to {q}" for q in QUESTIONS}
    assert len(endpoint.bodies) == 13  # with the probe
    sent = endpoint.bodies[1]
    wanted = {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "max_tokens": 8096, "presence_penalty": 0.0}
    assert sent["model"] == "tiny-judge" and {name: sent[name] for name in wanted} == wanted
    assert sent["response_format"] == {"type": "json_object"} and "chat_template_kwargs" not in sent
    assert len({request["seed"] for request in endpoint.bodies[1:]}) == 12
    assert ask_all(endpoint, tmp_path / "r.jsonl", QUESTIONS)[0].asked == 0 and len(endpoint.bodies) == 14


def test_no_more_than_the_wanted_number_of_requests_run_at_a_time(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.otherwise = slow(0.05, says(1))
    ask_all(endpoint, tmp_path / "r.jsonl", QUESTIONS, "--concurrency", "3")
    assert 2 <= endpoint.most_busy <= 3


@pytest.mark.parametrize(
    "bad",
    [refuses(429), refuses(500), wire(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choi'), body(b"{not json")],
)
def test_a_failure_that_may_pass_costs_no_reply(endpoint: Endpoint, tmp_path: Path, bad: Act) -> None:
    endpoint.script = [echo, bad, echo, bad, bad]
    endpoint.otherwise = echo
    outcome, found = ask_all(endpoint, tmp_path / "r.jsonl", QUESTIONS)
    assert outcome.asked == 12 and not outcome.failures and all(found.values())


def test_a_question_without_a_reply_is_counted_and_asked_again_next_time(endpoint: Endpoint, tmp_path: Path) -> None:
    def picky(handler, request) -> None:
        (refuses(400, "no") if request["messages"][0]["content"] == "q3" else echo)(handler, request)

    endpoint.otherwise = picky
    outcome, found = ask_all(endpoint, tmp_path / "r.jsonl", QUESTIONS)
    assert outcome.failures == {"HTTP 400": 1} and outcome.asked == 11 and found["q3"] is None
    endpoint.otherwise = echo
    outcome, found = ask_all(endpoint, tmp_path / "r.jsonl", QUESTIONS)
    assert outcome.asked == 1 and found["q3"] == "to q3"


def test_a_reply_that_cannot_be_read_is_asked_for_once_more_with_another_seed(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.script = [echo, text("again"), text("fine")]
    _, found = ask_all(endpoint, tmp_path / "r.jsonl", ["q"])
    assert found == {"q": "fine"} and endpoint.bodies[1]["seed"] + 1 == endpoint.bodies[2]["seed"]
    endpoint.otherwise = text("again")
    _, found = ask_all(endpoint, tmp_path / "r2.jsonl", ["q"])
    assert found == {"q": "again"}  # kept, so that it can be looked at


def test_a_server_that_stops_answering_stops_the_command_and_keeps_the_replies(
    endpoint: Endpoint, tmp_path: Path
) -> None:
    endpoint.script = [echo] * 6
    endpoint.otherwise = refuses(401, "key expired")
    with pytest.raises(
        UserError, match=r"no reply to 20 questions in a row .*HTTP 401: key expired.*goes on from there"
    ):
        ask_all(endpoint, tmp_path / "r.jsonl", [f"q{n}" for n in range(200)])
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 5 and len(endpoint.bodies) < 40
    endpoint.otherwise = echo
    outcome, _ = ask_all(endpoint, tmp_path / "r.jsonl", [f"q{n}" for n in range(200)])
    assert outcome.asked == 195


def test_a_row_that_cannot_be_shown_is_kept_as_such(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.otherwise = echo

    def broken() -> str:
        raise ImageError("image not readable", "x")

    with ReplyFile(tmp_path / "r.jsonl", lambda record: record.get("error")) as replies:
        server = JudgeServer(config(url=endpoint.url), print, WORDING)
        collect(server, "probe", lambda: [Ask("a", "k", broken)], replies, concurrency=2, say=print)
        assert replies.get("k") == "image not readable"


def test_what_goes_wrong_while_reading_rows_is_not_swallowed(endpoint: Endpoint, tmp_path: Path) -> None:
    def rows():
        yield Ask("a", "k", lambda: "q")
        raise UserError("the file is broken")

    endpoint.otherwise = slow(0.2, echo)
    with ReplyFile(tmp_path / "r.jsonl", dict) as replies, pytest.raises(UserError, match="the file is broken"):
        collect(JudgeServer(config(url=endpoint.url), print, WORDING), "p", rows, replies, concurrency=2, say=print)


def test_nobody_there_is_one_sentence_with_the_commands_options(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with (
        ReplyFile(tmp_path / "r.jsonl", dict) as replies,
        pytest.raises(UserError, match=r"^the server at .* does not answer \(.*\): start it, or correct --base-url$"),
    ):
        server = JudgeServer(config("--max-retries", "0", url=f"http://127.0.0.1:{port}/v1"), print, WORDING)
        collect(server, "probe", lambda: [], replies, concurrency=2, say=print)


@pytest.mark.parametrize(("status", "sentence"), [(401, "check the key in MY_KEY"), (404, "--base-url or --model")])
def test_a_wrong_key_or_address_is_one_sentence_without_the_key(
    endpoint: Endpoint, tmp_path: Path, status: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    endpoint.otherwise = refuses(status, "the key sk-very-secret is unknown")
    with pytest.raises(UserError, match=sentence) as caught:
        ask_all(endpoint, tmp_path / "r.jsonl", QUESTIONS, "--api-key-env", "MY_KEY")
    assert "sk-very-secret" not in str(caught.value) and "reward." not in str(caught.value)
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert (tmp_path / "r.jsonl").read_text() == ""


def test_a_field_that_the_server_does_not_know_is_left_out_and_said(endpoint: Endpoint, tmp_path: Path) -> None:
    def strict(handler, request) -> None:
        (refuses(400, "unknown field top_k") if "top_k" in request else echo)(handler, request)

    endpoint.otherwise = strict
    said: list[str] = []
    outcome, _ = ask_all(endpoint, tmp_path / "r.jsonl", QUESTIONS, said=said)
    assert outcome.asked == 12 and said == ["server: the server refuses 'top_k', which is left out from here on"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--base-url", "localhost:8000"), "must be an address such as"),
        (("--base-url", "http://me:hunter2@host/v1"), "neither a password nor a query"),
        (("--base-url", "https://host/v1?key=hunter2"), "neither a password nor a query"),
        (("--api-key-env", "sk-hunter2"), "the name of an environment variable"),
        (("--timeout", "0"), "--timeout must be greater than 0"),
        (("--concurrency", "0"), "--concurrency must be greater than 0"),
        (("--max-tokens", "-1"), "--max-tokens must be greater than 0"),
        (("--max-retries", "-1"), "--max-retries must not be negative"),
        (("--temperature", "-1"), "--temperature must not be negative"),
        (("--top-p", "0"), "--top-p must lie"),
        (("--extra-body", "[1]"), "--extra-body must be a JSON object"),
        (("--extra-body", "{a: 1}"), "--extra-body must be a JSON object"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_sentence_and_no_secret_is_repeated(
    words: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        config(*words)
    assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


def decoded(url: str) -> tuple[str, Image.Image]:
    head, _, data = url.partition(";base64,")
    return head.removeprefix("data:image/"), Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "RGB"), ("WEBP", "RGB"), ("PNG", "L")])
def test_a_plain_image_within_the_limit_goes_as_it_is(kind: str, mode: str) -> None:
    data = picture((40, 30), mode, kind)
    assert data_url(data, 1200) == f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (10_000, 3), (1, 5000), (99, 101)])
def test_a_large_image_is_made_smaller_and_keeps_its_shape(size: tuple[int, int]) -> None:
    kind, image = decoded(data_url(picture(size), 1200))
    assert kind == "jpeg" and image.width * image.height <= 1200 and min(image.size) >= 1
    if min(size) > 50:
        assert abs(image.width / image.height - size[0] / size[1]) < 0.05


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("GIF", "P"), ("TIFF", "CMYK"), ("PNG", "I;16"), ("BMP", "RGB")]
)
def test_what_servers_may_not_know_becomes_a_jpeg(kind: str, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (40, 30)).save(buffer, kind)
    sent, image = decoded(data_url(buffer.getvalue(), 10_000))
    assert (sent, image.format, image.mode, image.size) == ("jpeg", "JPEG", "RGB", (40, 30))
    if mode == "RGBA":
        assert np.asarray(image).min() > 250  # transparent is white


def test_a_broken_image_is_found_here_and_not_by_the_server() -> None:
    for data in (b"", b"no image", picture((300, 300), kind="JPEG")[:400]):
        with pytest.raises(ImageError):
            data_url(data, 10_000)


def test_requests_are_json_that_any_server_reads(endpoint: Endpoint, tmp_path: Path) -> None:
    endpoint.otherwise = echo
    ask_all(endpoint, tmp_path / "r.jsonl", ["é \u2028 猫"])
    assert endpoint.bodies[1]["messages"] == [{"role": "user", "content": "é \u2028 猫"}]
    assert json.loads((tmp_path / "r.jsonl").read_text())["id"] == "id é \u2028 猫"
