"""The judge's server over real HTTP: what is tried again, what is given up, and what stops a run at its start."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tests.rewards.judge_endpoint import (
    Act,
    Endpoint,
    body,
    endpoint,
    floods,
    refuses,
    reward_config,
    says,
    slow,
    text,
    trickles,
    wire,
)
from vero_jax.config import JudgeConfig
from vero_jax.errors import UserError
from vero_jax.rewards import judge_server
from vero_jax.rewards.judge_server import JudgeFailure, JudgeServer

T = TypeVar("T")
__all__ = ["endpoint"]  # a fixture
GOOD = '{"REASONING": "because", "SCORE": 7}'
BROKEN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nno chunk\r\n"
CUT = b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [{"mess'


def use(config: JudgeConfig, work: Callable[[JudgeServer], Awaitable[T]], said: list[str] | None = None) -> T:
    """Runs `work` with a server's client of its own."""

    async def main() -> T:
        server = JudgeServer(config, (said if said is not None else []).append)
        try:
            return await work(server)
        finally:
            await server.close()

    return asyncio.run(main())


async def one(server: JudgeServer) -> tuple[str, int]:
    """(reply, retries) of one question to a server whose model is known."""
    server.model = server.model or "m"
    return await server.ask("how good?", seed=5), server.retries


def settings(endpoint: Endpoint, **values: Any) -> JudgeConfig:
    return reward_config(endpoint, **values).judge_server


def test_a_request_carries_the_recipes_parameters_and_a_seed(endpoint: Endpoint) -> None:
    assert use(settings(endpoint), one) == (GOOD, 0)
    assert endpoint.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "how good?"}],
            "max_tokens": 1024,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "min_p": 0.0,
            "presence_penalty": 1.5,
            "frequency_penalty": 1.0,
            "chat_template_kwargs": {"enable_thinking": False},
            "response_format": {"type": "json_object"},
            "seed": 5,
        }
    ]


@pytest.mark.parametrize(
    "bad",
    [
        refuses(429),
        refuses(500),
        refuses(503),
        refuses(408),
        refuses(409),
        refuses(425),
        wire(b""),
        wire(b"\x00\xff\x13 garbage \r\n\r\n"),
        wire(CUT),
        wire(BROKEN_CHUNKS),
        body(b"{not json"),
        body(b"[" * 100_000),
        body(b'{"choices": []}'),
        body(b'{"choices": [null]}'),
        body(b'{"error": {"message": "overloaded"}}'),
        body(b'"text"'),
        lambda handler, _: handler.answer(200, b"\x1f\x8bnot gzip", {"Content-Encoding": "gzip"}),
    ],
)
def test_a_failure_that_may_pass_is_tried_again(endpoint: Endpoint, bad: Act) -> None:
    endpoint.script = [bad, bad]
    assert use(settings(endpoint), one) == (GOOD, 2)
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 418, 302])
def test_other_refusals_are_final(endpoint: Endpoint, status: int) -> None:
    endpoint.otherwise = refuses(status, "not like this")
    with pytest.raises(JudgeFailure, match=f"HTTP {status}: not like this") as caught:
        use(settings(endpoint), one)
    assert caught.value.reason == f"HTTP {status}" and len(endpoint.bodies) == 1


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "the request exceeds the available context size. try increasing the context size",
    ],
)
def test_an_answer_too_long_for_the_judge_is_a_reason_of_its_own(endpoint: Endpoint, message: str) -> None:
    endpoint.otherwise = refuses(400, message)
    with pytest.raises(JudgeFailure) as caught:
        use(settings(endpoint), one)
    assert caught.value.reason == "context length" and len(endpoint.bodies) == 1


def test_retries_end(endpoint: Endpoint) -> None:
    endpoint.otherwise = refuses(500, "out of order")
    with pytest.raises(JudgeFailure, match="HTTP 500: out of order"):
        use(settings(endpoint, max_retries=2), one)
    assert len(endpoint.bodies) == 3


