"""The compilation cache is used by a second process, its place is the user's choice; fake devices get threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vero_jax.runtime.compilation import devices_line, spare_host_threads

REPO = Path(__file__).parents[2]

COMPILE = """
import sys
import jax, jax.numpy as jnp
from vero_jax.runtime.compilation import enable_compilation_cache
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
print(enable_compilation_cache(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.linalg.qr(x)[0] @ x)(jnp.ones((8, 8))).block_until_ready()
print(len(hits))
"""


def run(folder: Path, **environment: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(folder)],
        env={**inherited, "PYTHONPATH": str(REPO), "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split("\n")


def test_second_process_reads_the_cache(tmp_path):
    place, hits, _ = run(tmp_path)
    assert Path(place).parent == tmp_path / "xla" and hits == "0" and any(Path(place).iterdir())
    _, hits, _ = run(tmp_path)
    assert int(hits) >= 1


def test_the_users_own_cache_wins(tmp_path):
    place, *_ = run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert place == str(tmp_path / "own") and not (tmp_path / "ours").exists()


def test_devices_line():
    assert " x cpu" in devices_line()


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, None),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}, None),
        ({"XLA_FLAGS": "--xla_dump_to=x --xla_force_host_platform_device_count=8"}, "32"),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PJRT_NPROC": "3"}, "3"),
    ],
)
def test_several_devices_on_one_host_get_threads_to_spare(given, threads):
    environ = dict(given)
    spare_host_threads(environ)
    assert environ.get("PJRT_NPROC") == threads


@pytest.mark.parametrize(("devices", "chosen", "seconds"), [(1, "", []), (8, "", ["600"]), (8, "30", ["30"])])
def test_several_devices_on_one_host_may_wait_long_for_each_other(devices, chosen, seconds):
    names = ("xla_cpu_collective_call_terminate_timeout_seconds", "xla_cpu_collective_timeout_seconds")
    flags = [f"--xla_force_host_platform_device_count={devices}"]
    environ = {"XLA_FLAGS": " ".join(flags + [f"--{name}={chosen}" for name in names if chosen])}
    for _ in range(2):  # a second call adds nothing
        spare_host_threads(environ)
    for name in names:
        assert re.findall(rf"--{name}=(\d+)", environ["XLA_FLAGS"]) == seconds


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_the_threads_are_there():
    code = """
import os
from vero_jax.runtime.compilation import spare_host_threads
spare_host_threads()
import jax
jax.devices()
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
print(sum("Eigen" in name for name in names))
"""
    environ = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    environ |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 32
