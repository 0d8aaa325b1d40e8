"""What the user sees while a run goes on: a live bar in a terminal, plain lines everywhere else (files, CI, pods)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import IO, Any

from rich import progress as rich_progress
from rich.console import Console

PHASE_NAMES = {"cold_start": "cold start", "reinforcement": "reinforcement", "validation": "validation"}


class Progress:
    """Named phases with a count, a few numbers and the time left. `quiet` (other hosts of a pod) prints nothing.

    with Progress() as progress:
        progress.phase("reinforcement", total=100, done=20)
        progress.step({"reward": 0.42, "accuracy": 0.35, "tokens/s": 1200.0})
        progress.say("saved a checkpoint")
    """

    def __init__(self, *, quiet: bool = False, file: IO[str] | None = None, every_s: float = 10.0) -> None:
        # width: rich would wrap at 80 columns when there is no terminal, which breaks log lines and paths
        plain = Console(file=file, quiet=quiet)
        self._console = plain if plain.is_terminal else Console(file=file, quiet=quiet, width=10_000, soft_wrap=True)
        self._bar: rich_progress.Progress | None = None
        self._task: Any = None
        if self._console.is_terminal and not quiet:
            self._bar = rich_progress.Progress(
                rich_progress.TextColumn("[bold]{task.description}"),
                rich_progress.BarColumn(bar_width=24),
                rich_progress.MofNCompleteColumn(),
                rich_progress.TextColumn("{task.fields[numbers]}"),
                rich_progress.TimeElapsedColumn(),
                rich_progress.TextColumn("left"),
                rich_progress.TimeRemainingColumn(),
                console=self._console,
            )
        self._every_s = every_s
        self._name = ""
        self._total = self._done = self._done_at_start = 0
        self._started = 0.0
        self._printed = -float("inf")

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, message: str) -> None:
        """A line above the bar; printed as it is, without markup."""
        self._console.print(message, markup=False, highlight=False)

    def phase(self, name: str, total: int, done: int = 0, unit: str = "steps") -> None:
        """Begins a phase of `total` steps, of which a resumed run has `done` behind it. Replaces the phase before."""
        self._name = PHASE_NAMES.get(name, name)
        self._total, self._done, self._done_at_start = total, done, done
        self._started, self._printed = time.monotonic(), -float("inf")
        if self._bar is not None:
            if self._task is not None:
                self._bar.stop_task(self._task)
                self._bar.update(self._task, visible=False)
            self._task = self._bar.add_task(self._name, total=total, completed=done, numbers="")
        else:
            self.say(f"{self._name}: {total} {unit}" + (f", {done} done" if done else ""))

    def step(self, numbers: Mapping[str, float | int | None] | None = None, advance: int = 1) -> None:
        """One step further, with the few numbers worth a look (label -> value)."""
        self._done += advance
        text = "  ".join(f"{label} {format_number(value)}" for label, value in (numbers or {}).items())
        if self._bar is not None:
            self._bar.update(self._task, advance=advance, numbers=text)
            return
        now = time.monotonic()
        if now - self._printed >= self._every_s or self._done >= self._total:
            self._printed = now
            left = self.seconds_left()
            tail = f"  left {format_seconds(left)}" if left is not None and self._done < self._total else ""
            self.say(f"{self._name} {self._done}/{self._total}  {text}{tail}".rstrip())

    def seconds_left(self) -> float | None:
        """From the mean time of the steps of this process; None before the first."""
        steps = self._done - self._done_at_start
        return None if steps < 1 else (time.monotonic() - self._started) / steps * (self._total - self._done)


def format_number(value: float | int | None) -> str:
    """Short and of steady width: 0.417, 12.3, 1,234, 3.0e-07; "-" for a missing one."""
    if value is None or value != value:
        return "-"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}" if value else "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def format_seconds(seconds: float) -> str:
    """ "45 s", "3 min 05 s", "2 h 07 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
