"""What a user's mistake raises, a clear sentence instead of a traceback; and what data to be left out raises."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can mend: the message names the value, the place and what to do. Never wraps our own bugs."""


class CountedError(ValueError):
    """A piece of data to be left out: `reason` is a short phrase to count by, the message has the details."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.detail)  # both arguments survive the way back from a worker process


def friendly(main: Callable[..., int]) -> Callable[..., int]:
    """Wraps a command's main so that a `UserError` prints one sentence and exits with status 2, without a traceback."""

    @functools.wraps(main)
    def run(*args: object, **kwargs: object) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return run
