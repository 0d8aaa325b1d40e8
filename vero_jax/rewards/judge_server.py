"""One judge's server as this process sees it: requests, what is worth trying again, and what stops the run.

Any server with OpenAI's `POST /chat/completions` will do. What it does not understand beyond that (JSON mode, top_k,
a template's arguments, ...) is found out at the start by a first request, left out from then on, and said.
"""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
import json
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import httpx2

from vero_jax.config import JudgeConfig
from vero_jax.errors import UserError
from vero_jax.rewards.refusals import field, message, retry_after

CONNECT_SECONDS = 10.0
FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0
"""Seconds: bounds of the exponential back-off."""
LONGEST_RETRY_AFTER = 60.0
"""Seconds: a server that asks for more patience is asked again after this much."""
START_RETRIES = 2
"""Before the run begins, a server that does not answer is worth a sentence rather than patience."""
DEADLINE_TIMEOUTS = 3
"""A request is given up after this many `timeout_s`, however many retries are left."""
WAKE_SECONDS = 300.0
MAX_REPLY_BYTES = 4 * 1024 * 1024
MAX_QUOTED = 300

_PASSING = frozenset({408, 409, 425, 429})
_CONTEXT = re.compile(
    r"context[ _-]?(length|size|window)|max(imum)?[ _](model|input|prompt|total)[ _](len|length|tokens)"
    r"|prompt is too long|too many tokens|longer than the model",
    re.IGNORECASE,
)


Question: TypeAlias = "str | Sequence[Mapping[str, Any]]"
"""A text, or chat messages as the API takes them, such as typed parts with pictures."""


