"""Many questions to an OpenAI-compatible server, many at a time; replies go to disk as they come."""

from __future__ import annotations

import argparse
import asyncio
import base64
import dataclasses
import hashlib
import io
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from PIL import Image

from vero_jax.config import JudgeConfig
from vero_jax.config_checks import check_server
from vero_jax.data.images import ImageError, open_image, to_rgb
from vero_jax.errors import UserError
from vero_jax.rewards.judge_server import JudgeFailure, JudgeServer, Question, Wording
from vero_jax.rewards.replies import ReplyFile

WORDING = Wording("the server", "server", "--{}", "the command's options", "")
READ_TRIES = 2
"""Requests for a reply that can be read; the second with another seed."""
SAY_SECONDS = 10.0
_LEAST_STREAK = 20
_PASSED_ON = ("JPEG", "PNG", "WEBP")


@dataclasses.dataclass(frozen=True)
class Ask:
    """One question to the model."""

    id: str
    """Of the row, for people who read the file of replies."""
    key: str
    build: Callable[[], Question]
    """Makes the messages; may be slow. Raises `ImageError` where the row cannot be shown."""
    readable: Callable[[str], bool] = lambda reply: True
    """Whether a reply is worth keeping without another try."""
    max_tokens: int | None = None
    """Of the reply; None leaves it to the server's settings."""

    @property
    def seed(self) -> int:
        """The same in every run."""
        return int(hashlib.sha256(self.key.encode()).hexdigest()[:7], 16)


@dataclasses.dataclass
class Outcome:
    """What became of the questions of one run."""

    asked: int = 0
    failures: Counter[str] = dataclasses.field(default_factory=Counter)
    """Questions without a reply, by reason; they are asked again next time."""


def collect(
    server: JudgeServer,
    probe: Question,
    asks: Callable[[], Iterable[Ask]],
    replies: ReplyFile[Any],
    *,
    concurrency: int,
    say: Callable[[str], None],
) -> Outcome:
    """Asks all that `asks` gives and keeps the replies; closes the server.

    Args:
      server: not started yet.
      probe: a first question that shows whether the server takes what will be asked.
      asks: called once the model's name is known; should leave out what is kept already.
      replies: where they go, as {"key", "id", "reply"}; {"key", "id", "error"} where a row cannot be shown.
      concurrency: requests at a time; also the rows that are in memory at a time.
      say: told how it goes, now and then.

    Raises:
      UserError: the server cannot be used, or stops answering; what was answered is kept.
    """
    try:
        return asyncio.run(_collect(server, probe, asks, replies, concurrency, say))
    except KeyboardInterrupt:
        raise UserError(
            f"stopped: {len(replies):,} replies are kept in {replies.path}, the same command goes on from there"
        ) from None


async def _collect(
    server: JudgeServer,
    probe: Question,
    asks: Callable[[], Iterable[Ask]],
    replies: ReplyFile[Any],
    concurrency: int,
    say: Callable[[str], None],
) -> Outcome:
    outcome = Outcome()
    limit = max(_LEAST_STREAK, concurrency)
    begun = said = time.monotonic()
    streak = 0
    slots = asyncio.Semaphore(concurrency)
    tasks: set[asyncio.Task[None]] = set()

    async def one(ask: Ask) -> None:
        nonlocal streak
        try:
            record = {"key": ask.key, "id": ask.id, **await _reply(server, ask)}
        except JudgeFailure as failure:
            outcome.failures[failure.reason] += 1
            streak += 1
            if streak == limit:
                raise UserError(
                    f"the server gave no reply to {limit} questions in a row (the last one: {failure}); "
                    f"{len(replies):,} replies are kept in {replies.path}, the same command goes on from there"
                ) from None
        else:
            streak = 0
            outcome.asked += 1
            replies.add(record)
        finally:
            slots.release()

    try:
        await server.start(probe)
        iterator = iter(asks())
        while True:
            await slots.acquire()
            for task in [task for task in tasks if task.done()]:
                tasks.remove(task)
                task.result()
            ask = await asyncio.to_thread(next, iterator, None)  # reading rows must not hold up the requests
            if ask is None:
                break
            tasks.add(asyncio.create_task(one(ask)))
            if time.monotonic() - said > SAY_SECONDS:
                said = time.monotonic()
                failed = f", {outcome.failures.total():,} without a reply" if outcome.failures else ""
                say(f"{outcome.asked:,} replies, {outcome.asked / (said - begun):.1f} a second{failed}")
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.sleep()  # where it can, and the settings want it
        await server.close()
    return outcome


async def _reply(server: JudgeServer, ask: Ask) -> dict[str, str]:
    try:
        question = await asyncio.to_thread(ask.build)
    except ImageError as error:
        return {"error": error.reason}
    reply = ""
    for attempt in range(READ_TRIES):
        reply = await server.ask(question, seed=ask.seed + attempt, max_tokens=ask.max_tokens)
        if ask.readable(reply):
            break
    return {"reply": reply}


