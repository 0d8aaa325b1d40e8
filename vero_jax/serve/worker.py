"""The thread that owns the device: takes requests from any thread, draws, and hands tokens to whoever waits."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Protocol

from vero_jax.errors import UserError
from vero_jax.sampling.session import Drawn, Request


class SessionLike(Protocol):
    """What the worker needs of `sampling.session.Session`."""

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""

    def submit(self, request: Request) -> int:
        """Puts a request behind those that wait."""

    def cancel(self, request: int) -> None:
        """Forgets a request."""

    def advance(self, max_steps: int | None = None) -> list[Drawn]:
        """One round on the device."""


class Full(Exception):
    """As many requests wait as may."""


class Gone(Exception):
    """The device has failed, or the server is closing."""


class Ticket:
    """A request on its way; events come by a function that is called in the worker's thread.

    Args:
      deliver: takes a `Drawn`, or the exception that ended the request.
    """

    def __init__(self, request: Request, deliver: Callable[[Drawn | Exception], None]) -> None:
        self.request, self.deliver = request, deliver
        self.number: int | None = None
        self.cancelled = False
        self.missing = len(request.keys)
        """Samples that have not ended."""


class DeviceWorker:
    """Runs a session in a thread of its own.

    Args:
      session: used by this thread alone, from `start` on.
      max_waiting: requests that may be on their way at a time.
      steps_per_round: most tokens that are drawn of each response before somebody hears of them.
    """

    def __init__(self, session: SessionLike, *, max_waiting: int = 256, steps_per_round: int = 8) -> None:
        self._session, self._max_waiting, self._steps = session, max_waiting, steps_per_round
        self._inbox: queue.SimpleQueue[tuple[str, Ticket | None]] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}
        self._count = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._closing = False
        self.failure: Exception | None = None
        """What ended the thread, if it was not `close`."""

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Puts a request behind those that wait. From any thread.

        Raises:
          Full: too many wait.
          Gone: nobody will draw it.
        """
        with self._lock:
            if self.failure is not None or self._closing:
                raise Gone("the server is closing" if self.failure is None else "the device has failed")
            if self._count >= self._max_waiting:
                raise Full(f"{self._count} requests are on their way already; try again later")
            self._count += 1
            # Under the lock: a thread that is closing or failing looks into the inbox once more after it has said so.
            self._inbox.put(("submit", ticket))

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for this request any more. From any thread, also when it has ended."""
        self._inbox.put(("cancel", ticket))

    def close(self, timeout: float) -> None:
        """Refuses new requests, finishes those on their way for at most so many seconds, and ends the thread."""
        with self._lock:
            self._closing = True
        self._inbox.put(("wake", None))
        self._thread.join(timeout)

    @property
    def alive(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and self.failure is None

    def _run(self) -> None:
        try:
            while not (self._closing and not self._tickets and self._inbox.empty()):
                self._take()
                if not self._session.idle:
                    for drawn in self._session.advance(self._steps):
                        self._give(drawn)
        except Exception as error:  # whatever the device has: every open request must hear of it
            with self._lock:
                self.failure = error
            for ticket in list(self._tickets.values()):
                ticket.deliver(Gone(f"the device has failed: {error}"))
            while not self._inbox.empty():
                kind, ticket_ = self._inbox.get()
                if kind == "submit" and ticket_ is not None:
                    ticket_.deliver(Gone(f"the device has failed: {error}"))

    def _take(self) -> None:
        """Takes what has come in; waits for something when there is nothing to do."""
        while True:
            try:
                kind, ticket = self._inbox.get(block=not self._tickets and not self._closing)
            except queue.Empty:
                return
            if ticket is None or kind == "wake":
                return
            if kind == "cancel":
                ticket.cancelled = True
                if ticket.number is not None and self._tickets.pop(ticket.number, None) is not None:
                    self._session.cancel(ticket.number)
                    self._left()
            elif not ticket.cancelled:
                self._admit(ticket)
            else:
                self._left()

    def _admit(self, ticket: Ticket) -> None:
        try:
            ticket.number = self._session.submit(ticket.request)
        except UserError as error:
            self._left()
            ticket.deliver(error)
            return
        self._tickets[ticket.number] = ticket

    def _give(self, drawn: Drawn) -> None:
        ticket = self._tickets.get(drawn.request)
        if ticket is None:
            return
        ticket.deliver(drawn)
        if drawn.stop_reason is not None:
            ticket.missing -= 1
            if ticket.missing == 0:
                del self._tickets[drawn.request]
                self._left()

    def _left(self) -> None:
        with self._lock:
            self._count -= 1
