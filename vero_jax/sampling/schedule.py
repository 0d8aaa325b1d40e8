"""Who is in which lane, and whose the pages are: the host's side of sampling. numpy only.

A *lane* draws one response at a time and takes the next waiting sample as soon as it is free, of whatever prompt. A
prompt is read when lanes would stand empty without it, keeps its pages until its last sample has ended, and is shared
by its samples. A response gets a page each time the columns of newest tokens are full, so its memory follows the
tokens that it has. When pages run out, the youngest response gives its pages back and is drawn again later: what a
sample draws depends on its key alone, so it comes out the same.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt32

from vero_jax.config import SamplingConfig
from vero_jax.sampling.state import Sizes
from vero_jax.types import Prompt


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to be answered N times."""

    prompt: Prompt
    keys: UInt32[np.ndarray, "N 2"]
    """Random key of each sample; see `inputs.sample_keys`."""
    sampling: SamplingConfig
    max_new_tokens: int | Int32[np.ndarray, "N"]
    """Limit of every response, or of each; the stop id counts."""

    @property
    def limits(self) -> Int32[np.ndarray, "N"]:
        return np.broadcast_to(np.asarray(self.max_new_tokens, np.int32), (len(self.keys),))


@dataclasses.dataclass
class Job:
    """A request on its way."""

    number: int
    request: Request
    waiting: collections.deque[int]
    """Samples that are in no lane."""
    unfinished: int
    shard: int = -1
    """-1: the prompt is not on the device."""
    unit: int = -1
    pages: list[int] = dataclasses.field(default_factory=list)
    members: list[int] = dataclasses.field(default_factory=list)
    """Free places among the lanes that read the prompt."""


@dataclasses.dataclass
class Occupant:
    """The response in a lane."""

    job: Job
    sample: int
    member: int
    age: int
    """When it began: a running number."""
    count: int = 0
    first: int = 0
    """First column of the newest tokens that is its own."""
    new: bool = True
    pages: list[int] = dataclasses.field(default_factory=list)


class Shard:
    """Lanes, prompts and pages of one shard of the mesh."""

    def __init__(self, sizes: Sizes) -> None:
        self.lanes: list[Occupant | None] = [None] * sizes.lanes
        self.units: list[Job | None] = [None] * sizes.prompts
        self.free_units = list(range(sizes.prompts))
        self.free_prompt_pages = list(range(sizes.prompt_pages))
        self.free_pages = list(range(sizes.response_pages))
        self.page_owner: dict[int, tuple[Occupant, int]] = {}
        """Of a page of responses: whose it is, and its first place that holds a token."""

    def live(self) -> int:
        return sum(lane is not None for lane in self.lanes)

    def waiting(self) -> int:
        """Samples of the shard's prompts that are in no lane."""
        return sum(len(job.waiting) for job in self.units if job is not None)

    def startable(self) -> int:
        """Free lanes that may take a sample: every response needs a page when the columns are full."""
        live = self.live()
        return min(len(self.lanes) - live, max(len(self.free_pages) - live, 0 if live else 1))

    def spare(self) -> int:
        """Of the startable lanes, those that no waiting sample of the shard's prompts will take."""
        taken = sum(min(len(job.waiting), len(job.members)) for job in self.units if job is not None)
        return self.startable() - taken