@pytest.mark.parametrize("hang", [slow(20.0, says(7)), trickles])
def test_a_request_that_takes_too_long_is_given_up_and_tried_again(endpoint: Endpoint, hang: Act) -> None:
    endpoint.script = [hang]
    start = time.monotonic()
    assert use(settings(endpoint, timeout_s=0.5), one) == (GOOD, 1)
    assert time.monotonic() - start < 15.0


def test_three_timeouts_are_enough_whatever_retries_are_left(endpoint: Endpoint) -> None:
    endpoint.otherwise = slow(2.0, says(7))
    start = time.monotonic()
    with pytest.raises(JudgeFailure, match="timeout"):
        use(settings(endpoint, timeout_s=0.3, max_retries=50), one)
    assert len(endpoint.bodies) == 3 and time.monotonic() - start < 30.0


def test_a_server_that_accepts_and_says_nothing_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = JudgeConfig(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout_s=0.3, max_retries=0)
        with pytest.raises(JudgeFailure) as caught:
            use(config, one)
    assert caught.value.reason == "timeout"


def test_nobody_there_is_a_failed_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(JudgeFailure) as caught:
        use(JudgeConfig(f"http://127.0.0.1:{port}/v1", max_retries=0), one)
    assert caught.value.reason == "connection failed"


def test_a_flood_is_not_read_to_its_end(endpoint: Endpoint) -> None:
    endpoint.otherwise = floods
    with pytest.raises(JudgeFailure, match="malformed response: more than"):
        use(settings(endpoint, max_retries=0), one)


@pytest.mark.parametrize(
    ("content", "more", "found"),
    [
        (None, {"reasoning_content": "SCORE: 9"}, ""),
        ([{"type": "text", "text": "SCORE: 4"}], {}, "SCORE: 4"),
        (["x", None], {}, ""),
        (17, {}, ""),
    ],
)
def test_contents_that_are_no_text(endpoint: Endpoint, content: Any, more: dict[str, Any], found: str) -> None:
    endpoint.otherwise = text(content, **more)
    assert use(settings(endpoint), one)[0] == found


@pytest.mark.parametrize("kind", ["seconds", "milliseconds", "date"])
def test_retry_after_is_honoured(endpoint: Endpoint, kind: str) -> None:
    headers = {
        "seconds": {"Retry_After": "1"},
        "milliseconds": {"Retry_After_Ms": "1000"},
        "date": {"Retry_After": email.utils.formatdate(time.time() + 2, usegmt=True)},
    }
    endpoint.script = [refuses(429, **headers[kind])]
    start = time.monotonic()
    assert use(settings(endpoint), one) == (GOOD, 1)
    assert 0.9 < time.monotonic() - start < 30.0


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_a_retry_after_without_sense_is_not_waited_for(endpoint: Endpoint, value: str) -> None:
    endpoint.script = [refuses(429, Retry_After=value)]
    start = time.monotonic()
    use(settings(endpoint), one)
    assert time.monotonic() - start < 30.0


def test_patience_is_bounded(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_server, "LONGEST_RETRY_AFTER", 0.2)
    endpoint.script = [refuses(503, Retry_After="86400")]
    start = time.monotonic()
    use(settings(endpoint), one)
    assert 0.2 <= time.monotonic() - start < 30.0


