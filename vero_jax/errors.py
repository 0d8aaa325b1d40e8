"""The one exception that a user's mistake raises: a clear sentence instead of a traceback."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Something the user can mend: the message names the value, the place and what to do. Never wraps our own bugs."""


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
