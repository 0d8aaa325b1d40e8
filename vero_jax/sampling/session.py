"""A session of sampling: requests in at any time, newly drawn tokens out, one round on the device after another.

A round is one device program that draws many tokens (`Programs.decode`). Between rounds the host gives free lanes to
waiting samples, has prompts read, and moves full columns of keys to pages. The next round is started before the last
one's tokens are given out, so that whoever uses them works while the device does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from vero_jax.errors import UserError
from vero_jax.models.choice import Warping
from vero_jax.sampling.inputs import check_prompt
from vero_jax.sampling.schedule import Job, Request, Scheduler
from vero_jax.sampling.state import Assignment, Lanes, Window
from vero_jax.types import Prompt

if TYPE_CHECKING:
    from vero_jax.sampling.engine import Engine, SessionPrograms

__all__ = ["Drawn", "Request", "Session"]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Tokens newly drawn of one sample."""

    request: int
    """What `Session.submit` returned."""
    sample: int
    start: int
    """Place of the first of them in the response."""
    token_ids: Int32[np.ndarray, "t"]
    logprobs: Float32[np.ndarray, "t"]
    """Under the untruncated policy at the sampling temperature."""
    warped_logprobs: Float32[np.ndarray, "t"] | None
    """Under the distribution that was drawn from, where the session was asked for them."""
    top_ids: Int32[np.ndarray, "t N"] | None
    top_logprobs: Float32[np.ndarray, "t N"] | None
    """The most likely tokens at each place, where the session was asked for alternatives."""
    stop_reason: str | None
    """"stop" or "length" with the sample's last tokens, else None."""


@dataclasses.dataclass
class Round:
    """A round that the device works on."""

    window: Window
    column: int
    """Where it began."""
    end: jax.Array


