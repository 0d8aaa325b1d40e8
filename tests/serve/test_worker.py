"""The thread that owns the device: order, limits, cancelling, closing and failing."""

from __future__ import annotations

import queue
import time

import numpy as np
import pytest

from vero_jax.config import SamplingConfig
from vero_jax.errors import UserError
from vero_jax.sampling.session import Drawn, Request
from vero_jax.serve.worker import DeviceWorker, Full, Gone, Ticket


class ScriptedSession:
    """Draws tokens 0, 1, 2, ... of every sample, one a round; a limit of 13 cannot be submitted, 99 breaks it."""

    def __init__(self) -> None:
        self.open: dict[int, list] = {}
        self.numbers = 0
        self.cancelled: list[int] = []

    @property
    def idle(self) -> bool:
        return not self.open

    def submit(self, request):
        if request.max_new_tokens == 13:
            raise UserError("it does not fit")
        self.numbers += 1
        self.open[self.numbers] = [request, 0]
        return self.numbers

    def cancel(self, number):
        self.cancelled.append(number)
        self.open.pop(number, None)

    def advance(self, max_steps=None):
        time.sleep(0.002)
        drawn = []
        for number, entry in list(self.open.items()):
            request, count = entry
            if request.max_new_tokens == 99:
                raise RuntimeError("out of memory")
            entry[1] += 1
            reason = "length" if entry[1] == request.max_new_tokens else None
            for sample in range(len(request.keys)):
                ids = np.array([count], np.int32)
                drawn.append(Drawn(number, sample, count, ids, ids * -0.5, None, None, None, reason))
            if reason:
                del self.open[number]
        return drawn


def ticket(limit, n=1):
    events = queue.SimpleQueue()
    request = Request(None, np.zeros((n, 2), np.uint32), SamplingConfig(), limit)
    made = Ticket(request, events.put)
    made.events = events
    return made


@pytest.fixture
def worker():
    made = DeviceWorker(ScriptedSession(), max_waiting=3)
    made.start()
    yield made
    made.close(60)


def tokens(made, count):
    return [made.events.get(timeout=60) for _ in range(count)]


def test_requests_get_their_own_tokens(worker):
    first, second = ticket(3), ticket(2, n=2)
    worker.submit(first)
    worker.submit(second)
    assert [int(d.token_ids[0]) for d in tokens(first, 3)] == [0, 1, 2]
    assert sorted((d.sample, int(d.token_ids[0])) for d in tokens(second, 4)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_too_many_are_refused_until_one_has_ended(worker):
    slow = [ticket(10_000) for _ in range(3)]
    for one in slow:
        worker.submit(one)
    with pytest.raises(Full, match="3 requests"):
        worker.submit(ticket(1))
    worker.cancel(slow[0])
    for _ in range(500):
        try:
            worker.submit(last := ticket(1))
            break
        except Full:
            time.sleep(0.01)
    assert tokens(last, 1)[0].stop_reason == "length"
    for one in slow[1:]:
        worker.cancel(one)


def test_what_does_not_fit_is_told_to_the_one_who_asked(worker):
    bad, good = ticket(13), ticket(1)
    worker.submit(bad)
    worker.submit(good)
    assert isinstance(bad.events.get(timeout=60), UserError)
    assert tokens(good, 1)[0].stop_reason == "length"


def test_closing_finishes_what_is_on_its_way():
    worker = DeviceWorker(ScriptedSession())
    worker.start()
    one = ticket(20)
    worker.submit(one)
    worker.close(10)
    assert tokens(one, 20)[-1].stop_reason == "length" and not worker.alive
    with pytest.raises(Gone, match="closing"):
        worker.submit(ticket(1))


def test_a_failing_device_is_told_to_everybody(worker):
    waits, breaks = ticket(10_000), ticket(99)
    worker.submit(waits)
    worker.submit(breaks)
    for one in (waits, breaks):
        while not isinstance(event := one.events.get(timeout=60), Exception):
            pass
        assert isinstance(event, Gone) and "out of memory" in str(event)
    assert not worker.alive and isinstance(worker.failure, RuntimeError)
    with pytest.raises(Gone, match="has failed"):
        worker.submit(ticket(1))
