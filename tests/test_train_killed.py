"""A run that is killed wherever it is prints the numbers of one that is not; told to stop, it has left in time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from test_train import REPO, TINY, quick_environment

from tests.runtime.fake_bucket import running
from vero_jax.runtime.places import saved_steps

STAGES = ("restore", "sampling", "update", "save", "validation", "metrics")
SMALL = (*TINY, "trainer.steps=4", "cold_start.steps=2", "trainer.val_every=2", "trainer.log_with=")


@dataclasses.dataclass
class Process:
    """A run that says where it is."""

    process: subprocess.Popen
    lines: list[tuple[float, str]] = dataclasses.field(default_factory=list)
    """(seconds since its start, line that it printed)."""

    def wait_for(self, line: str, times: int, timeout: float = 400) -> bool:
        """Until it has said a line so often; False when it ended before."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if sum(said == line for _, said in self.lines) >= times:
                return True
            if self.process.poll() is not None:
                return sum(said == line for _, said in list(self.lines)) >= times
            time.sleep(0.005)
        raise AssertionError(f"{line} was not said {times} times within {timeout} s")


@contextlib.contextmanager
def started(run: Path, cache: Path, *settings: str, environ: dict[str, str] | None = None):
    words = [f"run_dir={run}", f"data.cache_dir={cache}", *settings]
    process = subprocess.Popen(
        [sys.executable, str(REPO / "tests" / "staged_run.py"), *words],
        env=quick_environment()
        | (environ or {})
        | {"PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    found, start = Process(process), time.monotonic()

    def read() -> None:
        for line in process.stdout:
            found.lines.append((time.monotonic() - start, line.rstrip("\n")))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield found
    finally:
        process.kill()
        process.wait()
        reader.join(10)


def stream(run: Path) -> list[dict]:
    """All whole lines of the metrics, without the times; the last may be cut off."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(("timing", "perf/"))}
        for line in text.splitlines(keepends=True)
        if line.endswith("\n")
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    with started(run, cache, *SMALL) as process:
        assert process.process.wait(800) == 0, process.lines[-20:]
    return run


@pytest.fixture(scope="module")
def durations(unbroken, tmp_path_factory, cache) -> dict[str, float]:
    """Median seconds of each stage with compiled programs at hand."""
    with started(tmp_path_factory.mktemp("runs") / "timed", cache, *SMALL) as process:
        assert process.process.wait(800) == 0
    spans: dict[str, list[float]] = {}
    for (begin, line), (end, _) in zip(process.lines, process.lines[1:], strict=False):
        if found := re.fullmatch(r"@begin (\w+)", line):
            spans.setdefault(found[1], []).append(end - begin)
    return {name: sorted(values)[len(values) // 2] for name, values in spans.items()}


@pytest.mark.slow
def test_killed_at_twenty_moments_a_run_prints_what_it_would_have_printed(unbroken, durations, cache, tmp_path):
    dice, run, expected = random.Random(20), tmp_path / "killed", stream(unbroken)
    assert len(expected) >= 8
    moments = [stage for stage in STAGES for _ in range(3)]
    dice.shuffle(moments)
    killed: list[str] = []
    for stage in [*moments, "export", "export"]:
        share, times = dice.random(), 1 if stage in ("restore", "export") else dice.choice((1, 2))
        with started(run, cache, *SMALL) as process:
            # A short run may have no second one left.
            if process.wait_for(f"@begin {stage}", times) or stage != "restore":
                time.sleep(share * durations.get(stage, 0.0))
                if process.process.poll() is None:
                    killed.append(stage)
                process.process.send_signal(signal.SIGKILL)
                process.process.wait()
        found = stream(run)
        assert found == expected[: len(found)], f"after kill {len(killed)}, in {stage}"
    with started(run, cache, *SMALL) as process:
        assert process.process.wait(800) == 0, process.lines[-20:]
    assert stream(run) == expected
    assert len(killed) >= 20 and set(killed) == {*STAGES, "export"}, killed
    weights = [(folder / "hf" / "model.safetensors").read_bytes() for folder in (run, unbroken)]
    assert weights[0] == weights[1]
    assert not [path for path in (run / "checkpoints").iterdir() if "tmp" in path.name or "broken" in path.name]


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(unbroken, cache, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root may mount a small disk")
    try:
        run, filler = disk / "run", disk / "filler"
        with started(run, cache, *SMALL) as process:
            assert process.wait_for("@end save", 3)
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 65536)
            assert process.process.wait(300) == 2
        said = "\n".join(line for _, line in process.lines)
        assert "the disk is full" in said, said[-3000:]
        assert "Traceback" not in said, said[said.index("Traceback") - 2000 :]
        assert stream(run) == stream(unbroken)[: len(stream(run))]
        steps = saved_steps(run / "checkpoints")
        filler.unlink()
        with started(run, cache, *SMALL) as process:
            assert process.process.wait(800) == 0, process.lines[-20:]
        said = "\n".join(line for _, line in process.lines)
        assert "cannot be read" not in said, "the checkpoint of before was damaged"
        assert steps and stream(run) == stream(unbroken)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_told_to_stop_the_mini_run_has_saved_and_left_within_30_seconds(cache, tmp_path):
    """In the middle of any stage. A compilation cannot be interrupted, so it is each stage's second time."""
    settings = (str(REPO / "configs" / "mini.yaml"), "cold_start.steps=2", "cold_start.warmup_steps=1",
                "data.max_val_examples=96")  # fmt: skip
    run, took = tmp_path / "mini", {}
    for stage in ("validation", "update", "sampling"):
        with started(run, cache, *settings) as process:
            assert process.wait_for(f"@begin {stage}", 1 if stage == "validation" else 2, timeout=900), process.lines[
                -20:
            ]
            time.sleep(0.5)
            start = time.monotonic()
            process.process.send_signal(signal.SIGTERM)
            assert process.process.wait(120) == 128 + signal.SIGTERM, process.lines[-20:]
            took[stage] = time.monotonic() - start
        steps = saved_steps(run / "checkpoints")
        assert steps, f"nothing was saved in {stage}"
        lines = [line for _, line in process.lines]
        assert any("SIGTERM: stopping and saving" in line for line in lines)
    assert max(took.values()) < 30, took


@pytest.mark.slow
def test_a_run_whose_disk_is_lost_goes_on_from_a_bucket(unbroken, cache, tmp_path):
    """The clients are the real ones; the bucket is a server here that speaks the same protocol."""
    run, settings = tmp_path / "run", (*SMALL, "trainer.checkpoint_dir=gs://bucket/vero/{name}", "name=lost")
    with running() as bucket:
        with started(run, cache, *settings, environ=bucket.environment()) as process:
            assert process.wait_for("@begin save", 4)  # the third is whole then
            process.process.send_signal(signal.SIGKILL)
            process.process.wait()
        before = stream(run)
        shutil.rmtree(run)
        with started(run, cache, *settings, environ=bucket.environment()) as process:
            assert process.process.wait(800) == 0, process.lines[-20:]
        assert not bucket.unknown
        names = bucket.names("bucket")
    expected, after = stream(unbroken), stream(run)
    assert before == expected[: len(before)]
    assert after and after == expected[-len(after) :] and len(after) < len(expected)
    weights = [(folder / "hf" / "model.safetensors").read_bytes() for folder in (run, unbroken)]
    assert weights[0] == weights[1]
    assert "vero/lost/scores.json" in names and "vero/lost/6/commit_success.txt" in names
    assert not (run / "checkpoints").exists()
