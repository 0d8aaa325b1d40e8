"""Who else belongs to the run, and whether they are still there: a star of TCP connections around process 0.

A process that waits in a collective for one that has died waits for ever, or until the runtime aborts it with a message
about tasks. Here each process says every few seconds that it lives. When one ends without a farewell, or says nothing
for `timeout_s` (a host without power sends no farewell either), all others print which one and on which host, and end
with `PEER_LOST`, so that whoever started them can start the same command again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from vero_jax.errors import UserError

PEER_LOST = 75
"""Exit status of a process whose peer is gone: EX_TEMPFAIL of sysexits.h, "try again"."""
BEAT_S = 1.0
PARTING_S = 3.0
"""Of waiting for others to hear why this process ends."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One process of the run."""

    index: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.index} (pid {self.pid} on {self.host})"


def my_addresses() -> list[str]:
    """Where others may reach this machine, the likeliest first."""
    found = [socket.gethostname(), socket.getfqdn()]
    with contextlib.suppress(OSError):
        found.append(socket.gethostbyname(socket.gethostname()))
    return list(dict.fromkeys(found))


def listen() -> socket.socket:
    """A socket for the others to connect to, on a port that is free; for process 0."""
    server = socket.create_server(("", 0), backlog=1024)
    server.setblocking(False)
    return server


