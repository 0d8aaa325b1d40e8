"""Worker processes that score responses while the device decodes.

Each worker is a subprocess of its own (`vero_jax.rewards.worker`) and holds one sample at a time, so that a sample
which passes its deadline takes nothing with it: the worker is killed and replaced, the sample is missing, all others
live. An asyncio loop in one thread of this process feeds the workers; nothing waits for the device or imports jax.

`multiprocessing` is not used: its spawned children import the parent's main module (here the trainer, with jax), and
its queues may be left locked by a child that is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Coroutine, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vero_jax.config import RewardConfig
from vero_jax.errors import UserError
from vero_jax.rewards.messages import HEADER, decode, encode, item_message, settings_message
from vero_jax.rewards.settings import RewardItem, RewardSettings, RuleScore
from vero_jax.rewards.total import missing_score, total_score
from vero_jax.types import Score

START_SECONDS = 120.0
"""Time for a worker to import and warm up."""
MAX_FAILED_STARTS = 3
"""Failed starts in a row after which the pool gives up."""
TIMEOUT = "timeout"
DIED = "worker died"


@dataclasses.dataclass
class _Group:
    """A submitted group and the scores that have arrived."""

    key: Hashable
    scores: list[Score | None]
    left: int


@dataclasses.dataclass
class _Job:
    """One sample on its way."""

    group: _Group
    index: int
    item: RewardItem
    message: bytes
    retried: bool = False


class _StartFailed(Exception):
    """A worker did not get ready."""


class RewardPool:
    """Scores groups of responses in worker processes.

    Use as a context manager: workers start when it is made (`wait_ready` waits for the first) and are gone on exit.

        with RewardPool(config.reward, max_response_length=config.rollout.max_response_length) as pool:
            for key, scores in pool.score_groups((index, reward_items(...)) for index, group in engine.generate(...)):
                ...

    Args:
      config: `reward.*` settings.
      max_response_length: longest answer the sampler allows, in tokens; the overlong term needs it.
      coordinates: `data.coordinates`.
    Raises:
      UserError: the user's own scorer can't be loaded, or workers can't start.
    """

    def __init__(self, config: RewardConfig, *, max_response_length: int, coordinates: str = "pixels"):
        if config.workers < 1:
            raise UserError(f"reward.workers is {config.workers}: at least one worker is needed")
        if not config.timeout_s > 0:
            raise UserError(f"reward.timeout_s is {config.timeout_s}: it must be more than 0 seconds")
        self._config = config
        self._max_response_length = max_response_length
        self._hello = encode(settings_message(RewardSettings.from_config(config, coordinates), config.timeout_s))
        self._finished: queue.SimpleQueue[_Group | BaseException] = queue.SimpleQueue()
        self._open_groups = 0
        self._failure: BaseException | None = None
        self._closed = False
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._jobs: deque[_Job] = deque()
        self._work = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="reward-pool", daemon=True)
        self._thread.start()

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait_ready(self, timeout_s: float = START_SECONDS) -> None:
        """Waits until a worker can take samples. Raises UserError when none can be started."""
        if not self._ready.wait(timeout_s):
            raise UserError(f"no reward worker got ready within {timeout_s:.0f} s")
        self._raise_failure()

    def submit(self, key: Hashable, items: Sequence[RewardItem]) -> None:
        """Hands over a group; returns at once. Its scores come from `collect` under `key`."""
        self._raise_failure()
        if self._closed:
            raise RuntimeError("the reward pool is closed")
        self._open_groups += 1
        group = _Group(key, [None] * len(items), len(items))
        if not items:
            self._finished.put(group)
            return
        jobs = []
        for index, item in enumerate(items):
            job = _Job(group, index, item, b"")
            try:
                job.message = encode(item_message(item))
            except (TypeError, ValueError, RecursionError) as error:
                self._settle(job, missing_score(f"unusable row: {error}"))
            else:
                jobs.append(job)
        self._loop.call_soon_threadsafe(self._enqueue, jobs)

    def collect(self, timeout_s: float = 0.0) -> list[tuple[Any, list[Score]]]:
        """The groups that have finished since the last call, in the order in which they did.

        Waits up to `timeout_s` for the first of them if none is there; does not wait where no group is open.
        """
        groups: list[tuple[Any, list[Score]]] = []
        deadline = time.monotonic() + timeout_s
        while self._open_groups:
            try:
                wait = deadline - time.monotonic()
                entry = self._finished.get(timeout=wait) if wait > 0 and not groups else self._finished.get_nowait()
            except queue.Empty:
                break
            if isinstance(entry, BaseException):
                self._failure = entry
                break
            self._open_groups -= 1
            groups.append((entry.key, [score for score in entry.scores if score is not None]))
        if not groups:
            self._raise_failure()
        return groups

    def score_groups(
        self, groups: Iterable[tuple[Hashable, Sequence[RewardItem]]]
    ) -> Iterator[tuple[Any, list[Score]]]:
        """Scores of each group, in the order in which `groups` gave them, each as soon as it is finished.

        `groups` may be a generator that decodes: its groups are scored while it makes the next one. Not to be mixed
        with `submit` while it runs.
        """
        order: deque[int] = deque()
        keys: dict[int, Hashable] = {}
        done: dict[int, list[Score]] = {}
        for number, (key, items) in enumerate(groups):
            keys[number] = key
            order.append(number)
            self.submit(number, items)
            done.update(self.collect())
            while order and order[0] in done:
                yield keys.pop(order[0]), done.pop(order.popleft())
        while order:
            done.update(self.collect(timeout_s=1.0))
            while order and order[0] in done:
                yield keys.pop(order[0]), done.pop(order.popleft())

    def close(self) -> None:
        """Ends all workers, idle or not. Groups that were not collected are lost. Safe to call again."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(RuntimeError):  # the loop has already ended by itself
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join(timeout=10)

    # What follows runs in the pool's own thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._tasks = [self._loop.create_task(self._keep_worker()) for _ in range(self._config.workers)]
        try:
            self._loop.run_until_complete(asyncio.gather(*self._tasks))
        except asyncio.CancelledError:
            pass
        except Exception as error:
            self._finished.put(error)
            self._failure = error
        finally:
            for task in self._tasks:
                if not task.cancelling():  # a second cancel would interrupt the cleaning up
                    task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                self._loop.run_until_complete(asyncio.gather(*self._tasks, return_exceptions=True))
            self._ready.set()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()

    def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _enqueue(self, jobs: Sequence[_Job]) -> None:
        self._jobs.extend(jobs)
        self._work.set()

    async def _keep_worker(self) -> None:
        """One worker after the other, until the pool is closed."""
        failed_starts = 0
        while True:
            spawning = asyncio.ensure_future(self._spawn())
            try:
                process = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                await _to_the_end(_end(await spawning))  # a process half made would stay behind
                raise
            try:
                try:
                    await asyncio.wait_for(self._greet(process), START_SECONDS)
                except (TimeoutError, _StartFailed, OSError, EOFError) as error:
                    failed_starts += 1
                    if failed_starts >= MAX_FAILED_STARTS:
                        raise UserError(
                            f"reward workers fail to start ({type(error).__name__}: {error}); see their messages above"
                        ) from None
                    continue
                failed_starts = 0
                self._ready.set()
                await self._serve(process)
            finally:
                await _to_the_end(_end(process))

    async def _spawn(self) -> asyncio.subprocess.Process:
        environment = dict(os.environ)
        root = str(Path(__file__).resolve().parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        # One sample at a time needs one thread; a pool of linear-algebra threads per worker would only cost memory.
        environment.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "vero_jax.rewards.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the trainer; a kill takes the worker's children along
        )

    async def _greet(self, process: asyncio.subprocess.Process) -> None:
        answer = await _exchange(process, self._hello)
        if "user_error" in answer:
            raise UserError(answer["user_error"])
        if not answer.get("ready"):
            raise _StartFailed(str(answer))

    async def _serve(self, process: asyncio.subprocess.Process) -> None:
        """Gives the worker one sample after the other; returns when it has to be replaced."""
        while True:
            job = await self._next_job()
            start = time.monotonic()
            try:
                answer = await asyncio.wait_for(_exchange(process, job.message), self._config.timeout_s)
            except TimeoutError:
                self._settle(job, missing_score(TIMEOUT), start)
                return
            except (EOFError, OSError, ValueError):
                if job.retried:
                    self._settle(job, missing_score(DIED), start)
                else:
                    job.retried = True
                    self._jobs.appendleft(job)
                    self._work.set()
                return
            except asyncio.CancelledError:
                self._jobs.appendleft(job)
                raise
            self._settle(job, self._score(job.item, answer), start)

    async def _next_job(self) -> _Job:
        while not self._jobs:
            self._work.clear()
            await self._work.wait()
        return self._jobs.popleft()

    def _score(self, item: RewardItem, answer: dict[str, Any]) -> Score:
        if "score" not in answer:
            return missing_score(str(answer.get("missing", "no score")))
        return total_score(RuleScore(*answer["score"]), item.response_length, self._config, self._max_response_length)

    def _settle(self, job: _Job, score: Score, start: float | None = None) -> None:
        """Notes the score of a sample, and how long it took since `start` (time.monotonic)."""
        if start is not None:
            score = dataclasses.replace(score, latency_s=time.monotonic() - start)
        group = job.group
        group.scores[job.index] = score
        group.left -= 1
        if not group.left:
            self._finished.put(group)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


async def _exchange(process: asyncio.subprocess.Process, message: bytes) -> dict[str, Any]:
    """Sends one message and reads one. Raises EOFError (IncompleteReadError) or OSError when the worker is gone."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(message)
    await process.stdin.drain()
    header = await process.stdout.readexactly(HEADER.size)
    return decode(await process.stdout.readexactly(HEADER.unpack(header)[0]))


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Finishes `work` even if this task is cancelled meanwhile; the cancellation then goes on."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kills a worker and its children, and waits for it. An idle one has nothing to save."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    # Reading to the end closes the pipes before the loop goes; a child that left the group may hold them open.
    with contextlib.suppress(TimeoutError, OSError):
        await asyncio.wait_for(process.communicate(), 5.0)
    if process.stdin is not None:
        process.stdin.close()
        with contextlib.suppress(OSError):
            await process.stdin.wait_closed()
    # The transport closes itself a few callbacks later; it must not outlive the loop.
    for _ in range(10):
        await asyncio.sleep(0)
