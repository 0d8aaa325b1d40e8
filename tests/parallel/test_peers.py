"""Processes that watch each other, as real processes: what one of them does, the others say and do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vero_jax.parallel.peers import PEER_LOST

PROCESS = """
import os, sys, time
from pathlib import Path
from vero_jax.errors import UserError, friendly
from vero_jax.parallel.peers import Peer, Peers, listen

folder, what = Path(sys.argv[1]), sys.argv[5]
index, count, timeout = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])

def wait_for(path):
    while not path.exists():
        time.sleep(0.01)
    return path.read_text()

def write(name, text):
    draft = folder / (name + f".draft{index}")
    draft.write_text(text)
    draft.rename(folder / name)

@friendly
def main():
    write(f"pid{index}", str(os.getpid()))
    server = listen() if index == 0 else None
    if server:
        write("port", str(server.getsockname()[1]))
    port = int(wait_for(folder / "port"))
    peers = [Peer(i, f"host{i}", int(wait_for(folder / f"pid{i}"))) for i in range(count)]
    with Peers(peers, index, server, [("127.0.0.1", port)], timeout_s=timeout):
        write(f"ready{index}", "")
        if what == "wait":
            time.sleep(600)
        elif what == "mistake":
            raise UserError("the value of x is wrong")
        elif what == "crash":
            raise ZeroDivisionError("our own fault")
        elif what.startswith("work"):
            time.sleep(float(what[4:]))
    write(f"left{index}", str(time.time()))
    return 0

sys.exit(main())
"""


class Run:
    """Several processes, each doing something else."""

    def __init__(self, folder: Path, *what: str, timeout_s: float = 20.0) -> None:
        self.folder = folder
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", PROCESS, str(folder), str(index), str(len(what)), str(timeout_s), does],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for index, does in enumerate(what)
        ]  # fmt: skip

    def ready(self) -> None:
        deadline = time.monotonic() + 60
        while not all((self.folder / f"ready{index}").exists() for index in range(len(self.processes))):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def ended(self, index: int, within_s: float = 60.0) -> tuple[int, str]:
        """(exit status, output) of a process."""
        output, _ = self.processes[index].communicate(timeout=within_s)
        return self.processes[index].returncode, output

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_the_others_name_a_process_that_died_and_end_at_once(killed, tmp_path):
    with Run(tmp_path, "wait", "wait", "wait") as run:
        run.ready()
        run.processes[killed].kill()
        start = time.monotonic()
        for index in {0, 1, 2} - {killed}:
            code, output = run.ended(index)
            assert code == PEER_LOST
            assert f"process {killed} (pid {run.processes[killed].pid} on host{killed}) is gone" in output
            assert "start the same command again" in output and "Traceback" not in output
        assert time.monotonic() - start < 18  # the limit of silence is 20


def test_a_silent_process_is_given_up(tmp_path):
    """As a host without power or network is: nothing closes its connections."""
    with Run(tmp_path, "wait", "wait", "wait", timeout_s=6.0) as run:
        run.ready()
        os.kill(run.processes[1].pid, signal.SIGSTOP)
        for index in (0, 2):
            code, output = run.ended(index)
            assert code == PEER_LOST and "on host1) has said nothing for 6 s" in output


def test_a_mistake_that_one_process_finds_stops_all_with_its_sentence(tmp_path):
    with Run(tmp_path, "wait", "wait", "mistake") as run:
        code, output = run.ended(2)
        assert code == 2 and output == "error: the value of x is wrong\n"
        for index in (0, 1):
            code, output = run.ended(index)
            assert code == 2 and "on host2) has stopped: the value of x is wrong" in output


def test_a_crash_keeps_its_traceback_and_the_others_name_it(tmp_path):
    with Run(tmp_path, "crash", "wait") as run:
        code, output = run.ended(0)
        assert code == 1 and "Traceback" in output and "ZeroDivisionError" in output
        code, output = run.ended(1)
        assert code == 1 and "on host0) has stopped: ZeroDivisionError: our own fault" in output


def test_all_leave_together_when_the_slowest_is_done(tmp_path):
    with Run(tmp_path, "work0", "work7", "work0", timeout_s=5.0) as run:
        for index in range(3):
            assert run.ended(index) == (0, "")
        left = [float((tmp_path / f"left{index}").read_text()) for index in range(3)]
        assert max(left) - min(left) < 5
