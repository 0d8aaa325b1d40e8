"""A real server process with a small checkpoint, asked by the official client and by our judge."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
from conftest import golden_dir
from PIL import Image

from vero_jax.config import JudgeConfig, RewardConfig
from vero_jax.rewards.judge_pool import JudgePool
from vero_jax.serve.__main__ import main
from vero_jax.types import Example, Group, Prompt, Response, Score

pytestmark = pytest.mark.golden_model


def checkpoint() -> Path:
    found = [
        path.parent
        for path in sorted(golden_dir("model").glob("*/config.json"))
        if json.loads(path.read_text())["model_type"] == "qwen3_vl" and (path.parent / "model.safetensors").is_file()
    ]
    return found[0]


def start(*options: str, env: dict[str, str] | None = None) -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-m", "vero_jax.serve", str(checkpoint()), "--port", "0", "--model-name", "tiny"]
    sizes = ["--lanes", "4", "--max-tokens", "64", "--max-prompt-tokens", "4096", "--max-waiting", "8"]
    process = subprocess.Popen(
        [*command, *sizes, *options], stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready: "):
            return process, line.removeprefix("ready: ").strip()
    raise AssertionError(f"the server ended with status {process.wait()}")


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    process, url = start()
    yield url
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def client(address) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=300)


def picture(color="red") -> dict:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(buffer, "PNG")
    return {
        "type": "image_url",
        "image_url": {"url": "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()},
    }


def turns(text="What is it?", image=True, color="red") -> list[dict]:
    return [{"role": "user", "content": [*([picture(color)] if image else []), {"type": "text", "text": text}]}]


def test_an_answer_about_an_image_and_the_same_again_by_its_seed(client):
    ask = lambda **more: client.chat.completions.create(  # noqa: E731
        model="tiny", messages=turns(), max_tokens=12, temperature=1.0, seed=3, **more
    )
    first, again = ask(), ask()
    choice = first.choices[0]
    assert choice.message.content == again.choices[0].message.content
    assert choice.finish_reason in ("stop", "length") and choice.message.role == "assistant"
    assert first.usage.completion_tokens <= 12 and first.usage.prompt_tokens > 5
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    several = ask(n=3)
    assert [c.index for c in several.choices] == [0, 1, 2]
    assert several.choices[0].message.content == choice.message.content
    assert len({c.message.content for c in several.choices}) > 1
    blue = client.chat.completions.create(
        model="tiny", messages=turns(color="blue"), max_tokens=12, temperature=1.0, seed=3
    )
    assert blue.choices[0].message.content != choice.message.content  # it sees the picture


def test_a_stream_is_the_same_answer_in_pieces(client):
    options = {"model": "tiny", "messages": turns(), "max_tokens": 24, "temperature": 1.0, "seed": 5}
    whole = client.chat.completions.create(**options)
    parts = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    assert [p.choices[0].finish_reason for p in parts if p.choices][-1] == whole.choices[0].finish_reason
    assert parts[-1].usage == whole.usage and not parts[-1].choices
    assert len(parts) > 3 and len({part.id for part in parts}) == 1


def test_logprobs_and_alternatives(client):
    found = client.chat.completions.create(
        model="tiny", messages=turns(image=False), max_tokens=6, temperature=0, logprobs=True, top_logprobs=4
    )
    entries = found.choices[0].logprobs.content
    assert 5 <= len(entries) <= 6
    for entry in entries:
        assert len(entry.top_logprobs) == 4 and entry.logprob <= 0
        values = [top.logprob for top in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert entry.logprob == pytest.approx(max(v for v in values if v <= entry.logprob + 1e-6), abs=1e-5)


def test_a_stop_text_ends_the_answer(client):
    options = {"model": "tiny", "messages": turns(image=False), "max_tokens": 40, "temperature": 1.0, "seed": 11}
    whole = client.chat.completions.create(**options).choices[0].message.content
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    cut = client.chat.completions.create(**options, stop=middle).choices[0]
    assert cut.message.content == whole.split(middle)[0] and cut.finish_reason == "stop"


def test_many_at_once_are_answered_as_if_alone(client, address):
    options = {"model": "tiny", "messages": turns(), "max_tokens": 20, "temperature": 1.0}
    alone = [client.chat.completions.create(**options, seed=seed).choices[0].message.content for seed in range(6)]

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as many:
            found = await asyncio.gather(*(many.chat.completions.create(**options, seed=seed) for seed in range(6)))
        return [one.choices[0].message.content for one in found]

    assert asyncio.run(ask_all()) == alone


def test_a_client_that_leaves_frees_its_lanes(client, address):
    for _ in range(10):  # more than may be on their way
        stream = client.chat.completions.create(
            model="tiny", messages=turns(), max_tokens=64, temperature=1.0, stream=True, n=4
        )
        next(iter(stream))
        stream.close()
    answer = client.chat.completions.create(model="tiny", messages=turns(), max_tokens=2)
    assert answer.usage.completion_tokens <= 2


@pytest.mark.parametrize(
    "body,status,message",
    [
        (b"{", 400, "not JSON"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 400, "must be a JSON object"),
        (json.dumps({"messages": turns(), "model": "other"}).encode(), 404, "does not exist here"),
        (json.dumps({"messages": turns(), "temperature": -1}).encode(), 400, "temperature must be"),
        (json.dumps({"messages": turns("word " * 3000)}).encode(), 400, "the limit is 4096"),
        (json.dumps({"messages": [{"role": "dog", "content": "x"}]}).encode(), 400, "role 'dog'"),
        (json.dumps({"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}]}]}).encode(), 400, "image"),
    ],
)  # fmt: skip
def test_mistakes_get_openais_error_object(address, body, status, message):
    answer = httpx2.post(f"{address}/chat/completions", content=body, timeout=60)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_other_addresses(address):
    assert httpx2.get(f"{address}/models").json()["data"][0]["id"] == "tiny"
    assert httpx2.get(f"{address.removesuffix('/v1')}/health").json() == {"status": "ok"}
    assert httpx2.get(f"{address}/nothing").json()["error"]["message"].startswith("GET /v1/nothing is not served")
    assert httpx2.get(f"{address}/chat/completions").status_code == 405


@pytest.mark.slow
def test_it_can_be_the_judge(address, tmp_path):
    """The exchange works; a random model's replies hold no score, so that all are missing and none is zero."""
    config = JudgeConfig(base_url=address, model="tiny", max_tokens=16, timeout_s=120, max_retries=1)
    settings = RewardConfig(judge="openai", judge_server=dataclasses.replace(config, max_missing_share=1.0))
    said: list[str] = []
    example = Example(
        "q", "visual_alignment", "s", ({"role": "user", "content": "Describe it."},), (), "llm_judge", "", {}
    )
    empty = np.zeros((0, 3), np.int32)
    prompt = Prompt(example, empty[:, 0], empty, empty[:, 0], np.zeros((0, 1), np.uint8), empty)
    ids = np.zeros(1, np.int32)
    texts = ["<think>a</think><answer>A red square.</answer>", "<think>b</think><answer>Nothing.</answer>"]
    responses = tuple(Response(ids, np.zeros(1, np.float32), "stop", text) for text in texts)
    with JudgePool(settings, cache_dir=tmp_path, say=said.append) as judge:
        group = Group(prompt, responses, tuple(Score(0.2, 0.0, 1.0) for _ in texts))
        found = [future.result(120) for future in judge.submit(group)]
        scores = judge.blended(group, judge.submit(group))
    assert len(found) == len(scores) == 2
    assert all(score.missing for score in scores), scores
    assert any("JSON" in line or "response_format" in line for line in said), said


