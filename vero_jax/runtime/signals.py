"""Ctrl-C and SIGTERM: the first asks for a clean stop, the second ends at once."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Raised by `StopRequest.check`, in the middle of something that a resumed run does again."""


class StopRequest:
    """Context manager that turns SIGINT and SIGTERM into a question the training loop asks, also while it samples.

    with StopRequest() as stop:
        while not stop.agreed():
            ...one step...

    Handlers can only be set in the main thread; elsewhere (a notebook's worker, a test) it never asks to stop.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._received: int | None = None
        self._others = 0
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether this process got a signal."""
        return self._received is not None

    @property
    def name(self) -> str:
        """ "SIGTERM", or "" when nothing was received."""
        return signal.Signals(self._received).name if self._received is not None else ""

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that ended on the signal (128 + its number), 0 without one.

        Where another process of the run got the signal, that one's.
        """
        number = self._received if self._received is not None else self._others
        return 128 + number if number else 0

    def agreed(self) -> bool:
        """Whether any process of the run got a signal. With several processes all must ask at the same step.

        A scheduler may tell one host only; had that host left alone, the others would wait for it in the next
        collective.
        """
        jax = sys.modules.get("jax")
        if jax is None or jax.process_count() == 1:
            return self.requested
        import numpy as np
        from jax.experimental import multihost_utils

        self._others = int(np.max(multihost_utils.process_allgather(np.int32(self._received or 0))))
        return self._others > 0

    def check(self) -> None:
        """To be called where what is going on may be dropped.

        Raises:
          Interrupted: any process of the run got a signal.
        """
        if self.agreed():
            raise Interrupted

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            # The default action, at once: no cleanup that could hang is worth a third signal.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._received = number
        message = f"{self.name}: stopping and saving; once more ends at once without saving."
        if self._say is not None:
            self._say(message)
        else:
            # print may be in the middle of a write when the handler runs, os.write cannot be
            os.write(sys.stderr.fileno(), f"\n{message}\n".encode())


def resume_hint(words: Sequence[str], step: int) -> str:
    """The sentence printed after a clean stop, with the words of the command as a shell takes them."""
    return f"Saved at step {step}. To go on, run the same command again: {shlex.join(words)}"