def data_url(data: bytes, max_pixels: int) -> str:
    """An image as a data URL, made smaller where it has more than `max_pixels`.

    A plain JPEG, PNG or WebP within the limit goes as it is; all else becomes a JPEG, transparent parts on white.

    Raises:
      ImageError: it cannot be decoded.
    """
    opened = open_image(data)
    kind, mode, frames = opened.format or "", opened.mode, getattr(opened, "n_frames", 1)
    rgb = to_rgb(opened)  # decodes also what goes as it is: a broken file is a reason of ours, not of the server's
    scale = math.sqrt(max_pixels / (rgb.width * rgb.height))
    if scale >= 1 and kind in _PASSED_ON and mode in ("RGB", "L") and frames == 1:
        return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}"
    if scale < 1:
        width, height = max(1, int(rgb.width * scale)), max(1, int(rgb.height * scale))
        width = max(1, min(width, max_pixels // height))  # the longer side of a sliver, whose other one is a pixel
        height = max(1, min(height, max_pixels // width))
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=95, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def with_pictures(text: str, images: Sequence[bytes], max_pixels: int) -> Question:
    """One user turn as the API takes it: the images, none above `max_pixels`, then the text. Raises `ImageError`."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(data, max_pixels)}} for data in images
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def add_server_arguments(
    parser: argparse.ArgumentParser, defaults: JudgeConfig, prefix: str = "", leave_out: Collection[str] = ()
) -> None:
    """The options of the server and of its sampling.

    Args:
      prefix: goes before their names, such as "judge-", where a command has models of several kinds.
      leave_out: names, without the prefix, of those that the command has no use for, or describes itself.
    """
    group = parser.add_argument_group("the model's server (any with OpenAI's POST /chat/completions)")

    known = dataclasses.asdict(defaults)

    def add(name: str, **settings: Any) -> None:
        if name not in leave_out:
            group.add_argument(f"--{prefix}{name}", **settings)

    add("base-url", default=defaults.base_url, metavar="URL", help="up to /v1; default: %(default)s")
    add("model", default="", help="name that the server knows; default: the only one that it lists")
    add("api-key-env", default="", metavar="NAME", help="environment variable that holds the key")
    for name, kind, about in (
        ("temperature", float, "default: %(default)s"),
        ("top-p", float, "default: %(default)s"),
        ("top-k", int, "-1 leaves it to the server; default: %(default)s"),
        ("max-tokens", int, "of a reply; default: %(default)s"),
        ("concurrency", int, "requests at a time; default: %(default)s"),
        ("max-retries", int, "after a failure that may pass; default: %(default)s"),
    ):
        add(name, type=kind, default=known[name.replace("-", "_")], help=about)
    add("timeout", type=float, default=defaults.timeout_s, metavar="S", help="default: %(default)s")
    add("extra-body", default="", metavar="JSON", help="more fields of each request, as one object")
    add("no-json-mode", action="store_true", help="do not ask for JSON in the request")


def server_config(
    arguments: argparse.Namespace, prefix: str = "", wording: Wording = WORDING, **settings: Any
) -> JudgeConfig:
    """The settings that the options give.

    Args:
      prefix: as `add_server_arguments` had it.
      wording: names the options.
      settings: those that no option gives.

    Raises:
      UserError: one of them makes no sense.
    """
    before = prefix.replace("-", "_")
    arguments = argparse.Namespace(
        **{name.removeprefix(before): value for name, value in vars(arguments).items() if name.startswith(before)}
    )
    config = JudgeConfig(
        base_url=arguments.base_url,
        model=arguments.model,
        api_key_env=arguments.api_key_env,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        max_tokens=arguments.max_tokens,
        extra_body=arguments.extra_body,
        json_mode="off" if arguments.no_json_mode else "auto",
        timeout_s=arguments.timeout,
        max_retries=arguments.max_retries,
        concurrency=arguments.concurrency,
        cache=False,
        sleep="never",
    )
    config = dataclasses.replace(config, **settings)
    check_server(config.base_url, config.api_key_env, wording.named)
    for name, value in (
        ("timeout", config.timeout_s),
        ("max-tokens", config.max_tokens),
        ("concurrency", config.concurrency),
    ):
        _need(value > 0, f"--{prefix}{name} must be greater than 0, not {value}")
    _need(config.max_retries >= 0, f"--{prefix}max-retries must not be negative, but is {config.max_retries}")
    _need(config.temperature >= 0, f"--{prefix}temperature must not be negative, but is {config.temperature}")
    _need(0 < config.top_p <= 1, f"--{prefix}top-p must lie above 0 and at most at 1, not at {config.top_p}")
    try:
        extra = json.loads(config.extra_body or "{}")
    except ValueError:
        extra = None
    _need(isinstance(extra, dict), f"--{prefix}extra-body must be a JSON object in one text, not {config.extra_body!r}")
    return config


def _need(fine: bool, sentence: str) -> None:
    if not fine:
        raise UserError(sentence)