@pytest.mark.slow
def test_a_key_is_asked_for_and_a_signal_finishes_what_runs():
    process, url = start("--api-key-env", "SERVE_TEST_KEY", env={"SERVE_TEST_KEY": "sesame"})
    try:
        assert httpx2.get(f"{url}/models").status_code == 401
        good = openai.OpenAI(base_url=url, api_key="sesame", max_retries=0, timeout=300)
        good.chat.completions.create(model="tiny", messages=turns(), max_tokens=2)
        answers = []
        options = {"model": "tiny", "messages": turns(), "max_tokens": 60, "n": 4}
        asking = threading.Thread(target=lambda: answers.append(good.chat.completions.create(**options)))
        asking.start()
        threading.Event().wait(0.3)
    finally:
        process.send_signal(signal.SIGTERM)
    asking.join(60)
    assert len(answers[0].choices) == 4
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    "options,message",
    [
        (["/no/such/folder"], "the checkpoint /no/such/folder does not exist"),
        (["FOLDER", "--lanes", "0"], "--lanes 0 must be at least 1"),
        (["FOLDER", "--api-key-env", "NO_SUCH_VARIABLE"], "NO_SUCH_VARIABLE of --api-key-env is not set"),
        (["FOLDER", "--port", "BUSY"], "choose another --port"),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(options, message, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        names = {"FOLDER": str(checkpoint()), "BUSY": str(busy.getsockname()[1])}
        assert main([names.get(option, option) for option in options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
