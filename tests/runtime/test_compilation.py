"""The compilation cache is used by a second process, and its place is the user's choice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vero_jax.runtime.compilation import devices_line

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
