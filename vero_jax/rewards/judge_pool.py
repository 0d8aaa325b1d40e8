"""Judging many responses at a time while the device decodes: questions in, futures of judgements out.

An asyncio loop in one thread keeps up to `concurrency` requests going. What was judged before comes from the cache,
what is being judged already is waited for, and a response whose judgement can't be had or read is missing, with its
reason, never 0.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vero_jax.config import RewardConfig
from vero_jax.errors import UserError
from vero_jax.rewards.judge import blend, judge_prompt, parse_reply, scale, strip_thinking
from vero_jax.rewards.judge_cache import JudgeCache, request_key
from vero_jax.rewards.judge_prompt import conversation_of, load_template
from vero_jax.rewards.judge_server import JudgeFailure, JudgeServer
from vero_jax.rewards.router import JUDGED_TYPES
from vero_jax.rewards.settings import RewardSettings, RuleScore
from vero_jax.rewards.total import missing_score
from vero_jax.types import Group, Score

READ_TRIES = 2
"""Requests for a reply that has a score in it."""
RECENT = 64
"""Latest judged responses that tell whether the judge still works ..."""
ENOUGH = 16
"""... once there are this many of them."""
END_SECONDS = 5.0
"""For a server to take the request to sleep when the run ends."""
UNREADABLE, EMPTY = "unreadable reply", "empty reply"


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What came of one response: its score as the judge gave it, or why there is none."""

    raw: float | None
    missing: str = ""
    detail: str = ""


