"""What all tests share: 8 fake CPU devices, compiled programs, and where the golden cases and the real pictures lie."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Set before jax is imported anywhere. Most of the time of these tests is XLA's, on programs that recur.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), f"vero_jax_tests_{os.getuid()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8").strip()
# LLVM's optimizations are half of the time to compile. Runs of `vero_jax.train` and of the benchmarks have them.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import jax
import pytest

from vero_jax.runtime.compilation import spare_host_threads

spare_host_threads()

REPO = Path(__file__).resolve().parent.parent

MOST_MAPPINGS = 20_000
"""Of a process's memory. Linux allows 65,530, compiled programs take some each, and without any left XLA crashes."""


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Lets go of compiled programs before there are too many; the cache on disk has most of them."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


def shared_dir() -> Path | None:
    """The folder with real pictures, tokenizers and all golden cases, or None. In CI its absence is an error."""
    folder = Path(os.environ.get("VERO_JAX_SHARED", REPO.parent / "shared"))
    if folder.is_dir():
        return folder
    if os.environ.get("CI", "").lower() in ("1", "true"):
        raise RuntimeError(f"{folder} is missing: CI must run with the shared folder (set VERO_JAX_SHARED)")
    return None


def golden_dir(kind: str) -> Path:
    """Folder of the golden cases of one kind ("rl", "rewards", "model", "eval"); skips the test when there is none."""
    shared = shared_dir()
    candidates = [shared / "golden" / kind] if shared else []
    candidates.append(REPO / "tests" / "golden" / kind)
    for folder in candidates:
        if folder.is_dir() and any(folder.iterdir()):
            return folder
    pytest.skip(f"no golden cases of kind {kind!r} here; set VERO_JAX_SHARED", allow_module_level=True)


@pytest.fixture
def shared() -> Path:
    """The shared folder; the test is skipped where it is absent."""
    folder = shared_dir()
    if folder is None:
        pytest.skip("the shared folder with real data is absent; set VERO_JAX_SHARED")
    return folder


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def compilations() -> Callable[[], int]:
    """How many programs jax has compiled, or loaded from its cache, in this process so far."""
    count = 0

    def listen(event: str, duration: float, **_: object) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: count
