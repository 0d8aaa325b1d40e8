"""The HTTP side with a scripted session behind it: limits, hostile bodies, stop texts, a device that fails."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from types import SimpleNamespace

import httpx2
import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

from vero_jax.config import SamplingConfig
from vero_jax.sampling.session import Drawn
from vero_jax.serve.app import ServedModel, make_app
from vero_jax.serve.worker import DeviceWorker

SCRIPT = b"one two three four five six"
BREAKS = 77


class Scripted:
    """Says the script, one byte a token and five tokens a round; a limit of 77 breaks it."""

    def __init__(self) -> None:
        self.open: dict[int, list] = {}
        self.numbers = 0
        self.slow = 0.0

    @property
    def idle(self) -> bool:
        return not self.open

    def submit(self, request):
        self.numbers += 1
        self.open[self.numbers] = [request, 0]
        return self.numbers

    def cancel(self, number):
        self.open.pop(number, None)

    def advance(self, max_steps=None):
        time.sleep(self.slow)
        drawn = []
        for number, entry in list(self.open.items()):
            request, start = entry
            limit = request.max_new_tokens
            if limit == BREAKS:
                raise RuntimeError("out of memory")
            text = (SCRIPT * 100)[:limit]
            ids = np.frombuffer(text[start : start + 5], np.uint8).astype(np.int32)
            entry[1] = start + len(ids)
            reason = "length" if entry[1] >= limit else None
            tops = np.stack([ids, ids + 1], 1), np.stack([ids * -0.01, ids * -0.02], 1)
            drawn += [
                Drawn(number, sample, start, ids, ids * -0.01, None, *tops, reason)
                for sample in range(len(request.keys))
            ]
            if reason:
                del self.open[number]
        return drawn


@pytest.fixture
def served():
    session = Scripted()
    worker = DeviceWorker(session, max_waiting=3)
    prompt = SimpleNamespace(token_ids=np.zeros(7, np.int32), example=SimpleNamespace(id="chat"))
    model = ServedModel(
        name="m", read=lambda messages: prompt, decode=lambda ids: bytes(ids).decode(errors="replace"),
        spell=lambda token: bytes([token]).decode(errors="replace"), sampling=SamplingConfig(), max_tokens=2000,
        default_tokens=10, max_body=1_000_000,
    )  # fmt: skip
    server = uvicorn.Server(uvicorn.Config(make_app(model, worker), port=0, log_level="critical", lifespan="off"))
    worker.start()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield SimpleNamespace(url=f"http://127.0.0.1:{port}/v1", session=session, worker=worker)
    server.should_exit = True
    session.slow = 0.0
    thread.join(10)
    worker.close(5)


TURNS = [{"role": "user", "content": "x"}]


def post(served, content=None, **body):
    content = json.dumps({"messages": TURNS, **body}) if content is None else content
    return httpx2.post(f"{served.url}/chat/completions", content=content, timeout=30)


def client(served):
    return openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=30)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_behind_a_stop_text_are_neither_shown_nor_counted(served, stream):
    """The stop text ends inside a round; what the round drew behind it depends on neighbours and must not be seen."""
    options = {"model": "m", "messages": TURNS, "max_tokens": 27, "stop": "wo t", "logprobs": True}
    if stream:
        parts = list(client(served).chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}))  # fmt: skip
        text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
        entries = [e for p in parts if p.choices and p.choices[0].logprobs for e in p.choices[0].logprobs.content]
        counts, finish = parts[-1].usage, parts[-2].choices[0].finish_reason
    else:
        whole = client(served).chat.completions.create(**options)
        text, entries = whole.choices[0].message.content, whole.choices[0].logprobs.content
        counts, finish = whole.usage, whole.choices[0].finish_reason
    assert (text, finish) == ("one t", "stop")
    assert "".join(entry.token for entry in entries) == "one two t"
    assert (counts.prompt_tokens, counts.completion_tokens) == (7, 9)


def test_parts_of_characters_have_no_bytes(served, monkeypatch):
    monkeypatch.setitem(globals(), "SCRIPT", "é".encode())
    part = client(served).chat.completions.create(model="m", messages=TURNS, max_tokens=2, logprobs=True).choices[0]
    assert part.message.content == "é"
    assert [entry.bytes for entry in part.logprobs.content] == [None, None]
    monkeypatch.undo()
    entry = client(served).chat.completions.create(
        model="m", messages=TURNS, max_tokens=1, logprobs=True, top_logprobs=2
    ).choices[0].logprobs.content[0]  # fmt: skip
    assert (entry.token, entry.bytes) == ("o", [ord("o")])
    assert [top.token for top in entry.top_logprobs] == ["o", "p"]


def picture(data: bytes) -> list[dict]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def encoded(size, kind) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "messages,message",
    [
        (picture(encoded((11_000, 11_000), "PNG")), "more than 100,000,000 pixels"),
        (picture(encoded((8, 8), "EPS")), "no image of type PNG, JPEG, WEBP, GIF"),
        (picture(b"hello"), "no image of type"),
        (picture(b""), "no image of type"),
        ([{"role": "user", "content": "a\ud800b"}], "half a character"),
    ],
)
def test_hostile_turns_are_refused_by_place(served, messages, message):
    answer = post(served, messages=messages)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "messages[0].content[0]"


@pytest.mark.parametrize(
    "body,status,param",
    [
        ({"max_tokens": 2001}, 400, "max_tokens"),
        ({"stop": "\ud800"}, 400, "stop"),
        ({"stop": 0}, 400, "stop"),
        ({"stream": 1.0}, 400, "stream"),
        ({"stream_options": []}, 400, "stream_options"),
        ({"\ud800": 1}, 400, "\\ud800"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, 400, "chat_template_kwargs"),
        ({"temperature": float("inf")}, 400, "temperature"),
        ({"user": "x" * 1_100_000}, 413, None),
    ],
)
def test_bodies_that_cannot_be_are_refused(served, body, status, param):
    answer = post(served, **body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_a_full_queue_is_503_and_free_again_when_clients_leave(served):
    served.session.slow = 0.02
    streams = [
        client(served).chat.completions.create(model="m", messages=TURNS, max_tokens=2000, stream=True)
        for _ in range(3)
    ]  # fmt: skip
    full = post(served)
    assert full.status_code == 503 and full.headers["retry-after"] == "1"
    assert "3 requests are on their way" in full.json()["error"]["message"]
    for stream in streams:
        stream.close()
    deadline = time.monotonic() + 30
    while post(served, max_tokens=5).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_client_that_does_not_stream_is_noticed_when_it_leaves(served):
    served.session.slow = 0.1
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{served.url}/chat/completions", json={"messages": TURNS, "max_tokens": 2000}, timeout=0.3)
    deadline = time.monotonic() + 20  # the answer itself would take forty seconds and more
    while served.session.open:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_failing_device_answers_everybody_with_500(served):
    served.session.slow = 0.02
    answers = []
    asking = threading.Thread(target=lambda: answers.append(post(served, max_tokens=2000)))
    asking.start()
    while not served.session.open:
        time.sleep(0.01)
    assert post(served, max_tokens=BREAKS).status_code == 500
    asking.join(10)
    assert answers[0].status_code == 500
    assert answers[0].json()["error"] == {
        "message": "the device has failed: out of memory", "type": "server_error", "param": None, "code": None,
    }  # fmt: skip
    assert post(served).status_code == 503
    assert httpx2.get(served.url.removesuffix("/v1") + "/health").status_code == 503
