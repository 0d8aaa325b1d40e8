"""The persistent compilation cache, and the versions and devices a run was made with."""

from __future__ import annotations

import collections
import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import MutableMapping
from pathlib import Path

from vero_jax.runtime.files import friendly_writes

PACKAGES = ("vero-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy")

THREADS_PER_HOST_DEVICE = 4
COLLECTIVE_TIMEOUT_S = 600


def enable_compilation_cache(cache_dir: str | Path) -> Path:
    """Keeps compiled programs under `cache_dir`/xla, so that a second start compiles nothing. Call it before any jit.

    JAX_COMPILATION_CACHE_DIR, when the user has set it, wins. Programs compiled for a CPU use that CPU's
    instructions, so each kind of host has its own folder (the cache may lie on a shared disk).
    """
    import jax

    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(chosen) if chosen else Path(cache_dir).expanduser() / "xla" / _host_kind()
    with friendly_writes(folder):
        folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # Everything that takes longer to compile than to read; jax's own default leaves out what compiles within a second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    return folder


def spare_host_threads(environ: MutableMapping[str, str] = os.environ) -> None:
    """Gives XLA threads to spare where XLA_FLAGS splits the host into several devices. Call it before any jit.

    On a machine with fewer cores than such devices XLA starts one thread per device. A thread that waits in a
    collective is then missing where another device wants to compute, and a program can stand still until XLA aborts
    the process (seen with 8 devices on 2 cores under load). A device that is merely late, because others share the
    cores, gets ten minutes instead of forty seconds before XLA aborts. What the user has set himself wins.
    """
    flags = environ.get("XLA_FLAGS", "")
    found = re.search(r"--xla_force_host_platform_device_count=(\d+)", flags)
    if not found or int(found[1]) == 1:
        return
    environ.setdefault("PJRT_NPROC", str(THREADS_PER_HOST_DEVICE * int(found[1])))
    for name in ("xla_cpu_collective_call_terminate_timeout_seconds", "xla_cpu_collective_timeout_seconds"):
        if name not in flags:
            flags += f" --{name}={COLLECTIVE_TIMEOUT_S}"
    environ["XLA_FLAGS"] = flags


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes; absent packages are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def devices_line() -> str:
    """Such as "8 x TPU v5 lite (2 processes)"."""
    import jax

    kinds = collections.Counter(device.device_kind for device in jax.devices())
    processes = f" ({jax.process_count()} processes)" if jax.process_count() > 1 else ""
    return ", ".join(f"{count} x {kind}" for kind, count in kinds.items()) + processes


def versions_header() -> str:
    """One line for the top of a run's output."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def _host_kind() -> str:
    """Machine type and a short digest of the CPU's instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"
