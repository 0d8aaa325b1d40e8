"""One run on many devices and in several processes, as a user starts it: real processes on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.test_train import TINY, metrics, quick_environment
from vero_jax.parallel.peers import PEER_LOST

SETTINGS = (*TINY, "cold_start.steps=2", "trainer.steps=2", "trainer.prompts_per_step=8", "actor.mini_batch_prompts=4",
            "rollout.concurrent_responses=16", "trainer.val_every=0")  # fmt: skip
MESH = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "actor.rows_per_micro_batch=1")


class Pod:
    """A run of several processes with some devices each."""

    def __init__(self, run: Path, cache: Path, *settings: str, processes: int, devices: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        together = [] if processes == 1 else [
            "distributed.mode=manual", f"distributed.coordinator=127.0.0.1:{port}",
            f"distributed.num_processes={processes}", "distributed.peer_timeout_s=60",
        ]  # fmt: skip
        self.outputs = [run.parent / f"{run.name}_{index}.txt" for index in range(processes)]
        self.processes = []
        for index, output in enumerate(self.outputs):
            own = [f"distributed.process_id={index}"] if together else []
            words = [f"run_dir={run}", f"data.cache_dir={cache}", *SETTINGS, *together, *own, *settings]
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "vero_jax.train", *words],
                        env=quick_environment(devices), stdout=file, stderr=subprocess.STDOUT,
                    )
                )  # fmt: skip

    def wait(self, within_s: float = 900) -> list[int]:
        """The exit statuses."""
        deadline = time.monotonic() + within_s
        return [process.wait(deadline - time.monotonic()) for process in self.processes]

    def text(self, index: int) -> str:
        return self.outputs[index].read_text()

    def __enter__(self) -> Pod:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def complete(run: Path, cache: Path, *settings: str, processes: int, devices: int) -> Path:
    with Pod(run, cache, *settings, processes=processes, devices=devices) as pod:
        codes = pod.wait()
        assert codes == [0] * processes, "".join(pod.text(index)[-3000:] for index in range(processes))
        for index in range(1, processes):
            assert "reinforcement" not in pod.text(index)  # only the first one says what goes on
    return run


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def one(tmp_path_factory, cache) -> Path:
    """On one device."""
    return complete(tmp_path_factory.mktemp("one") / "run", cache, processes=1, devices=1)


@pytest.fixture(scope="module")
def two(tmp_path_factory, cache) -> Path:
    """In two processes with four devices each."""
    return complete(tmp_path_factory.mktemp("two") / "run", cache, *MESH, processes=2, devices=4)


LAYOUT = ("timing", "perf/", "rows/", "rollout/")
"""Metrics of how the work was laid out, which differ with the devices."""


def same(a: Path, b: Path, tolerance: float) -> None:
    for phase in ("cold_start", "validation", "reinforcement"):
        for left, right in zip(metrics(a, phase), metrics(b, phase), strict=True):
            names = [name for name in left if not name.startswith(LAYOUT)]
            assert names == [name for name in right if not name.startswith(LAYOUT)]
            for name in names:
                if not isinstance(left[name], float):
                    assert left[name] == right[name], name
                elif "diff" in name or "mismatch" in name:  # itself a rounding error
                    assert abs(left[name] - right[name]) < 1e-4, name
                else:
                    np.testing.assert_allclose(right[name], left[name], rtol=tolerance, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_eight_devices_in_one_process_and_in_two_are_the_same_run(two, cache, tmp_path):
    eight = complete(tmp_path / "run", cache, *MESH, processes=1, devices=8)
    same(eight, two, 1e-5)
    for name, tensor in load_file(eight / "hf" / "model.safetensors").items():
        np.testing.assert_allclose(load_file(two / "hf" / "model.safetensors")[name], tensor, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_one_device_gives_the_same_groups_and_numbers_as_eight(one, two):
    same(one, two, 1e-5)


@pytest.mark.slow
def test_only_the_first_process_writes(two):
    """Every step and every validation once, and one set of pages."""
    assert [line["step"] for line in metrics(two)] == [1, 2]
    assert len(metrics(two, "validation")) == 3
    answers = (two / "validation" / "final.jsonl").read_text().splitlines()
    assert len({(json.loads(line)["mode"], json.loads(line)["id"]) for line in answers}) == len(answers) == 18
    assert (two / "summary.json").exists() and (two / "samples" / "index.html").exists()


@pytest.mark.slow
def test_a_peer_that_is_killed_stops_the_other_and_both_go_on_from_the_checkpoint(two, cache, tmp_path):
    run = tmp_path / "run"
    with Pod(run, cache, *MESH, processes=2, devices=4) as pod:
        deadline = time.monotonic() + 600
        while not (run / "checkpoints" / "3").is_dir():
            assert time.monotonic() < deadline and pod.processes[0].poll() is None, pod.text(0)
            time.sleep(0.05)
        pod.processes[1].kill()
        start = time.monotonic()
        code = pod.processes[0].wait(120)
        assert time.monotonic() - start < 60
        assert code == PEER_LOST
        assert f"process 1 (pid {pod.processes[1].pid} on {socket.gethostname()}) is gone" in pod.text(0)
    with Pod(run, cache, *MESH, processes=2, devices=4) as pod:
        assert pod.wait() == [0, 0], pod.text(0)
        assert "resuming from the checkpoint" in pod.text(0)
    same(two, run, 0)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_stops_all(two, cache, tmp_path):
    run = tmp_path / "run"
    with Pod(run, cache, *MESH, processes=2, devices=4) as pod:
        deadline = time.monotonic() + 600
        while not (run / "checkpoints" / "1").is_dir():
            assert time.monotonic() < deadline and pod.processes[0].poll() is None, pod.text(0)
            time.sleep(0.05)
        os.kill(pod.processes[1].pid, signal.SIGTERM)
        assert pod.wait() == [128 + signal.SIGTERM] * 2, pod.text(0)
    assert "run the same command again" in pod.text(0)


@pytest.mark.slow
def test_a_mistake_is_said_by_all_processes(cache, tmp_path):
    with Pod(tmp_path / "run", cache, "mesh.data=3", processes=2, devices=1) as pod:
        assert pod.wait(300) == [2, 2]
        for index in range(2):
            assert "error:" in pod.text(index) and "Traceback" not in pod.text(index)
