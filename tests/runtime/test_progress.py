"""What a user sees: plain lines in a file, a bar in a terminal, nothing on other hosts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vero_jax.runtime import progress as module
from vero_jax.runtime.progress import Progress, format_number, format_seconds


def test_plain_lines_when_there_is_no_terminal():
    out = io.StringIO()
    with Progress(file=out, every_s=0) as progress:
        progress.phase("cold_start", total=2)
        progress.step({"loss": 1.5})
        progress.say("a [bold]message[/bold] with /a/long/path" + "/x" * 100)
        progress.phase("reinforcement", total=3, done=1)
        progress.step({"reward": 0.41666, "length": 31, "tokens/s": 12345.6, "entropy": None})
        progress.step({"reward": 0.5})
    lines = out.getvalue().splitlines()
    assert lines[0] == "cold start: 2 steps"
    assert lines[1].startswith("cold start 1/2  loss 1.500  left ")
    assert lines[2] == "a [bold]message[/bold] with /a/long/path" + "/x" * 100
    assert lines[3] == "reinforcement: 3 steps, 1 done"
    assert lines[4].startswith("reinforcement 2/3  reward 0.417  length 31  tokens/s 12,346  entropy -  left ")
    assert lines[5] == "reinforcement 3/3  reward 0.500"
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_plain_lines_are_not_too_many():
    out = io.StringIO()
    with Progress(file=out, every_s=1000) as progress:
        progress.phase("reinforcement", total=50)
        for _ in range(50):
            progress.step()
    # the phase, its first step and its last
    assert len(out.getvalue().splitlines()) == 3


def test_bar_in_a_terminal(monkeypatch):
    out = io.StringIO()

    def terminal(file=None, quiet=False, **kwargs):
        return Console(file=out, quiet=quiet, force_terminal=True, width=160)

    monkeypatch.setattr(module, "Console", terminal)
    with Progress() as progress:
        progress.phase("cold_start", total=2)
        progress.step({"loss": 1.5})
        progress.phase("reinforcement", total=4, done=2)
        progress.step({"reward": 0.25, "accuracy": 0.5})
        progress.say("saved [x]")
    text = out.getvalue()
    assert "reinforcement" in text and "3/4" in text and "accuracy 0.500" in text and "saved [x]" in text


def test_other_hosts_are_quiet():
    out = io.StringIO()
    with Progress(quiet=True, file=out) as progress:
        progress.phase("reinforcement", total=1)
        progress.step({"reward": 1.0})
        progress.say("x")
    assert out.getvalue() == ""


def test_time_left_counts_only_the_steps_of_this_process(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = Progress(quiet=True)
    progress.phase("reinforcement", total=100, done=90)
    assert progress.seconds_left() is None
    now[0] += 4
    progress.step(advance=2)
    assert progress.seconds_left() == pytest.approx(16)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.41666, "0.417"), (0, "0"), (0.0, "0"), (3e-7, "3.0e-07"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346"),
     (1234, "1,234"), (-0.5, "-0.500"), (None, "-"), (float("nan"), "-")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(45.2, "45 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (59.6, "1 min 00 s")]
)
def test_times_are_short(seconds, text):
    assert format_seconds(seconds) == text