def test_a_proxy_from_the_environment_does_not_get_what_is_for_this_machine(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert use(settings(endpoint), one) == (GOOD, 0)


# The start of a run.


def start(server: JudgeServer) -> Awaitable[str]:
    return server.start("What animal is in the picture?")


def test_the_only_model_of_a_server_need_not_be_named(endpoint: Endpoint) -> None:
    async def model(server: JudgeServer) -> str:
        await start(server)
        return server.model

    assert use(settings(endpoint), model) == "tiny-judge"
    endpoint.models = ["a", "b"]
    with pytest.raises(UserError, match=r"set reward\.judge_server\.model: .* lists 2 models \(a, b\)"):
        use(settings(endpoint), model)
    assert use(settings(endpoint, model="b"), model) == "b"


@pytest.mark.parametrize(
    ("status", "named"),
    [
        (401, "refuses access .*SECRET_OF_MINE"),
        (403, "refuses access"),
        (404, "does not know the address or the model 'm'"),
        (400, "refuses the first request"),
        (500, "fails the first request .*look into its log"),
        (429, "fails the first request"),
    ],
)
def test_a_server_that_cannot_be_used_stops_the_run_with_one_sentence(
    endpoint: Endpoint, status: int, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_MINE", "sk-very-secret")
    endpoint.first = refuses(status, "key sk-very-secret is wrong")
    with pytest.raises(UserError, match=named) as caught:
        use(settings(endpoint, model="m", api_key_env="SECRET_OF_MINE"), start)
    assert "sk-very-secret" not in str(caught.value) and endpoint.url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(header["Authorization"] == "Bearer sk-very-secret" for header in endpoint.headers)


@pytest.mark.parametrize("model", ["", "m"])
def test_nobody_there_stops_the_run(model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(UserError, match=r"does not answer \(connection failed.*reward\.judge=none"):
        use(JudgeConfig(f"http://127.0.0.1:{port}/v1", model=model), start)


@pytest.mark.parametrize("value", [None, "", "  ", "sk\nsecret", "schlüssel"])
def test_a_key_that_is_not_there_is_asked_for(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("JUDGE_KEY", value)
    with pytest.raises(UserError, match="api_key_env=JUDGE_KEY") as caught:
        JudgeServer(JudgeConfig(api_key_env="JUDGE_KEY"), print)
    assert "secret" not in str(caught.value) and "schl" not in str(caught.value)


def test_what_a_server_refuses_is_left_out_from_then_on_and_said(endpoint: Endpoint) -> None:
    known = {"model", "messages", "max_completion_tokens", "temperature", "top_p"}
    complaints = {
        "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "response_format": "JSON mode is not supported by this model",
    }

    def strict(handler: Any, request: dict[str, Any]) -> None:
        unknown = sorted(set(request) - known)
        if unknown:
            message = complaints.get(unknown[0], f"Unrecognized request argument supplied: {unknown[0]}")
            refuses(400, message)(handler, request)
        else:
            says(8)(handler, request)

    endpoint.first = endpoint.otherwise = strict
    said: list[str] = []

    async def work(server: JudgeServer) -> str:
        await start(server)
        return (await one(server))[0]

    assert '"SCORE": 8' in use(settings(endpoint), work, said)
    assert len(endpoint.bodies) == 1 and set(endpoint.bodies[0]) == known
    assert sum("response_format" in line for line in said) == 1 and len(said) == 7


def test_a_server_that_sleeps_is_woken_before_and_put_to_sleep_after(endpoint: Endpoint) -> None:
    endpoint.sleeping = True

    async def work(server: JudgeServer) -> list[Any]:
        await start(server)
        seen: list[Any] = [endpoint.sleeping]
        await server.sleep()
        seen.append(endpoint.sleeping)
        await asyncio.gather(server.wake(), server.wake())
        seen.append(endpoint.sleeping)
        return seen

    assert use(settings(endpoint), work) == [False, True, False]
    assert endpoint.paths.count("/wake_up") == 2


def test_waking_waits_until_the_server_is_awake(endpoint: Endpoint) -> None:
    endpoint.sleeping = True
    endpoint.wakes_after = 0.5

    async def work(server: JudgeServer) -> tuple[bool | None, float]:
        begun = time.monotonic()
        await start(server)
        return endpoint.sleeping, time.monotonic() - begun

    sleeping, seconds = use(settings(endpoint), work)
    assert sleeping is False and seconds >= 0.5


@pytest.mark.parametrize("sleeping", [None, False])
def test_servers_that_do_not_sleep_are_left_alone(endpoint: Endpoint, sleeping: bool | None) -> None:
    endpoint.sleeping = sleeping
    config = settings(endpoint, sleep="auto" if sleeping is None else "never")

    async def work(server: JudgeServer) -> None:
        await start(server)
        await server.sleep()
        await server.wake()

    use(config, work)
    assert not {"/wake_up", "/sleep?level=1"} & set(endpoint.paths)
