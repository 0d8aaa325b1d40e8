"""What requests may say, and one clear sentence for every mistake."""

from __future__ import annotations

import base64
import json

import pytest

from vero_jax.config import SamplingConfig
from vero_jax.serve.protocol import RequestError, parse_request

TURN = {"role": "user", "content": "Hello"}
PNG = "data:image/png;base64," + base64.b64encode(b"bytes").decode()


def parse(**body):
    return parse_request({"messages": [TURN], **body}, SamplingConfig(temperature=0.7, top_k=20), "m")


def test_defaults_are_those_of_the_checkpoint():
    found = parse()
    assert found.sampling == SamplingConfig(temperature=0.7, top_k=20)
    assert (found.n, found.max_tokens, found.stream, found.logprobs, found.stop, found.seed) == (
        1, None, False, False, (), None,
    )  # fmt: skip


def test_every_field_is_read():
    found = parse(
        model="m", n=3, temperature=0, top_p=0.5, top_k=0, min_p=0.1, max_completion_tokens=7, max_tokens=9, stop="a",
        seed=5, stream=True, stream_options={"include_usage": True}, logprobs=True, top_logprobs=2,
        presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.5, user="x", response_format={"type": "text"},
    )  # fmt: skip
    assert found.sampling == SamplingConfig(0, 0.5, -1, 0.1, 1, -1, 1.5)
    assert (found.n, found.max_tokens, found.stop, found.seed) == (3, 7, ("a",), 5)
    assert found.stream and found.include_usage and found.logprobs and found.top_logprobs == 2


def test_texts_and_images_become_parts_in_their_order():
    content = [
        {"type": "text", "text": "see <image>"},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
        {"type": "text", "text": "?"},
    ]
    found = parse(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": content}])
    system, user = found.messages
    assert system == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert user["content"][0] == {"type": "text", "text": "see <image>"}  # a client's text is text
    assert user["content"][1] == {"type": "image", "image": b"bytes"}


PART = "messages[0].content[0]"


def turn(part):
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    "body,message,param",
    [
        ({"messages": []}, "at least one turn", "messages"),
        ({"messages": "hi"}, "at least one turn", "messages"),
        ({"messages": [{"role": "user"}]}, "must be a text or a list of parts", "messages[0]"),
        ({"messages": [{"content": "x"}]}, "an object with a role", "messages[0]"),
        ({"messages": [3]}, "an object with a role", "messages[0]"),
        ({"temperature": float("nan")}, "temperature must be a number between 0 and 100", "temperature"),
        ({"temperature": "1"}, "temperature must be a number", "temperature"),
        ({"temperature": True}, "temperature must be a number", "temperature"),
        ({"top_p": 0}, "top_p must be a number", "top_p"),
        ({"n": 0}, "n must be a whole number between 1 and 128, not 0", "n"),
        ({"n": 1.5}, "n must be a whole number", "n"),
        ({"n": 10**400}, "n must be a whole number", "n"),
        ({"max_tokens": -1}, "max_tokens must be a whole number", "max_tokens"),
        ({"stream": 1}, "stream must be true or false", "stream"),
        ({"stop": [""]}, "stop must be a text or a list", "stop"),
        ({"stop": list("abcde")}, "at most 4", "stop"),
        ({"logprobs": False, "top_logprobs": 3}, "top_logprobs needs logprobs", "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "between 0 and 20", "top_logprobs"),
        ({"tools": []}, "the field 'tools' is not supported", "tools"),
        ({"response_format": {"type": "json_object"}}, "'json_object' is not supported", "response_format"),
        ({"stream_options": {"x": 1}}, "include_usage only", "stream_options"),
        (turn({"type": "image_url", "image_url": {"url": "http://a/b.png"}}), "fetches nothing", PART),
        (turn({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "data URL", PART),
        (turn({"type": "image_url", "image_url": {"url": PNG + "!"}}), "broken base64", PART),
        (turn({"type": "image", "image": "/etc/passwd"}), "must be of type text or image_url", PART),
        (turn({"type": "text"}), "must be of type text or image_url", PART),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence_that_names_the_field(body, message, param):
    with pytest.raises(RequestError, match=r".+") as caught:
        parse(**body)
    assert message in str(caught.value) and caught.value.param == param and caught.value.status == 400
    error = json.loads(json.dumps(caught.value.body()))["error"]
    assert error["type"] == "invalid_request_error" and error["param"] == param


def test_another_model_is_not_found():
    with pytest.raises(RequestError) as caught:
        parse(model="gpt-4o")
    assert caught.value.status == 404 and caught.value.code == "model_not_found"


@pytest.mark.parametrize("body", [None, [], "x", 3])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(RequestError, match="must be a JSON object"):
        parse_request(body, SamplingConfig(), "m")
