"""Groups out of a session whose requests come from anywhere: a list, or a reader that works while the device does."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TypeVar

import numpy as np

from vero_jax.sampling.schedule import Request
from vero_jax.sampling.session import Drawn, Session
from vero_jax.types import Group, Response

T = TypeVar("T")


def groups(
    session: Session,
    requests: Iterable[tuple[T, Request]],
    *,
    decode: Callable[[list[int]], str] | None,
    ahead: int | None = None,
    between_rounds: Callable[[], None] = lambda: None,
) -> Generator[tuple[T, Group], None, None]:
    """Answers all requests; no lane waits for the responses of other requests to end.

    Args:
      session: without requests, made with `resend`.
      requests: each with a name of the caller's.
      decode: turns the ids of a response into its text; None leaves `Response.text` empty.
      ahead: takes from `requests` only while fewer than so many are under way, so that a long list of images is never
        in memory as a whole; None takes all of them at once.
      between_rounds: called before each round; what it raises ends the sampling.

    Yields:
      (name, group) as they end.
    """
    coming = iter(requests)
    under_way: dict[int, tuple[T, Request, list[list[Drawn]]]] = {}
    missing: dict[int, int] = {}
    more = True
    while True:
        while more and (ahead is None or len(under_way) < ahead):
            item = next(coming, None)
            if item is None:
                more = False
                break
            name, request = item
            number = session.submit(request)
            under_way[number] = name, request, [[] for _ in request.keys]
            missing[number] = len(request.keys)
        if session.idle:
            return
        between_rounds()
        for drawn in session.advance():
            parts = under_way[drawn.request][2]
            if drawn.start == 0:
                parts[drawn.sample].clear()  # of a response that is drawn again
            parts[drawn.sample].append(drawn)
            missing[drawn.request] -= drawn.stop_reason is not None
            if missing[drawn.request] == 0 and drawn.stop_reason is not None:
                name, request, parts = under_way.pop(drawn.request)
                yield name, Group(request.prompt, tuple(_response(pieces, decode) for pieces in parts))


def _response(pieces: list[Drawn], decode: Callable[[list[int]], str] | None) -> Response:
    ids = np.concatenate([piece.token_ids for piece in pieces])
    reason = pieces[-1].stop_reason or "length"
    text = ids[:-1] if reason == "stop" else ids
    warped = [piece.warped_logprobs for piece in pieces if piece.warped_logprobs is not None]
    return Response(
        token_ids=ids,
        logprobs=np.concatenate([piece.logprobs for piece in pieces]),
        stop_reason=reason,
        text="" if decode is None else decode(text.tolist()),
        warped_logprobs=np.concatenate(warped) if warped else None,
    )