class Scheduler:
    """Decides; the session moves the arrays. All methods are for one thread."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.shards = [Shard(sizes) for _ in range(sizes.shards)]
        self.jobs: dict[int, Job] = {}
        self.waiting: collections.deque[Job] = collections.deque()
        self._numbers = self._ages = 0

    # --- requests

    def submit(self, request: Request) -> int:
        """Puts a request behind those that wait; it must fit (see `session.check_request`)."""
        self._numbers += 1
        samples = len(request.keys)
        job = Job(self._numbers, request, collections.deque(range(samples)), samples)
        self.jobs[job.number] = job
        self.waiting.append(job)
        return job.number

    def cancel(self, number: int) -> None:
        """Forgets a request and frees what it holds; one that has ended or never was is ignored."""
        job = self.jobs.pop(number, None)
        if job is None:
            return
        if job.shard < 0:
            self.waiting.remove(job)
            return
        shard = self.shards[job.shard]
        for lane, occupant in enumerate(shard.lanes):
            if occupant is not None and occupant.job is job:
                self._leave(shard, lane)
        self._release(shard, job)

    @property
    def submitted(self) -> int:
        """Requests so far."""
        return self._numbers

    @property
    def idle(self) -> bool:
        """Whether every request has ended."""
        return not self.jobs

    def live(self) -> int:
        """Responses in lanes."""
        return sum(shard.live() for shard in self.shards)

    def more_waits(self) -> bool:
        """Whether a lane that becomes free would have something to do."""
        return bool(self.waiting) or any(shard.waiting() for shard in self.shards)

    # --- before a round

    def admit(self) -> list[Job]:
        """Gives units and pages to the next prompts, while lanes would be empty otherwise; they must be read now."""
        placed = []
        while self.waiting:
            job = self.waiting[0]
            need = -(-len(job.request.prompt.token_ids) // self.sizes.prompt_page)
            able = [s for s in self.shards if s.free_units and len(s.free_prompt_pages) >= need and s.spare() > 0]
            if not able:
                break
            self.waiting.popleft()
            shard = max(able, key=Shard.spare)
            job.shard, job.unit = self.shards.index(shard), heapq.heappop(shard.free_units)
            job.pages = [heapq.heappop(shard.free_prompt_pages) for _ in range(need)]
            job.members = list(range(self.sizes.readers))
            shard.units[job.unit] = job
            placed.append(job)
        return placed

    def fill(self, column: int) -> None:
        """Puts waiting samples into free lanes, the oldest prompts first."""
        for shard in self.shards:
            jobs = sorted((job for job in shard.units if job is not None), key=lambda job: job.number)
            free = [lane for lane, occupant in enumerate(shard.lanes) if occupant is None][: shard.startable()]
            for job in jobs:
                while free and job.waiting and job.members:
                    self._ages += 1
                    sample, member = job.waiting.popleft(), heapq.heappop(job.members)
                    shard.lanes[free.pop(0)] = Occupant(job, sample, member, self._ages, first=column + 1)

    # --- after a round

    def advance(
        self, counts: Int32[np.ndarray, "A B"], done: Bool[np.ndarray, "A B"]
    ) -> Iterator[tuple[int, int, Occupant, int, bool]]:
        """Takes in what a round did; frees lanes and prompts that are done with.

        Yields:
          (shard, lane, occupant, tokens that it had before, whether it has ended) of every response that was live.
        """
        for a, shard in enumerate(self.shards):
            for lane, occupant in enumerate(shard.lanes):
                if occupant is None:
                    continue
                before, occupant.count, occupant.new = occupant.count, int(counts[a, lane]), False
                ended = bool(done[a, lane])
                yield a, lane, occupant, before, ended
                if ended:
                    job = occupant.job
                    self._leave(shard, lane)
                    job.unfinished -= 1
                    if job.unfinished == 0 and self.jobs.pop(job.number, None) is not None:
                        self._release(shard, job)

    def flush(self, columns: int) -> tuple[Int32[np.ndarray, "A B"], list[Occupant]]:
        """Gives a page to every response with tokens among the first `columns` newest; the columns are free then.

        Returns:
          the page of each lane, or the number of pages where it has nothing to keep; the responses that had to give
          their lanes back, as they were.
        """
        sent_back: list[Occupant] = []
        none = self.sizes.response_pages
        pages = np.full((len(self.shards), len(self.shards[0].lanes)), none, np.int32)
        for a, shard in enumerate(self.shards):
            keep = [
                lane for lane, occupant in enumerate(shard.lanes) if occupant is not None and occupant.first < columns
            ]
            keep.sort(key=lambda lane: shard.lanes[lane].age)  # type: ignore[union-attr]  # they are occupied
            for lane in keep:
                occupant = shard.lanes[lane]
                while occupant is not None and not shard.free_pages:
                    sent_back.append(self._preempt(shard))
                    occupant = shard.lanes[lane]  # it may have been the youngest itself
                if occupant is None:
                    continue
                page = heapq.heappop(shard.free_pages)
                pages[a, lane] = page
                occupant.pages.append(page)
                shard.page_owner[page] = (occupant, occupant.first)
            for occupant in shard.lanes:
                if occupant is not None:
                    occupant.first = 0
        return pages, sent_back

    def rung(self) -> int:
        """Lanes of a shard that have something to do: the smallest number there are programs for."""
        queued = -(-sum(len(job.waiting) for job in self.waiting) // len(self.shards))
        needed = queued + max(shard.live() + shard.waiting() for shard in self.shards)
        return min(rung for rung in self.sizes.lane_rungs() if rung >= min(needed, self.sizes.lanes))

    def wake(self) -> int:
        """How many responses have to end before the host can do something useful.

        While samples wait, a sixteenth of the lanes: each look of the host costs as much as a step or two. At the
        end, as many as leave the responses to fewer lanes.
        """
        lanes, shards = len(self.shards[0].lanes), len(self.shards)
        if self.more_waits():
            return max(lanes * shards // 16, 1)
        fewer = max((rung for rung in self.sizes.lane_rungs() if rung < lanes), default=0)
        return max(self.live() - fewer * shards, 1) if fewer else self.live() + 1

    def resize(self, lanes: int) -> Int32[np.ndarray, "A N"]:
        """Moves the responses into `lanes` lanes; returns the old lane of each, or the old number of lanes."""
        old = len(self.shards[0].lanes)
        order = np.full((len(self.shards), lanes), old, np.int32)
        for a, shard in enumerate(self.shards):
            kept = [lane for lane, occupant in enumerate(shard.lanes) if occupant is not None]
            order[a, : len(kept)] = kept
            shard.lanes = [shard.lanes[lane] for lane in kept] + [None] * (lanes - len(kept))
        return order

    # --- arrays of a round

    def tables(self) -> dict[str, Any]:
        """The fields of `state.Assignment` that say who is where (all but those of the token choice)."""
        sizes, A, B = self.sizes, len(self.shards), len(self.shards[0].lanes)

        def zeros(width: int, *more: int) -> np.ndarray:
            return np.zeros((A, width, *more), np.int32)

        table: dict[str, Any] = {
            "new": np.zeros((A, B), bool),
            "active": np.zeros((A, B), bool),
            "unit": zeros(B),
            "member": zeros(B),
            "readers": np.full((A, sizes.prompts, sizes.readers), B, np.int32),
            "limit": zeros(B),
            "keys": np.zeros((A, B, 2), np.uint32),
            "prompt_unit": zeros(sizes.prompt_pages),
            "prompt_high": zeros(sizes.prompt_pages),
            "own_lane": zeros(sizes.response_pages),
            "own_low": zeros(sizes.response_pages),
            "own_high": zeros(sizes.response_pages),
        }
        prompt_used = own_used = 0
        for a, shard in enumerate(self.shards):
            lane_of = {}
            for lane, occupant in enumerate(shard.lanes):
                if occupant is None:
                    continue
                job, lane_of[id(occupant)] = occupant.job, lane
                table["new"][a, lane], table["active"][a, lane] = occupant.new, True
                table["unit"][a, lane], table["member"][a, lane] = job.unit, occupant.member
                table["readers"][a, job.unit, occupant.member] = lane
                table["limit"][a, lane] = job.request.limits[occupant.sample]
                table["keys"][a, lane] = job.request.keys[occupant.sample]
            for job_ in shard.units:
                if job_ is None:
                    continue
                tokens = len(job_.request.prompt.token_ids)
                table["prompt_unit"][a, job_.pages] = job_.unit
                table["prompt_high"][a, job_.pages] = np.minimum(
                    tokens - np.arange(len(job_.pages)) * sizes.prompt_page, sizes.prompt_page
                )
                prompt_used = max(prompt_used, max(job_.pages) + 1)
            for page, (occupant, low) in shard.page_owner.items():
                table["own_lane"][a, page] = lane_of[id(occupant)]
                table["own_low"][a, page], table["own_high"][a, page] = low, sizes.response_page
                own_used = max(own_used, page + 1)
        return table | {"prompt_used": np.int32(prompt_used), "own_used": np.int32(own_used)}

    def per_lane(self, value: Callable[[SamplingConfig], float], kind: type, default: float) -> np.ndarray:
        """A setting of the token choice for each lane."""
        return np.array(
            [
                [default if occupant is None else value(occupant.job.request.sampling) for occupant in shard.lanes]
                for shard in self.shards
            ],
            kind,
        )

    # --- inside

    def _leave(self, shard: Shard, lane: int) -> Occupant:
        occupant = shard.lanes[lane]
        if occupant is None:
            raise AssertionError("an empty lane cannot be left")
        shard.lanes[lane] = None
        heapq.heappush(occupant.job.members, occupant.member)
        for page in occupant.pages:
            del shard.page_owner[page]
            heapq.heappush(shard.free_pages, page)
        return occupant

    def _preempt(self, shard: Shard) -> Occupant:
        """The youngest response gives its lane and pages back, and waits to be drawn again."""
        ages = [-1 if occupant is None else occupant.age for occupant in shard.lanes]
        occupant = self._leave(shard, ages.index(max(ages)))
        occupant.job.waiting.appendleft(occupant.sample)
        return occupant

    def _release(self, shard: Shard, job: Job) -> None:
        shard.units[job.unit] = None
        heapq.heappush(shard.free_units, job.unit)
        for page in job.pages:
            heapq.heappush(shard.free_prompt_pages, page)
