"""What a user's mistake raises, a clear sentence instead of a traceback; and what data to be left out raises."""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can mend: the message names the value, the place and what to do. Never wraps our own bugs."""

    exit_status = 2


class RunFailed(UserError):
    """A run that cannot go on although nothing in its settings is wrong; the command ends with status 1."""

    exit_status = 1


class CountedError(ValueError):
    """A piece of data to be left out: `reason` is a short phrase to count by, the message has the details."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.reason, self.detail)  # both arguments survive the way back from a worker process


READER_LEFT = 128 + 13
"""Exit status of a command whose reader left, as a shell reports one that SIGPIPE ended."""


def friendly(main: Callable[..., int]) -> Callable[..., int]:
    """Wraps a command's main: a `UserError` prints one sentence and exits with its status (2), without a traceback.

    A reader that leaves early (`... | head`) ends the command quietly with status `READER_LEFT`.
    """

    @functools.wraps(main)
    def run(*args: object, **kwargs: object) -> int:
        try:
            try:
                return main(*args, **kwargs)
            finally:
                _flush_output()  # here, and not when the interpreter exits, where nothing can be caught
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_status
        except BrokenPipeError:
            if not _reader_left():
                raise
            return READER_LEFT

    return run


def _flush_output() -> None:
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def _reader_left() -> bool:
    """Whether it is our output that nobody reads any more, and not a pipe to some process of our own.

    If so, the rest of the output goes nowhere from here on.
    """
    try:
        output = sys.stdout.fileno()
    except (AttributeError, ValueError):  # no output, or one that is no file
        return False
    poll = select.poll()  # a failed write leaves nothing in Python's buffer by which to tell
    poll.register(output, select.POLLOUT)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, output)
    os.close(nowhere)
    return True
