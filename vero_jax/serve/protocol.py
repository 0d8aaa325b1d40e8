"""OpenAI's chat completions as JSON: what a request may say, checked field by field, and what answers look like.

Unknown fields are refused, because a setting that is passed over in silence gives answers that nobody asked for. Those
that only describe the request (user, metadata, store) are accepted and do nothing.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import io
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from vero_jax.config import SamplingConfig

MOST_SAMPLES, MOST_STOPS, MOST_ALTERNATIVES = 128, 4, 20
MOST_PIXELS = 100_000_000
"""Of a stored image. Training reads larger ones; strangers could have a server decode gigabytes from a small file."""
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""Pillow knows many more, some of which start other programs (EPS)."""
_DATA_URL = re.compile(r"data:image/[a-zA-Z0-9.+-]+;base64,(?P<data>.*)", re.DOTALL)
_IGNORED = frozenset({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"})
_KNOWN = _IGNORED | {
    "model", "messages", "n", "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop",
    "seed", "stream", "stream_options", "logprobs", "top_logprobs", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "response_format", "chat_template_kwargs",
}  # fmt: skip


class RequestError(Exception):
    """A request that is not answered; becomes OpenAI's error object with this status."""

    def __init__(self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None) -> None:
        super().__init__(message)
        self.param, self.status, self.code = param, status, code

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclasses.dataclass(frozen=True)
class ChatRequest:
    """A checked request."""

    messages: tuple[Mapping[str, Any], ...]
    """Turns whose contents are lists of parts; a part of an image holds its bytes."""
    n: int
    sampling: SamplingConfig
    max_tokens: int | None
    """None: as many as the server allows."""
    stop: tuple[str, ...]
    seed: int | None
    stream: bool
    include_usage: bool
    logprobs: bool
    top_logprobs: int


def parse_request(body: Any, default: SamplingConfig, model: str) -> ChatRequest:
    """Reads the JSON body of a chat completion.

    Args:
      default: sampling of what the request does not say.
      model: the name that the server answers to.

    Raises:
      RequestError: something is wrong; the message names the field.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    for name in body:
        if name not in _KNOWN:
            raise RequestError(f"the field {name!r:.60} is not supported", param=ascii(name)[1:-1][:60])
    if body.get("model") is not None and body["model"] != model:
        raise RequestError(
            f"the model {body['model']!r:.80} does not exist here; this server has {model!r}",
            param="model", status=404, code="model_not_found",
        )  # fmt: skip
    _check_format(body.get("response_format"))
    if body.get("chat_template_kwargs") not in (None, {}):
        raise RequestError("chat_template_kwargs are not supported", param="chat_template_kwargs")
    options = {} if body.get("stream_options") is None else body["stream_options"]
    if not isinstance(options, dict) or set(options) - {"include_usage", "include_obfuscation"}:
        raise RequestError("stream_options may hold include_usage only", param="stream_options")
    include_usage = _flag(options, "include_usage")
    logprobs = _flag(body, "logprobs")
    top_logprobs = int(_number(body, "top_logprobs", 0, 0, MOST_ALTERNATIVES, whole=True))
    if top_logprobs and not logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    limit = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    top_k = int(_number(body, "top_k", default.top_k, -1, 2**31 - 1, whole=True))
    return ChatRequest(
        messages=_messages(body.get("messages")),
        n=int(_number(body, "n", 1, 1, MOST_SAMPLES, whole=True)),
        sampling=SamplingConfig(
            temperature=_number(body, "temperature", default.temperature, 0, 100),
            top_p=_number(body, "top_p", default.top_p, 1e-6, 1),
            top_k=top_k if top_k > 0 else -1,
            min_p=_number(body, "min_p", default.min_p, 0, 1),
            presence_penalty=_number(body, "presence_penalty", 0.0, -2, 2),
            frequency_penalty=_number(body, "frequency_penalty", 0.0, -2, 2),
            repetition_penalty=_number(body, "repetition_penalty", 1.0, 0.01, 100),
        ),
        max_tokens=None if body.get(limit) is None else int(_number(body, limit, 1, 1, 2**31 - 1, whole=True)),
        stop=_stops(body.get("stop")),
        seed=None if body.get("seed") is None else int(_number(body, "seed", 0, -(2**63), 2**64, whole=True)),
        stream=_flag(body, "stream"),
        include_usage=include_usage,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


def _check_format(wanted: Any) -> None:
    kind = wanted.get("type") if isinstance(wanted, dict) else wanted
    if kind not in (None, "text"):
        raise RequestError(
            f"response_format {kind!r:.60} is not supported: answers are free text; leave it out",
            param="response_format",
        )  # fmt: skip


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{name} must be true or false", param=name)
    return bool(value)


def _number(
    body: Mapping[str, Any], name: str, default: float, low: float, high: float, *, whole: bool = False
) -> float:
    value = body.get(name)
    if value is None:
        return default
    # The comparison comes first: it is false for NaN, and JSON's whole numbers have no bound that a float would know.
    good = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    if not good or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise RequestError(f"{name} must be {kind} between {low:g} and {high:g}, not {value!r:.40}", param=name)
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise RequestError(f"stop must be a text or a list of at most {MOST_STOPS} texts", param="stop")
    return tuple(_text("stop", stop) for stop in stops)


def _text(where: str, text: str) -> str:
    """The text, if it is one: JSON can hold halves of surrogate pairs, which no encoding and no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{where} holds half a character (a lone surrogate)", param=where) from error
    return text


def _messages(value: Any) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise RequestError("messages must be a list of at least one turn", param="messages")
    return tuple(_turn(number, turn) for number, turn in enumerate(value))


def _turn(number: int, turn: Any) -> Mapping[str, Any]:
    where = f"messages[{number}]"
    if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
        raise RequestError(f"{where} must be an object with a role and a content", param=where)
    content = turn.get("content")
    # Parts, even where there is but one text: markers of pictures in a client's text are then ordinary text.
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise RequestError(f"{where}.content must be a text or a list of parts", param=where)
    role = "system" if turn["role"] == "developer" else turn["role"]
    return {"role": role, "content": [_part(f"{where}.content[{i}]", part) for i, part in enumerate(parts)]}


def _part(where: str, part: Any) -> Mapping[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": _text(where, part["text"])}
    if kind != "image_url":
        raise RequestError(f"{where} must be of type text or image_url", param=where)
    held = part.get("image_url")
    url = held.get("url") if isinstance(held, dict) else held
    match = _DATA_URL.fullmatch(url) if isinstance(url, str) else None
    if match is None:
        raise RequestError(
            f"{where} must hold its image as a data URL (data:image/png;base64,...): this server fetches nothing",
            param=where,
        )  # fmt: skip
    try:
        return {"type": "image", "image": base64.b64decode(match["data"], validate=True)}
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"{where} holds broken base64 ({error})", param=where) from error


def check_images(messages: Sequence[Mapping[str, Any]]) -> None:
    """Reads the headers of a request's images; their pixels are decoded later.

    Args:
      messages: of a `ChatRequest`.

    Raises:
      RequestError: one is of no format that is taken, or too large.
    """
    for number, turn in enumerate(messages):
        for place, part in enumerate(turn["content"]):
            if part["type"] == "image":
                _check_image(f"messages[{number}].content[{place}]", part["image"])


def _check_image(where: str, data: bytes) -> None:
    too_large = RequestError(f"{where} is an image of more than {MOST_PIXELS:,} pixels", param=where)
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise too_large from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # each a way in which a plugin rejects a file
        raise RequestError(f"{where} is no image of type {', '.join(IMAGE_FORMATS)}", param=where) from error
    if width * height > MOST_PIXELS:
        raise too_large


def new_id() -> str:
    """Of an answer."""
    return f"chatcmpl-{uuid.uuid4().hex}"


def completion(
    answer_id: str, model: str, choices: Sequence[Mapping[str, Any]], usage: Mapping[str, Any] | None, *, chunk: bool
) -> dict[str, Any]:
    """The answer's outer object, or that of a part of a stream."""
    return {
        "id": answer_id,
        "object": "chat.completion.chunk" if chunk else "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": list(choices),
        **({} if usage is None and not chunk else {"usage": usage}),
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Counts of tokens; the prompt counts once, as it is read once."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
