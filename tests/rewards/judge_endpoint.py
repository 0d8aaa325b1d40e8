"""A real HTTP server on loopback that plays an OpenAI-compatible judge, well or badly, request by request."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.loopback import Server, serving
from vero_jax.config import JudgeConfig, RewardConfig
from vero_jax.rewards import judge_server

PROBE = "What animal is in the picture?"
MODEL = "tiny-judge"
Act = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Endpoint

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.path == "/v1/models":
            self.answer(200, {"data": [{"id": name} for name in self.server.models]})
        elif self.path == "/is_sleeping" and self.server.sleeping is not None:
            self.answer(200, {"is_sleeping": self.server.sleeping})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path in ("/wake_up", "/sleep?level=1") and self.server.sleeping is not None:
            sleeping = self.path != "/wake_up"
            later = threading.Timer(0.0 if sleeping else self.server.wakes_after, self.server.fall, [sleeping])
            later.start()
            if not self.server.wakes_after:
                later.join()
            self.answer(200, {})
        elif self.path != "/v1/chat/completions":
            self.answer(404, {"detail": "Not Found"})
        else:
            self.server.chat(self, json.loads(body))

    def answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            self.send_header(name, text)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


class Endpoint(Server):
    """`script` holds what happens to the next chat requests; afterwards `otherwise` does, and to the first request
    of a run `first`."""

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models = [MODEL]
        self.sleeping: bool | None = None
        self.wakes_after = 0.0
        self.script: list[Act] = []
        self.otherwise: Act = says(7)
        self.first: Act = says(9)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    def fall(self, sleeping: bool) -> None:
        self.sleeping = sleeping

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def chat(self, handler: Handler, body: dict[str, Any]) -> None:
        probe = PROBE in body["messages"][0]["content"]
        with self.lock:
            self.headers.append(dict(handler.headers))
            if not probe:
                self.bodies.append(body)
                self.busy += 1
                self.most_busy = max(self.most_busy, self.busy)
            act = self.first if probe else self.script.pop(0) if self.script else self.otherwise
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                act(handler, body)
        finally:
            with self.lock:
                self.busy -= not probe


def running() -> contextlib.AbstractContextManager[Endpoint]:
    return serving(Endpoint())


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr(judge_server, "FIRST_DELAY", 0.01)
    with running() as made:
        yield made


def reward_config(endpoint: Endpoint, **settings: Any) -> RewardConfig:
    values = {"base_url": endpoint.url, "timeout_s": 5.0, "cache": False, "max_retries": 3} | settings
    return RewardConfig(judge="openai", judge_server=JudgeConfig(**values))


# What can happen to a request.


def text(content: Any, **message: Any) -> Act:
    """An ordinary reply with this content."""
    value = {"choices": [{"message": {"role": "assistant", "content": content, **message}}]}
    return lambda handler, _: handler.answer(200, value)


def says(score: Any) -> Act:
    return text(json.dumps({"REASONING": "because", "SCORE": score}))


def refuses(status: int, message: str = "no", **headers: str) -> Act:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, _: handler.answer(status, {"error": {"message": message}}, names)


def slow(seconds: float, then: Act) -> Act:
    def act(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        then(handler, body)

    return act


def body(data: bytes) -> Act:
    """Status 200 with these bytes."""
    return lambda handler, _: handler.answer(200, data)


def wire(data: bytes) -> Act:
    """These bytes instead of an HTTP response, and the end of the connection."""

    def act(handler: Handler, _: dict[str, Any]) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return act


def trickles(handler: Handler, _: dict[str, Any]) -> None:
    """A response that never ends, and never stands still for long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def floods(handler: Handler, _: dict[str, Any]) -> None:
    """More than anybody wants to hold."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" " * 1_000_000)
    handler.close_connection = True
