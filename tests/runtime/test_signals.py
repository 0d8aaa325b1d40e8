"""One signal asks for a clean stop, a second one ends at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vero_jax.runtime.signals import StopRequest, resume_hint

REPO = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_a_question(number):
    said = []
    before = signal.getsignal(number)
    with StopRequest(said.append) as stop:
        assert not stop.agreed() and stop.name == "" and stop.exit_code == 0
        os.kill(os.getpid(), number)
        assert stop.requested and stop.agreed()
        assert stop.name == number.name and stop.exit_code == 128 + number
        assert said == [f"{number.name}: stopping and saving; once more ends at once without saving."]
    assert signal.getsignal(number) is before


def test_elsewhere_than_in_the_main_thread_it_does_nothing():
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append(stop.agreed())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


LOOP = """
import sys, time
from vero_jax.runtime.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.agreed():
        time.sleep(0.01)
    print("stopping", flush=True)
    if sys.argv[1] == "hang":
        time.sleep(60)
sys.exit(stop.exit_code)
"""


def start(mode: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, mode],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline().strip() == "ready"
    return process


def test_a_process_stops_cleanly():
    process = start("stop")
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM and "SIGTERM: stopping and saving" in error


def test_second_signal_ends_at_once():
    process = start("hang")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline().strip() == "stopping"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT


def test_hint():
    assert resume_hint(["python", "-m", "vero_jax.train", "data.source=my data.jsonl"], 40) == (
        "Saved at step 40. To go on, run the same command again: python -m vero_jax.train 'data.source=my data.jsonl'"
    )