class Peers:
    """A context manager around a run of several processes; see the head of this file.

    with Peers(peers, index, server, addresses, timeout_s=30):
        ...the run...

    Leaving it in peace waits for the others to do the same. Leaving it with an error tells them, and ends this process:
    what the runtime would do at the exit of the interpreter is to wait for them.

    Args:
      peers: all processes of the run, in order.
      index: this one.
      server: process 0's `listen()`; None in the others.
      addresses: (host, port) at which process 0 may be reached.
      timeout_s: of silence, after which a process is given up.
      leave: ends this process with an exit status at once; for tests.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        index: int,
        server: socket.socket | None,
        addresses: Sequence[tuple[str, int]],
        *,
        timeout_s: float,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        self.peers, self.index, self._timeout_s, self._leave = list(peers), index, timeout_s, leave
        self._links: dict[int, _Link] = {}
        self._byes: set[int] = set()
        self._released = threading.Event()
        self._over = threading.Event()
        self._sending, self._ending = threading.Lock(), threading.Lock()
        if server is not None:
            self._accept(server)
        else:
            self._links[0] = _Link(_connect(addresses, timeout_s))
            self._links[0].send({"hello": index})
        self._thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def __enter__(self) -> Peers:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self._farewell()
            return
        if isinstance(error, UserError):
            sentence, code = str(error), 2
        else:
            # Often the loss of a peer is first seen as some collective that failed; its own message is the better one.
            time.sleep(2 * BEAT_S)
            sentence, code = f"{type(error).__name__}: {error}", 1
            traceback.print_exception(kind, error, trace)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        why = sentence.strip().split("\n")[0][:500]
        self._end(sentence, code, {"failed": self.index, "why": why, "code": code})

    # --- how they are connected

    def _accept(self, server: socket.socket) -> None:
        deadline = time.monotonic() + max(self._timeout_s, 30.0)
        with server, selectors.DefaultSelector() as ready:
            ready.register(server, selectors.EVENT_READ)
            while len(self._links) < len(self.peers) - 1:
                left = deadline - time.monotonic()
                if left <= 0:
                    absent = [str(p) for p in self.peers[1:] if p.index not in self._links]
                    raise UserError(
                        f"{', '.join(absent)} cannot reach {self.peers[0]} by TCP; open the ports between the hosts"
                    )
                if not ready.select(left):
                    continue
                connection, _ = server.accept()
                connection.settimeout(5.0)
                link = _Link(connection)
                with contextlib.suppress(OSError):
                    # Anybody may connect to an open port; who does not say whom he is, is not one of us.
                    hello, *link.early = link.receive() or [{}]
                    if hello.get("hello") in {*range(1, len(self.peers))} - {*self._links}:
                        self._links[hello["hello"]] = link

    def _watch(self) -> None:
        """The thread: sends beats, reads what comes, and ends the process when a peer is gone."""
        with selectors.DefaultSelector() as ready:
            for index, link in self._links.items():
                link.socket.setblocking(True)
                ready.register(link.socket, selectors.EVENT_READ, index)
                self._take(index, link.early)
            next_beat = 0.0
            while not self._over.is_set():
                now = time.monotonic()
                if now >= next_beat:
                    self._tell({"beat": self.index})
                    next_beat = now + BEAT_S
                for key, _ in ready.select(BEAT_S / 2):
                    if not self._read(key.data):
                        ready.unregister(key.fileobj)
                for index, link in self._links.items():
                    if index not in self._byes and time.monotonic() - link.heard > self._timeout_s:
                        self._lost(index, f"has said nothing for {self._timeout_s:.0f} s")

    def _read(self, index: int) -> bool:
        """Takes what has come from a process. False when nothing will come any more."""
        try:
            messages = self._links[index].receive()
        except OSError:
            messages = []
        self._take(index, messages)
        if messages:
            return True
        if index not in self._byes:
            self._lost(index, "is gone")
        return False

    def _take(self, index: int, messages: Sequence[dict[str, Any]]) -> None:
        for message in messages:
            if "bye" in message:
                self._byes.add(index)
                if index == 0 or len(self._byes) == len(self._links):
                    self._released.set()
            elif "failed" in message:
                sentence = f"{self.peers[message['failed']]} has stopped: {message['why']}"
                self._end(sentence, int(message["code"]), message)
            elif "lost" in message:
                self._lost(message["lost"], message["why"])

    def _lost(self, index: int, why: str) -> None:
        self._end(
            f"{self.peers[index]} {why}, and this process cannot go on without it: start the same command again on all "
            "hosts to go on from the last checkpoint",
            PEER_LOST,
            {"lost": index, "why": why},
        )

    def _end(self, sentence: str, code: int, news: dict[str, Any]) -> None:
        """Says why, passes it on, and ends this process."""
        with self._ending:
            if self._over.is_set():
                return
            self._over.set()
            os.write(2, f"error: {sentence}\n".encode())  # print may be in the middle of a line of another thread
            if self.index == 0 or news.get("failed") == self.index:
                self._tell(news)
                self._part()
            self._leave(code)

    def _part(self) -> None:
        """Closes the connections so that what was told arrives.

        The kernel resets a connection that is closed with unread data, and with it goes what was on its way.
        """
        with selectors.DefaultSelector() as ready:
            for link in self._links.values():
                with contextlib.suppress(OSError):
                    link.socket.shutdown(socket.SHUT_WR)
                    ready.register(link.socket, selectors.EVENT_READ, link)
            deadline = time.monotonic() + PARTING_S
            while ready.get_map() and time.monotonic() < deadline:
                for key, _ in ready.select(0.1):
                    with contextlib.suppress(OSError):
                        if key.data.socket.recv(65536):
                            continue
                    ready.unregister(key.fileobj)

    def _tell(self, message: dict[str, Any]) -> None:
        with self._sending:
            for link in self._links.values():
                with contextlib.suppress(OSError):  # seen as a lost peer where it is read
                    link.send(message)

    def _farewell(self) -> None:
        """Waits until all have come to the end, however long one of them takes."""
        if self.index == 0:
            if self._links:
                self._released.wait()
            self._tell({"bye": 0})
        else:
            self._tell({"bye": self.index})
            self._released.wait()
        self._over.set()
        self._thread.join(timeout=10 * BEAT_S)
        for link in self._links.values():
            link.socket.close()


class _Link:
    """A connection that carries lines of JSON."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.heard = time.monotonic()
        self.early: list[dict[str, Any]] = []
        """What came together with the first message."""
        self._rest = b""
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """Waits for a piece; [] when the other side has closed. Lines that are not ours are left out."""
        messages: list[dict[str, Any]] = []
        while not messages:
            piece = self.socket.recv(65536)
            if not piece:
                return []
            self.heard = time.monotonic()
            *lines, self._rest = (self._rest + piece).split(b"\n")
            if len(self._rest) > 65536:
                raise OSError("not a peer of this run")
            for line in lines:
                with contextlib.suppress(ValueError):
                    message = json.loads(line)
                    if isinstance(message, dict):
                        messages.append(message)
        return messages


def _connect(addresses: Sequence[tuple[str, int]], timeout_s: float) -> socket.socket:
    deadline = time.monotonic() + max(timeout_s, 30.0)
    problems: list[str] = []
    while time.monotonic() < deadline:
        problems = []
        for address in addresses:
            try:
                connection = socket.create_connection(address, timeout=5.0)
            except OSError as error:
                problems.append(f"{address[0]}:{address[1]} ({error})")
                continue
            connection.settimeout(None)
            return connection
        time.sleep(0.2)
    raise UserError(f"process 0 cannot be reached at {', '.join(problems)}; open the ports between the hosts")