class JudgePool:
    """Asks the judge about groups of responses. A context manager; made once for a run.

        with JudgePool(config.reward, cache_dir=..., say=print) as judge:
            futures = judge.submit(group)
            ...
            scores = judge.blended(group, futures)   # group.scores hold what the rules say
            judge.rest()

    Args:
      config: `reward.*` settings; `judge` is "openai".
      cache_dir: folder of the judgements, where `judge_server.cache_dir` does not name another one.
      say: told what happens once, such as what the server does not offer.

    Raises:
      UserError: the key's variable is empty, the prompt can't be read, or the server can't be used; one sentence says
        what to do.
    """

    def __init__(self, config: RewardConfig, *, cache_dir: str | Path, say: Callable[[str], None] = print) -> None:
        self._config, self._server_config = config, config.judge_server
        self._say = say
        self._own_types = frozenset(RewardSettings.from_config(config).custom_types)
        self._template = load_template(self._server_config.prompt)
        self._server = JudgeServer(self._server_config, say)
        self._loop = asyncio.new_event_loop()
        self._cache: JudgeCache | None = None
        self._slots = asyncio.Semaphore(self._server_config.concurrency)
        self._asking: dict[bytes, asyncio.Task[Judgement]] = {}
        self._recent: deque[Judgement] = deque(maxlen=RECENT)
        self._begin_counts()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge-pool", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            if self._server_config.cache:
                folder = Path(self._server_config.cache_dir or Path(cache_dir) / "judge").expanduser()
                self._cache = JudgeCache(folder, say)
            self._first_request()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> JudgePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def model(self) -> str:
        """The judge's name, as given or as found at its server."""
        return self._server.model

    def wants(self, reward_type: str) -> bool:
        """Whether responses of this type are judged: not those that the user's own functions score."""
        return reward_type in JUDGED_TYPES and reward_type not in self._own_types

    def submit(self, group: Group) -> list[concurrent.futures.Future[Judgement]]:
        """Asks about a group's responses; returns at once. Nothing for groups that need no judge."""
        example = group.prompt.example
        if not self.wants(example.reward_type):
            return []
        conversation = conversation_of(example.messages)
        prompts = [
            judge_prompt(self._template, conversation, response.text, example.ground_truth)
            for response in group.responses
        ]
        return [asyncio.run_coroutine_threadsafe(self._judged(prompt), self._loop) for prompt in prompts]

    def blended(self, group: Group, futures: Sequence[concurrent.futures.Future[Judgement]]) -> tuple[Score, ...]:
        """The group's scores with the judge's part in them; waits for it. Without futures they stay as they are."""
        if not futures:
            return group.scores
        found = [future.result() for future in futures]
        self._recent.extend(found)
        kind = group.prompt.example.reward_type
        return tuple(
            judged_score(score, kind, judgement, self._config)
            for score, judgement in zip(group.scores, found, strict=True)
        )

    def rest(self) -> None:
        """To be called when all that was submitted is there: a server that can sleep is put to sleep."""
        self._run(self._server.sleep())

    def check(self) -> None:
        """Stops a run whose judge fails too often.

        Raises:
          UserError: more than `judge_server.max_missing_share` of the latest judged responses have no judgement.
        """
        missing = [judgement for judgement in self._recent if judgement.missing]
        limit = self._server_config.max_missing_share
        if len(self._recent) < ENOUGH or len(missing) <= limit * len(self._recent):
            return
        common, _ = Counter(judgement.missing for judgement in missing).most_common(1)[0]
        detail = next(judgement.detail for judgement in reversed(missing) if judgement.missing == common)
        raise UserError(
            f"the judge gave no score for {len(missing)} of the latest {len(self._recent)} responses, more than "
            f"reward.judge_server.max_missing_share={limit}; mostly: {common}{f' ({detail})' if detail else ''}"
        )

    def metrics(self) -> dict[str, float]:
        """Counts since the last call, as `judge/<name>`; none where no response was judged.

        requests and retries are HTTP requests; judged, cache_hits (equal requests that ran at the same time included)
        and missing (also by reason) are responses; mean_score is on the judge's own scale; latency in seconds, from a
        free place among the concurrent requests to the reply, over the responses for which the server was asked.
        """
        counts, scores, seconds = self._counts, self._scores, self._seconds
        requests, retries = self._server.requests - self._requests_before, self._server.retries - self._retries_before
        self._begin_counts()
        if not counts["judged"]:
            return {}
        values = {"requests": float(requests), "retries": float(retries)}
        values |= {name: float(counts[name]) for name in ("judged", "cache_hits", "missing")}
        values |= {name: float(count) for name, count in counts.items() if name.startswith("missing/")}
        if scores:
            values["mean_score"] = float(np.mean(scores))
        if seconds:
            values |= {f"latency_p{share}_s": float(np.percentile(seconds, share)) for share in (50, 95)}
        return {f"judge/{name}": value for name, value in values.items()}

    def close(self) -> None:
        """Ends all requests, puts a server to sleep that can, and closes the cache. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()
        if self._cache is not None:
            self._cache.close()

    def _run(self, work: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        """Runs in the pool's thread, and waits."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def _begin_counts(self) -> None:
        self._counts: Counter[str] = Counter()
        self._scores: list[float] = []
        self._seconds: list[float] = []
        self._requests_before, self._retries_before = self._server.requests, self._server.retries

    def _first_request(self) -> None:
        """Finds out now, and not after hours of training, whether the judge can be used."""
        conversation = "User: [image]\nWhat animal is in the picture?"
        prompt = judge_prompt(self._template, conversation, "<answer>A grey cat.</answer>", "A cat.")
        reply = self._run(self._server.start(prompt))
        raw = parse_reply(strip_thinking(reply))
        score = f"first score {raw:g}" if raw is not None else f"but no score in its first reply: {reply[:200]!r}"
        self._say(f"judge: {self._server.model} at {self._server_config.base_url}, {score}")
        self._begin_counts()

    # What follows runs in the pool's own thread.

    async def _judged(self, prompt: str) -> Judgement:
        """The judgement of a prompt, from the cache, from an equal request under way, or from the server."""
        self._counts["judged"] += 1
        if self._cache is None:
            judgement = await self._asked(prompt, None)
        else:
            key = request_key(self._server.request(prompt))
            raw = self._cache.get(key)
            task = self._asking.get(key)
            if raw is not None or task is not None:
                self._counts["cache_hits"] += 1
            elif task is None:
                task = self._asking[key] = asyncio.ensure_future(self._asked(prompt, key))
                task.add_done_callback(lambda _: self._asking.pop(key, None))
            judgement = Judgement(raw) if task is None else await asyncio.shield(task)
        if judgement.raw is not None:
            self._scores.append(judgement.raw)
        else:
            self._counts["missing"] += 1
            self._counts["missing/" + judgement.missing.lower().replace(" ", "_")] += 1
        return judgement

    async def _asked(self, prompt: str, key: bytes | None) -> Judgement:
        digest = request_key(self._server.request(prompt))
        async with self._slots:
            start = time.monotonic()
            try:
                await self._server.wake()
                for attempt in range(READ_TRIES):
                    # From the content, so that a server that honours seeds gives the same score in another run.
                    seed = int.from_bytes(digest[4 * attempt : 4 * attempt + 4]) >> 1
                    reply = await self._server.ask(prompt, seed=seed)
                    text = strip_thinking(reply)
                    raw = parse_reply(text)
                    if raw is not None:
                        return Judgement(raw if key is None or self._cache is None else self._cache.put(key, raw, text))
            except JudgeFailure as failure:
                return Judgement(None, failure.reason, failure.detail)
            finally:
                self._seconds.append(time.monotonic() - start)
        return Judgement(None, UNREADABLE if text else EMPTY, text[:100])

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._server.sleep()
        await self._server.close()


def judged_score(score: Score, reward_type: str, judgement: Judgement, config: RewardConfig) -> Score:
    """A response's score by the rules, with the judge's part in it; missing where either is."""
    if score.missing is not None:
        return score
    if judgement.raw is None:
        return dataclasses.replace(missing_score(f"judge: {judgement.missing}"), latency_s=score.latency_s)
    rule = blend(
        RuleScore(score.total - score.overlong, score.accuracy, score.format),
        reward_type,
        scale(judgement.raw, config.judge_server.scale),
        format_weight=config.format_weight,
        instruction_weight=config.instruction_weight,
        gate_format=config.judge_server.gate_format,
    )
    return dataclasses.replace(score, total=rule.score + score.overlong, accuracy=rule.accuracy, format=rule.format)