class Session:
    """Made by `Engine.session`. All methods are for one thread.

    Args:
      params: as sampling reads them, on the mesh.
    """

    def __init__(self, engine: Engine, programs: SessionPrograms, params: Any, *, resend: bool) -> None:
        self.engine, self.programs, self.params, self._resend = engine, programs, params, resend
        self.sizes = programs.sizes
        self.scheduler = Scheduler(self.sizes)
        self._prompts, self._own = programs.empty()
        self._lanes: Lanes | None = None
        self._column = 0
        self._round: Round | None = None
        self._given: dict[tuple[int, int], int] = {}
        """Tokens that were given out of samples that are drawn again."""

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return self.scheduler.idle

    def submit(self, request: Request) -> int:
        """Puts a request behind those that wait; others go on meanwhile. Returns its number.

        Raises:
          UserError: the prompt fits no bucket, its image tokens do not match its images, or the session was made
            without what the request asks for.
        """
        check_request(self.engine, self, request)
        return self.scheduler.submit(request)

    def cancel(self, request: int) -> None:
        """Forgets a request; one that has ended or never was is ignored."""
        self.scheduler.cancel(request)

    def advance(self, max_steps: int | None = None) -> list[Drawn]:
        """Waits for the round that runs (or for a first one), starts the next, and returns what was drawn.

        Args:
          max_steps: most tokens that the next round draws of each response; None leaves it to the columns.
        """
        if self._round is None:
            self._start(max_steps)
        if self._round is None:
            return []
        drawn = list(self._finish(self._round))
        self._round = None
        if not self.idle:
            self._start(max_steps)
        return drawn

    def warm_up(self) -> None:
        """Runs every program once on nothing, in every shape, so that nothing compiles when requests come.

        Raises:
          RuntimeError: requests have come already.
        """
        if self._lanes is not None or not self.idle:
            raise RuntimeError("warm_up is for a session without requests")
        engine, sizes, buckets = self.engine, self.sizes, self.engine.buckets
        has_vision = engine.model_def.config.vision is not None
        for tokens in buckets.prompts:
            per_prompt = -(-tokens // sizes.prompt_page)
            for patches in (0, *buckets.patches) if has_vision else (0,):
                # A prompt has a token for every few patches, so the largest images do not come with short prompts.
                smaller = max((size for size in buckets.patches if size < patches), default=0)
                if smaller // engine.patch_layout.patches_per_token >= tokens:
                    continue
                for rows in engine.prefill_rungs(tokens, sizes.prompts):
                    units = np.full((sizes.shards, rows), sizes.prompts, np.int32)
                    pages = np.full((sizes.shards, rows * per_prompt), sizes.prompt_pages, np.int32)
                    nobody = [None] * (sizes.shards * rows)
                    self._prompts = engine.read_prompts(
                        self.programs, self.params, self._prompts, nobody, tokens, patches, units, pages
                    )
        rungs = sizes.lane_rungs()
        for lanes in rungs:
            self.scheduler.resize(lanes)
            state = self.programs.new_lanes(lanes)
            nowhere = np.full((sizes.shards, lanes), sizes.response_pages, np.int32)
            self._own = self.programs.flush(self._own, state.recent, self._put(nowhere))
            for other in rungs:
                if other != lanes:
                    self.programs.move(state, self._put(np.zeros((sizes.shards, other), np.int32)))
            jax.block_until_ready(self._decode(state, 0, 1)[2])
        self.scheduler.resize(sizes.lanes)

    # --- one round

    def _start(self, max_steps: int | None) -> None:
        scheduler, sizes = self.scheduler, self.sizes
        if scheduler.live() == 0:
            self._column = 0
        if self._column == sizes.response_page:
            self._flush()
        lanes = scheduler.rung()
        if self._lanes is None:
            scheduler.resize(lanes)
            self._lanes = self.programs.new_lanes(lanes)
        elif lanes != self._lanes.done.shape[1]:
            self._lanes = self.programs.move(self._lanes, self._put(scheduler.resize(lanes)))
        self._read(scheduler.admit())
        scheduler.fill(self._column)
        if scheduler.live() == 0:
            return
        stop = sizes.response_page if max_steps is None else min(sizes.response_page, self._column + max_steps)
        self._lanes, window, end = self._decode(self._lanes, self._column, stop)
        self._round = Round(window, self._column, end)

    def _decode(self, lanes: Lanes, column: int, stop: int) -> tuple[Lanes, Window, jax.Array]:
        wake = self.scheduler.wake()
        columns = np.int32(column), np.int32(stop), np.int32(wake)
        return self.programs.decode(self.params, self._prompts, self._own, lanes, self._plan(), *columns)

    def _finish(self, at: Round) -> Iterator[Drawn]:
        if self._lanes is None:
            raise AssertionError("a round has lanes")
        window, counts, done, end = self.engine.fetch((at.window, self._lanes.count, self._lanes.done, at.end))
        self._column = int(end)
        stats = self.engine.stats
        stats.rounds += 1
        steps = self._column - at.column
        stats.decode_steps += steps
        stats.lane_steps += steps * done.size
        for a, lane, occupant, before, ended in self.scheduler.advance(counts, done):
            number = occupant.job.number, occupant.sample
            fresh = occupant.count - before
            # Of a sample that is drawn again, what was given out already is left out.
            skip = min(max(self._given.get(number, 0) - before, 0), fresh)
            columns = slice(at.column + skip, at.column + fresh)
            tokens = window.tokens[a, lane, columns].copy()
            reason = None
            if ended:
                last = int(window.tokens[a, lane, at.column + fresh - 1])
                reason = "stop" if last in self.engine.stop_ids else "length"
                self._given.pop(number, None)
                stats.response_tokens += occupant.count
            if not len(tokens) and not ended:
                continue

            def of(x: np.ndarray | None, a: int = a, lane: int = lane, columns: slice = columns) -> Any:
                return None if x is None else x[a, lane, columns].copy()

            yield Drawn(
                *number,
                before + skip,
                tokens,
                of(window.logprobs),
                of(window.warped_logprobs),
                of(window.top_ids),
                of(window.top_logprobs),
                reason,
            )

    def _flush(self) -> None:
        """Moves full columns into pages."""
        if self._lanes is None:
            raise AssertionError("columns fill up in lanes")
        pages, sent_back = self.scheduler.flush(self.sizes.response_page)
        if (pages < self.sizes.response_pages).any():
            self._own = self.programs.flush(self._own, self._lanes.recent, self._put(pages))
        self._column = 0
        self.engine.stats.preempted += len(sent_back)
        if not self._resend:
            for occupant in sent_back:
                number = occupant.job.number, occupant.sample
                self._given[number] = max(self._given.get(number, 0), occupant.count)

    def _plan(self) -> Assignment:
        return self.engine.place(host_assignment(self.scheduler), self.engine.layout.assignment())

    def _put(self, array: np.ndarray) -> jax.Array:
        return self.engine.place(array, self.engine.layout.rows)

    # --- prompts

    def _read(self, jobs: Sequence[Job]) -> None:
        """Has prompts read, several of one bucket at a time."""
        by_bucket: dict[int, list[tuple[Job, int]]] = {}
        for job in jobs:
            prompt = job.request.prompt
            tokens, patches = self.engine.buckets.of(job.number, prompt)
            by_bucket.setdefault(tokens, []).append((job, patches))
            self.engine.stats.prompt_tokens += len(prompt.token_ids)
        for tokens, members in sorted(by_bucket.items()):
            members.sort(key=lambda member: member[1])
            queues: list[list[tuple[Job, int]]] = [[] for _ in range(self.sizes.shards)]
            for member in members:
                queues[member[0].shard].append(member)
            while most := max(len(queue) for queue in queues):
                rows = max(rung for rung in self.engine.prefill_rungs(tokens, self.sizes.prompts) if rung <= most)
                call = [queue[:rows] for queue in queues]
                queues = [queue[rows:] for queue in queues]
                self._prefill(call, rows, tokens)

    def _prefill(self, call: list[list[tuple[Job, int]]], rows: int, tokens: int) -> None:
        """One program call: up to `rows` prompts of each shard."""
        sizes, per_prompt = self.sizes, -(-tokens // self.sizes.prompt_page)
        prompts: list[Prompt | None] = []
        units = np.full((sizes.shards, rows), sizes.prompts, np.int32)
        pages = np.full((sizes.shards, rows * per_prompt), sizes.prompt_pages, np.int32)
        for a, members in enumerate(call):
            for row, (job, _) in enumerate(members):
                units[a, row] = job.unit
                first = row * per_prompt
                pages[a, first : first + len(job.pages)] = job.pages
            here = [job.request.prompt for job, _ in members]
            prompts += [*here, *[None] * (rows - len(here))]
        room = max(patches for members in call for _, patches in members)
        self._prompts = self.engine.read_prompts(
            self.programs, self.params, self._prompts, prompts, tokens, room, units, pages
        )
        self.engine.stats.prefill_calls += 1


def check_request(engine: Engine, session: Session, request: Request) -> None:
    """Whether a session can answer a request.

    Raises:
      UserError: it cannot; the sentence says why.
    """
    sizes, prompt, sampling = session.sizes, request.prompt, request.sampling
    number = session.scheduler.submitted + 1
    check_prompt(number, prompt, engine.patch_layout.merge_size)
    engine.buckets.of(number, prompt)
    limit = int(request.limits.max())
    if request.limits.min() < 1 or not len(request.keys):
        raise UserError(
            f"n={len(request.keys)} samples of max_new_tokens={int(request.limits.min())} tokens: both must be at "
            "least 1"
        )
    if -(-len(prompt.token_ids) // sizes.prompt_page) > sizes.prompt_pages:
        raise UserError(
            f"a prompt of {len(prompt.token_ids)} tokens does not fit the store of prompts, "
            f"{sizes.prompt_pages * sizes.prompt_page} tokens; raise rollout.prompt_kv_tokens"
        )
    if -(-limit // sizes.response_page) > sizes.response_pages:
        raise UserError(
            f"a response of {limit} tokens does not fit the store of responses, "
            f"{sizes.response_pages * sizes.response_page} tokens; raise rollout.response_kv_tokens or lower the limit"
        )
    if not sizes.truncated and sampling.truncates:
        raise UserError("top_k, top_p and min_p need a session that was made for truncated sampling")
    if not sizes.penalties and sampling.has_penalties:
        raise UserError("penalties need a session that was made for them")


def host_assignment(scheduler: Scheduler) -> Assignment:
    """What a round is told, as numpy arrays."""
    each = scheduler.per_lane
    warping: dict[str, Any] = {
        "temperature": each(lambda s: s.temperature, np.float32, 0.0),
        "top_k": each(lambda s: s.top_k, np.int32, -1),
        "top_p": each(lambda s: s.top_p, np.float32, 1.0),
        "min_p": each(lambda s: s.min_p, np.float32, 0.0),
        "presence": each(lambda s: s.presence_penalty, np.float32, 0.0),
        "frequency": each(lambda s: s.frequency_penalty, np.float32, 0.0),
        "repetition": each(lambda s: s.repetition_penalty, np.float32, 1.0),
    }
    return Assignment(warping=Warping(**warping), **scheduler.tables())
