"""Counts how often each jitted function is traced, and refuses those that static shapes should have made impossible."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax


class UnexpectedTraceError(RuntimeError):
    """A function was traced after `TraceGuard.freeze`: some shape or static argument was new. Our own mistake."""


class TraceGuard:
    """Wraps functions before they are jitted; their Python body runs once per trace, which is what is counted.

    guard = TraceGuard()
    step = jax.jit(guard.watch("step", step))
    step(warm_up); guard.freeze()
    step(other_shape)   # UnexpectedTraceError: "step" was traced again ...
    """

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self._frozen = False
        self._allowed = 0

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, counting its traces under `name`. Jit what this returns."""

        @functools.wraps(function)
        def traced(*args: Any, **kwargs: Any) -> Any:
            self._count(name, (args, kwargs))
            return function(*args, **kwargs)

        return traced

    def freeze(self) -> None:
        """From here on every trace is an error, but for those that `allow` grants."""
        self._frozen, self._allowed = True, 0

    def allow(self, n: int) -> None:
        """Grants n more traces, of whatever function, such as those of a new phase."""
        self._allowed += n

    def thaw(self) -> None:
        """Every trace is fine again."""
        self._frozen = False

    def _count(self, name: str, args: Any) -> None:
        if self._frozen:
            if self._allowed <= 0:
                shapes = collections.Counter(
                    f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "shape") else repr(leaf)
                    for leaf in jax.tree.leaves(args)
                )
                listed = ", ".join(f"{shape} x {count}" if count > 1 else shape for shape, count in shapes.items())
                raise UnexpectedTraceError(
                    f"{name!r} was traced again (it had been {self.counts[name]} times) after the guard was frozen, "
                    f"with arguments {listed}"
                )
            self._allowed -= 1
        self.counts[name] += 1
