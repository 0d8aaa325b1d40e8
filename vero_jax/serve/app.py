"""The HTTP side: routes, streams and errors, on Starlette."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from vero_jax.config import SamplingConfig
from vero_jax.data.chat import PromptError
from vero_jax.errors import CountedError, UserError
from vero_jax.sampling.inputs import sample_keys
from vero_jax.sampling.session import Drawn, Request
from vero_jax.serve.protocol import (
    ChatRequest,
    RequestError,
    check_images,
    completion,
    new_id,
    parse_request,
    usage,
)
from vero_jax.serve.text import REPLACEMENT, TextStream
from vero_jax.serve.worker import DeviceWorker, Full, Gone, Ticket
from vero_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """What the routes need to know of the checkpoint.

    Attributes:
      read: chat turns to a prompt; runs in a thread beside the event loop.
      decode: token ids to text, control tokens left out.
      spell: one token to text, control tokens too.
      max_tokens: most tokens of an answer.
      default_tokens: the same where a request does not say.
      max_body: most bytes of a request.
    """

    name: str
    read: Callable[[Sequence[Any]], Prompt]
    decode: Callable[[Sequence[int]], str]
    spell: Callable[[int], str]
    sampling: SamplingConfig
    max_tokens: int
    default_tokens: int
    max_body: int = 64 * 1024 * 1024
    api_key: str = ""


@dataclasses.dataclass
class Choice:
    """One of the answers to a request."""

    stream: TextStream
    text: str = ""
    tokens: int = 0
    logprobs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    finish: str | None = None


def make_app(model: ServedModel, worker: DeviceWorker) -> Starlette:
    """The ASGI application."""

    async def chat(request: HttpRequest) -> Response:
        body = await _json(request, model.max_body)
        wanted = parse_request(body, model.sampling, model.name)
        prompt, drawn, ticket = await _ask(model, worker, wanted)
        if wanted.stream:
            return Stream(_events(model, worker, wanted, prompt, drawn, ticket), lambda: worker.cancel(ticket))
        return await _whole(model, worker, wanted, prompt, drawn, ticket, request)

    async def models(_: HttpRequest) -> Response:
        entry = {"id": model.name, "object": "model", "created": 0, "owned_by": "vero_jax"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(_: HttpRequest) -> Response:
        return JSONResponse({"status": "ok" if worker.alive else "failed"}, 200 if worker.alive else 503)

    async def refused(_: HttpRequest, error: Exception) -> Response:
        if not isinstance(error, RequestError):
            raise error
        headers = {"Retry-After": "1"} if error.status == 503 else None
        return JSONResponse(error.body(), error.status, headers)

    async def failed(_: HttpRequest, __: Exception) -> Response:
        return JSONResponse(RequestError("the server has made a mistake; its log has more", status=500).body(), 500)

    async def left(_: HttpRequest, __: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def unknown(request: HttpRequest, error: Exception) -> Response:
        status = int(getattr(error, "status_code", 404))
        sentence = f"{request.method} {request.url.path} is not served here; see /v1/chat/completions and /v1/models"
        return JSONResponse(RequestError(sentence, status=status).body(), status)

    def guarded(endpoint: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        async def checked(request: HttpRequest) -> Response:
            given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
            if model.api_key and not hmac.compare_digest(given, model.api_key.encode()):
                raise RequestError("the API key is missing or wrong", status=401, code="invalid_api_key")
            return await endpoint(request)

        return checked

    return Starlette(
        routes=[
            Route("/v1/chat/completions", guarded(chat), methods=["POST"]),
            Route("/v1/models", guarded(models)),
            Route("/health", health),
        ],
        exception_handlers={
            RequestError: refused,
            ClientDisconnect: left,
            404: unknown,
            405: unknown,
            Exception: failed,
        },
    )


class Stream(StreamingResponse):
    """Server-sent events; `ended` is called however the exchange ends, also when no event was ever asked for."""

    def __init__(self, events: AsyncIterator[str], ended: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


async def _json(request: HttpRequest, limit: int) -> Any:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise RequestError(f"the body is larger than {limit} bytes", status=413)
        parts.append(part)
    try:
        return json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON ({type(error).__name__})") from error


async def _ask(
    model: ServedModel, worker: DeviceWorker, wanted: ChatRequest
) -> tuple[Prompt, asyncio.Queue[Drawn | Exception], Ticket]:
    """Makes the prompt and puts it in line.

    Raises:
      RequestError: it cannot be read, or cannot wait.
    """
    limit = model.default_tokens if wanted.max_tokens is None else wanted.max_tokens
    if limit > model.max_tokens:
        raise RequestError(f"max_tokens {limit} is more than this server draws, {model.max_tokens}", param="max_tokens")

    def read() -> Prompt:
        check_images(wanted.messages)
        return model.read(wanted.messages)

    try:
        prompt = await asyncio.to_thread(read)
    except (PromptError, CountedError, UserError) as error:
        raise RequestError(str(error), param="messages") from error
    seed = secrets.randbits(63) if wanted.seed is None else wanted.seed
    # The same seed gives the same answer to the same question, whatever else is asked: keys know nothing of others.
    keys = sample_keys([prompt], wanted.n, seed, 0)[0]
    loop, drawn = asyncio.get_running_loop(), asyncio.Queue[Drawn | Exception]()

    def deliver(event: Drawn | Exception) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed: nobody waits
            loop.call_soon_threadsafe(drawn.put_nowait, event)

    ticket = Ticket(Request(prompt, keys, wanted.sampling, limit), deliver)
    try:
        worker.submit(ticket)
    except (Full, Gone) as error:
        raise RequestError(str(error), status=503) from error
    return prompt, drawn, ticket


async def _next(drawn: asyncio.Queue[Drawn | Exception]) -> Drawn:
    event = await drawn.get()
    if isinstance(event, UserError):
        raise RequestError(str(event), param="messages")
    if isinstance(event, Exception):
        raise RequestError(str(event), status=500)
    return event


async def _pieces(
    model: ServedModel,
    worker: DeviceWorker,
    wanted: ChatRequest,
    drawn: asyncio.Queue[Drawn | Exception],
    ticket: Ticket,
) -> AsyncIterator[tuple[int, Choice, str, list[dict[str, Any]]]]:
    """(number, choice, new text, log-probabilities of the new tokens) of the answers, until all have ended."""
    choices = [Choice(TextStream(model.decode, wanted.stop)) for _ in range(wanted.n)]
    try:
        while any(choice.finish is None for choice in choices):
            event = await _next(drawn)
            choice = choices[event.sample]
            if choice.finish is not None:
                continue
            ids = event.token_ids.tolist()
            shown = ids[:-1] if event.stop_reason == "stop" else ids
            new, used = _add(choice.stream, shown, last=event.stop_reason is not None, each=bool(wanted.stop))
            # What a round drew behind a stop text counts for nothing: it depends on who else was in the round.
            choice.tokens += used if choice.stream.stopped else len(ids)
            choice.text += new
            entries = _logprobs(model, event, used, wanted.top_logprobs) if wanted.logprobs else []
            choice.logprobs += entries
            if choice.stream.stopped:
                choice.finish = "stop"
            elif event.stop_reason is not None:
                choice.finish = event.stop_reason
            yield event.sample, choice, new, entries
    finally:
        # Also when the client has gone, or a stop text came before the policy's own end.
        worker.cancel(ticket)


def _add(stream: TextStream, ids: Sequence[int], *, last: bool, each: bool) -> tuple[str, int]:
    """The new text, and how many of the tokens it took; all, unless a stop text came in one of them.

    Args:
      each: whether to give the tokens one by one, which tells where the stop text ended.
    """
    if not each or not ids:
        return stream.add(ids, last=last), len(ids)
    text = ""
    for place, token in enumerate(ids, start=1):
        text += stream.add([token], last=last and place == len(ids))
        if stream.stopped:
            return text, place
    return text, len(ids)


async def _whole(
    model: ServedModel,
    worker: DeviceWorker,
    wanted: ChatRequest,
    prompt: Prompt,
    drawn: asyncio.Queue[Drawn | Exception],
    ticket: Ticket,
    request: HttpRequest,
) -> Response:
    choices: dict[int, Choice] = {}

    async def collect() -> None:
        async for number, choice, _, _ in _pieces(model, worker, wanted, drawn, ticket):
            choices[number] = choice

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, leaving = asyncio.ensure_future(collect()), asyncio.ensure_future(gone())
    await asyncio.wait([work, leaving], return_when=asyncio.FIRST_COMPLETED)
    leaving.cancel()
    if not work.done():
        work.cancel()
        raise ClientDisconnect
    work.result()
    entries = [
        {
            "index": number,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": {"content": choice.logprobs, "refusal": None} if wanted.logprobs else None,
            "finish_reason": choice.finish,
        }
        for number, choice in sorted(choices.items())
    ]
    counts = usage(len(prompt.token_ids), sum(choice.tokens for choice in choices.values()))
    return JSONResponse(completion(new_id(), model.name, entries, counts, chunk=False))


async def _events(
    model: ServedModel,
    worker: DeviceWorker,
    wanted: ChatRequest,
    prompt: Prompt,
    drawn: asyncio.Queue[Drawn | Exception],
    ticket: Ticket,
) -> AsyncIterator[str]:
    answer_id, tokens, started = new_id(), dict.fromkeys(range(wanted.n), 0), set[int]()

    def event(choice: dict[str, Any] | None, counts: dict[str, int] | None = None) -> str:
        part = completion(answer_id, model.name, [] if choice is None else [choice], counts, chunk=True)
        return f"data: {json.dumps(part, ensure_ascii=False)}\n\n"

    try:
        async for number, choice, new, entries in _pieces(model, worker, wanted, drawn, ticket):
            tokens[number] = choice.tokens
            delta: dict[str, Any] = {} if number in started else {"role": "assistant", "content": ""}
            started.add(number)
            if new:
                delta["content"] = new
            logprobs = {"content": entries, "refusal": None} if entries else None
            if delta or entries or choice.finish:
                yield event({"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": choice.finish})
    except RequestError as error:
        yield f"data: {json.dumps(error.body())}\n\n"
        return
    if wanted.include_usage:
        yield event(None, usage(len(prompt.token_ids), sum(tokens.values())))
    yield "data: [DONE]\n\n"


def _logprobs(model: ServedModel, event: Drawn, shown: int, alternatives: int) -> list[dict[str, Any]]:
    def entry(token: int, value: float) -> dict[str, Any]:
        text = model.spell(token)
        # A part of a character has no text of its own, and a decoder's replacement is not its bytes.
        spelled = None if REPLACEMENT in text else list(text.encode())
        return {"token": text, "logprob": max(float(value), -9999.0), "bytes": spelled}

    entries = []
    for place in range(shown):
        found = entry(int(event.token_ids[place]), event.logprobs[place])
        top = []
        if event.top_ids is not None and event.top_logprobs is not None:
            listed = zip(event.top_ids[place], event.top_logprobs[place], strict=True)
            top = [entry(int(token), value) for token, value in listed][:alternatives]
        entries.append(found | {"top_logprobs": top})
    return entries
