"""GPUs to compile for without one: XLA's compiler for them runs anywhere, if it is told what it would ask the device.

Figures are those of NVIDIA's data sheets and white papers (A100, H100, H200, all SXM) and of CUDA's table of compute
capabilities. jax's plugin for CUDA has the compiler; neither a driver nor CUDA's libraries are needed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from typing import Any

from vero_jax.errors import UserError

GIB = 2**30
PER_HOST = 8
_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What the compiler would ask a device.

    Attributes:
      name: as the driver calls it.
      capability: for computing, major and minor.
      clock: in GHz.
      memory, memory_bandwidth, l2_cache: in bytes, and bytes per second.
      shared_memory: bytes of one multiprocessor.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    clock: float
    memory: int
    memory_bandwidth: int
    l2_cache: int
    shared_memory: int


_H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 1.98, 79 * GIB, 3_350 * 10**9, 50 * 2**20, 228 * 2**10)
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 1.41, 79 * GIB, 2_039 * 10**9, 40 * 2**20, 164 * 2**10),
    "h100": _H100,
    "h200": dataclasses.replace(_H100, name="NVIDIA H200", memory=139 * GIB, memory_bandwidth=4_800 * 10**9),
}


def gpu_topology(text: str) -> tuple[str, int] | None:
    """(kind, count) of "h100-8" or "h100:8"; None for what speaks of no GPUs.

    Raises:
      UserError: hosts have eight of them, so that this many are on no hosts.
    """
    found = re.fullmatch(rf"({'|'.join(GPUS)})[-:]([1-9][0-9]*)", text.strip().lower())
    if not found:
        return None
    count = int(found[2])
    if count > PER_HOST and count % PER_HOST:
        raise UserError(f"{text!r} must have up to {PER_HOST} GPUs, or {PER_HOST} on each host")
    return found[1], count


def gpu_devices(kind: str, count: int) -> list[Any]:
    """Devices to compile for, on hosts of eight.

    Raises:
      UserError: the compiler is not installed, or does not take the figures.
    """
    if not any(importlib.util.find_spec(name) for name in _PLUGINS):
        raise UserError(
            "to compile for a GPU, jax's plugin for CUDA must be installed, although no GPU is needed: "
            "pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt, in the version of jax"
        )
    from jax.experimental import topologies

    shape = f"1x1x{count}" if count <= PER_HOST else f"1x{count // PER_HOST}x{PER_HOST}"
    try:
        found = topologies.get_topology_desc(platform="cuda", topology=shape, target_config=_target(GPUS[kind]))
    except Exception as error:  # the plugin raises whatever its layers do
        reason = str(error).strip().split("\n")[0][:300]
        raise UserError(f"jax's plugin for CUDA cannot compile for {kind} ({reason})") from error
    return list(found.devices)


def _target(gpu: Gpu) -> str:
    """The device as XLA's text for a target."""
    major, minor = gpu.capability
    device = {
        "threads_per_warp": 32,
        "threads_per_block_limit": 1024,
        "threads_per_core_limit": 2048,
        "core_count": gpu.multiprocessors,
        "fpus_per_core": 128 if major >= 9 else 64,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 2**16 - 1,
        "block_dim_limit_z": 2**16 - 1,
        "registers_per_core_limit": 2**16,
        "registers_per_block_limit": 2**16,
        "shared_memory_per_block": 48 * 2**10,
        "shared_memory_per_core": gpu.shared_memory,
        "shared_memory_per_block_optin": gpu.shared_memory - 2**10,
        "device_memory_size": gpu.memory,
        "memory_bandwidth": gpu.memory_bandwidth,
        "l2_cache_size": gpu.l2_cache,
        "clock_rate_ghz": gpu.clock,
    }
    figures = "\n".join(f"{name}: {value}" for name, value in device.items())
    return (
        f"gpu_device_info {{\n{figures}\ncuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
        'platform_name: "CUDA"\nruntime_version { major: 12 minor: 8 }\ndnn_version_info { major: 9 minor: 7 }\n'
        f'device_description_str: "{gpu.name}"\n'
    )