class JudgeFailure(Exception):
    """A request that brought no reply: `reason` is a short phrase to count by, the message has the details.

    `status` and `refusal` are those of the server's answer, if there was one that refused.
    """

    def __init__(self, reason: str, detail: str = "", status: int | None = None, refusal: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.status = status
        self.refusal = refusal


@dataclasses.dataclass(frozen=True)
class Wording:
    """How sentences for the user call the server, and the settings by which it is reached."""

    server: str = "the judge's server"
    label: str = "judge"
    """Begins the lines that are said along the way."""
    setting: str = "reward.judge_server.{}"
    settings: str = "the settings in reward.judge_server"
    without: str = ", or set reward.judge=none"
    """How to do without the server; ends the sentence that it does not answer."""

    def named(self, field_name: str) -> str:
        """What the user calls a field of `JudgeConfig`."""
        option = field_name.replace("_", "-") if self.setting.startswith("-") else field_name
        return self.setting.format(option)


@dataclasses.dataclass(frozen=True)
class _Answer:
    """An HTTP response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class JudgeServer:
    """Asks the judge's server. All methods belong to one asyncio loop.

    Args:
      config: `reward.judge_server.*`.
      say: told what the server does not offer.
      wording: for callers whose settings are not those of a run.

    Raises:
      UserError: the environment variable of the key is not set.
    """

    def __init__(self, config: JudgeConfig, say: Callable[[str], None], wording: Wording = Wording()) -> None:
        self._config = config
        self._wording = wording
        self._say = say
        self._base = config.base_url.rstrip("/").removesuffix("/chat/completions")
        self._root = self._base.removesuffix("/v1")
        self._key = _secret(config.api_key_env, wording.named("api_key_env"))
        self._random = random.Random()  # of its own: back-off must not move anybody else's random numbers
        self._optional = _optional_fields(config)
        self._new_limit_name = False
        self._sleeps = False
        self._awake = True
        self._waking = asyncio.Lock()
        self.model = config.model
        self.requests = 0
        self.retries = 0
        limits = httpx2.Limits(max_connections=config.concurrency + 2, max_keepalive_connections=config.concurrency)
        self._client = httpx2.AsyncClient(
            headers={"Accept-Encoding": "identity", "User-Agent": "vero_jax"}
            | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
            timeout=httpx2.Timeout(config.timeout_s, connect=min(CONNECT_SECONDS, config.timeout_s)),
            limits=limits,
            # A proxy from the environment would be asked for our own machine as well.
            trust_env=not _is_loopback(self._base),
        )

    async def close(self) -> None:
        await self._client.aclose()

    # What the run begins with.

    async def start(self, prompt: Question) -> str:
        """Finds the model, wakes the server if it sleeps, and asks a first question in full; its reply.

        Raises:
          UserError: no server answers, it refuses the key, the address or the model, or fails all tries.
        """
        await self._find_sleep()
        await self.wake()
        if not self.model:
            self.model = await self._only_model()
        while True:
            try:
                return await self.ask(prompt, seed=0, retries=min(START_RETRIES, self._config.max_retries))
            except JudgeFailure as failure:
                if failure.status in (400, 422) and self._adapt(failure.refusal):
                    continue
                raise self._cannot_start(failure) from None

    def request(self, prompt: Question, max_tokens: int | None = None) -> dict[str, Any]:
        """The request for a prompt as the settings want it, without its seed: what a judgement depends on.

        Args:
          max_tokens: of the reply; None takes the settings'.
        """
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt),
            "max_tokens": self._config.max_tokens if max_tokens is None else max_tokens,
            **_optional_fields(self._config),
        }

    async def ask(
        self, prompt: Question, *, seed: int, retries: int | None = None, max_tokens: int | None = None
    ) -> str:
        """The reply to a prompt, "" where it has no text. Tries again what may pass, `max_retries` times by default.

        Raises:
          JudgeFailure: with the reason of the last try.
        """
        request = self.request(prompt, max_tokens) | {"seed": seed}
        for name in [*_optional_fields(self._config), "seed"]:
            if name not in self._optional:
                request.pop(name, None)
        if self._new_limit_name:
            request["max_completion_tokens"] = request.pop("max_tokens")
        body = json.dumps(request).encode("ascii")
        deadline = time.monotonic() + DEADLINE_TIMEOUTS * self._config.timeout_s
        retries = self._config.max_retries if retries is None else retries
        for attempt in range(retries + 1):
            wait: float | None = None
            self.requests += 1
            try:
                answer = await self._exchange("POST", f"{self._base}/chat/completions", body)
                if answer.status == 200:
                    return self._content(answer)
                failure = self._refusal(answer)
                wait = retry_after(answer.headers)
            except JudgeFailure as error:
                failure = error
            if failure.status is not None and failure.status not in _PASSING and failure.status < 500:
                break
            delay = self._delay(attempt, wait)
            if attempt == retries or time.monotonic() + delay > deadline:
                break
            self.retries += 1
            await asyncio.sleep(delay)
        raise failure

    # Servers that lend their memory to others (vLLM's sleep mode).

    async def wake(self) -> None:
        """Wakes a server that was put to sleep, and waits until it is awake. Does nothing for others."""
        if not self._sleeps or self._awake:
            return
        async with self._waking:
            if self._awake:
                return
            deadline = time.monotonic() + WAKE_SECONDS
            await self._best_effort("POST", "/wake_up")
            while await self._is_sleeping() and time.monotonic() < deadline:
                await asyncio.sleep(0.2)
            self._awake = True

    async def sleep(self) -> None:
        """Puts a server to sleep that offers it; its weights go to its host's memory."""
        if self._sleeps and self._awake:
            await self._best_effort("POST", "/sleep?level=1")
            self._awake = False

    async def _find_sleep(self) -> None:
        if self._config.sleep != "never":
            sleeping = await self._is_sleeping()
            self._sleeps, self._awake = sleeping is not None, not sleeping

    async def _is_sleeping(self) -> bool | None:
        answer = await self._best_effort("GET", "/is_sleeping")
        try:
            value = json.loads(answer.body) if answer is not None and answer.status == 200 else None
        except ValueError:
            return None
        found = field(value, "is_sleeping")
        return found if isinstance(found, bool) else None

    async def _best_effort(self, method: str, path: str) -> _Answer | None:
        try:
            return await self._exchange(method, self._root + path, None)
        except JudgeFailure:
            return None

    # One exchange.

    async def _exchange(self, method: str, url: str, body: bytes | None) -> _Answer:
        """One request and its whole response within `timeout_s`. Raises JudgeFailure without a status."""
        headers = {"Content-Type": "application/json"} if body is not None else {}
        try:
            # The client's own limits are for one read each: a server that trickles would never pass them.
            async with asyncio.timeout(self._config.timeout_s):
                async with self._client.stream(method, url, content=body, headers=headers) as response:
                    parts = bytearray()
                    async for part in response.aiter_bytes():
                        parts += part
                        if len(parts) > MAX_REPLY_BYTES:
                            raise JudgeFailure("malformed response", f"more than {MAX_REPLY_BYTES} bytes")
                    return _Answer(response.status_code, response.headers, bytes(parts))
        except (TimeoutError, httpx2.TimeoutException):
            raise JudgeFailure("timeout", f"no answer within {self._config.timeout_s:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise JudgeFailure("connection failed", self._quoted(f"{type(error).__name__} {error}")) from None

    def _content(self, answer: _Answer) -> str:
        try:
            value = json.loads(answer.body)
        except (ValueError, RecursionError):
            raise JudgeFailure("malformed response", self._quoted(answer.body)) from None
        choices = field(value, "choices")
        turn = field(choices[0], "message") if isinstance(choices, list) and choices else None
        if not isinstance(turn, dict):
            raise JudgeFailure("malformed response", self._quoted(answer.body))
        content = turn.get("content")  # None where a judge has spent all its tokens on thoughts
        if isinstance(content, list):
            content = "".join(str(field(part, "text") or "") for part in content)
        return content if isinstance(content, str) else ""

    def _refusal(self, answer: _Answer) -> JudgeFailure:
        text = message(answer.body)
        if "location" in answer.headers:
            text = f"redirect to {answer.headers['location']}"
        too_long = 400 <= answer.status < 500 and _CONTEXT.search(text)
        reason = "context length" if too_long else f"HTTP {answer.status}"
        return JudgeFailure(reason, self._quoted(text), answer.status, text)

    def _delay(self, attempt: int, wanted: float | None) -> float:
        """Seconds before the next try: what the server wants, and any time up to an exponentially growing limit."""
        jitter = self._random.uniform(0.0, min(LONGEST_DELAY, FIRST_DELAY * 2.0**attempt))
        return jitter if wanted is None else min(wanted, LONGEST_RETRY_AFTER) + min(jitter, FIRST_DELAY)

    def _quoted(self, text: str | bytes) -> str:
        """What a server said, on one line, short, and without our key."""
        if isinstance(text, bytes):
            text = text[: 4 * MAX_QUOTED].decode("utf-8", "replace")
        if self._key:
            text = text.replace(self._key, "***")
        text = " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
        return text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}..."

    # Mistakes that are found at the start.

    async def _only_model(self) -> str:
        named = self._wording.named
        try:
            answer = await self._exchange("GET", f"{self._base}/models", None)
            if answer.status != 200:
                raise self._refusal(answer)
        except JudgeFailure as failure:
            if failure.status in (404, 405):
                raise UserError(
                    f"{self._where} does not list its models (HTTP {failure.status}): set {named('model')}, or "
                    f"correct {named('base_url')}, which as a rule ends in /v1"
                ) from None
            raise self._cannot_start(failure) from None
        try:
            listed = [str(entry["id"]) for entry in json.loads(answer.body)["data"]]
        except (ValueError, TypeError, KeyError):
            listed = []
        if len(listed) != 1:
            names = ", ".join(listed[:10]) or "none"
            raise UserError(f"set {named('model')}: the server at {self._base} lists {len(listed)} models ({names})")
        return listed[0]

    def _adapt(self, refusal: str) -> bool:
        """Leaves out a field that a refusal names; True if there was one."""
        if re.search(r"\bmax_completion_tokens\b", refusal) and not self._new_limit_name:
            self._new_limit_name = True
            return True
        json_mode = re.search(r"\bjson(_object| mode)?\b", refusal, re.IGNORECASE)
        for name in list(self._optional):
            named = re.search(rf"\b{re.escape(name)}\b", refusal)
            if named or (name == "response_format" and json_mode):
                del self._optional[name]
                self._say(f"{self._wording.label}: the server refuses {name!r}, which is left out from here on")
                return True
        return False

    @property
    def _where(self) -> str:
        return f"{self._wording.server} at {self._base}"

    def _cannot_start(self, failure: JudgeFailure) -> UserError:
        where, status, named = self._where, failure.status, self._wording.named
        if status in (401, 403):
            key = self._config.api_key_env
            missing = f"name the variable that holds its key in {named('api_key_env')}"
            hint = f"check the key in {key}" if key else missing
            return UserError(f"{where} refuses access (HTTP {status}): {hint}. It says: {failure.detail}")
        if status == 404:
            return UserError(
                f"{where} does not know the address or the model {self.model!r} (HTTP 404): correct "
                f"{named('base_url')} or {named('model')}. It says: {failure.detail}"
            )
        if status is None:
            return UserError(
                f"{where} does not answer ({failure}): start it, or correct {named('base_url')}{self._wording.without}"
            )
        if status >= 500 or status in _PASSING:
            return UserError(f"{where} fails the first request ({failure}): look into its log, and try again later")
        return UserError(f"{where} refuses the first request ({failure}): correct {self._wording.settings}")


def _optional_fields(config: JudgeConfig) -> dict[str, Any]:
    """What a request holds beyond model, messages and the token limit, in the order in which it can be done without."""
    fields: dict[str, Any] = {}
    if config.json_mode == "auto":
        fields["response_format"] = {"type": "json_object"}
    fields |= json.loads(config.extra_body or "{}")
    if config.top_k != -1:
        fields["top_k"] = config.top_k
    fields |= {"min_p": config.min_p, "seed": None}
    fields |= {"presence_penalty": config.presence_penalty, "frequency_penalty": config.frequency_penalty}
    fields |= {"top_p": config.top_p, "temperature": config.temperature}
    return fields


def _secret(variable: str, setting: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"{setting}={variable}, but this environment variable is empty: export it first")
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{setting}={variable}: its value has characters that no key can have; export it again")
    return key


def _is_loopback(url: str) -> bool:
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
