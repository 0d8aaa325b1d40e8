"""The accelerators that a run can be planned for: their figures, and the slices they come in."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
from typing import Any

from vero_jax.errors import UserError
from vero_jax.planning.gpus import GIB, GPUS, gpu_devices, gpu_topology


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of one device. Peak and bandwidths are vendors'; usable memory is what the compiler itself allows.

    Attributes:
      memory: bytes of its own memory that a program may use.
      flops: bfloat16, per second.
      memory_bandwidth: bytes per second.
      link_bandwidth: bytes per second to the other devices, in one direction, over all links together.
    """

    name: str
    memory: float
    flops: float
    memory_bandwidth: float
    link_bandwidth: float


CHIPS = {
    # Cloud TPU's pages "TPU v5e", "TPU v5p" and "TPU v6e"; memory from libtpu's message when a program is too large.
    "v5e": Chip("TPU v5e", 15.75 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 95.74 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 31.25 * GIB, 918e12, 1600e9, 400e9),
    # NVIDIA's data sheets (SXM); a process does not get all of the memory.
    "a100": Chip("NVIDIA A100", GPUS["a100"].memory * 0.92, 312e12, 2039e9, 300e9),
    "h100": Chip("NVIDIA H100", GPUS["h100"].memory * 0.92, 989e12, 3350e9, 450e9),
    "h200": Chip("NVIDIA H200", GPUS["h200"].memory * 0.92, 989e12, 4800e9, 450e9),
}
_KINDS = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}
"""What jax calls them."""
_SLICES = {
    "v5e": {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"},
    "v5p": {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"},
}
_SLICES["v6e"] = _SLICES["v5e"]
_CORES = {"v5e": 1, "v5p": 2, "v6e": 1}
"""By which the number in a slice's name is more than its chips."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """Devices to compile for.

    Attributes:
      memory: bytes of each device that a program may use.
      chip: the figures of each; None where nobody knows them (a CPU).
    """

    name: str
    devices: list[Any]
    memory: float
    chip: Chip | None


def slice_names() -> list[str]:
    """The slices that can be named by their size, such as v5p-16."""
    return [f"{kind}-{chips * _CORES[kind]}" for kind, sizes in _SLICES.items() for chips in sizes]


def topology_name(text: str) -> tuple[str, str]:
    """(kind of chip, libtpu's name) of a slice: "v5p-16" and "v5p:2x2x2" are the same one.

    Raises:
      UserError: there is no such slice.
    """
    text = text.strip().lower().replace("v5litepod", "v5e")
    if found := re.fullmatch(r"(v\w+):(\d+(?:x\d+)+)", text):
        kind, shape = found.groups()
        wanted = 3 if kind == "v5p" else 2
        if kind in CHIPS and len(shape.split("x")) == wanted:
            return kind, f"{kind}:{shape}"
    if found := re.fullmatch(r"(v\w+)-(\d+)", text):
        kind, size = found[1], int(found[2])
        if kind in _SLICES and size % _CORES[kind] == 0 and size // _CORES[kind] in _SLICES[kind]:
            return kind, f"{kind}:{_SLICES[kind][size // _CORES[kind]]}"
    raise UserError(
        f"there is no slice {text!r}; name one by its size ({', '.join(slice_names())}), by its shape (v5e:4x4, "
        f"v5p:2x2x4); say h100-8 for so many GPUs ({', '.join(GPUS)}), cpu:8 for so many fake devices of this machine"
    )


def _fake_devices(topology: str) -> int:
    """How many devices of this machine a topology asks for: 8 for "cpu:8", 0 for a slice.

    Raises:
      UserError: it asks for them in another way.
    """
    text = topology.strip().lower()
    if not text.startswith("cpu"):
        return 0
    found = re.fullmatch(r"cpu(?::([1-9][0-9]*))?", text)
    if not found:
        raise UserError(f"{topology!r} must be cpu or cpu:<number of devices>")
    return int(found[1] or 1)


def machine(topology: str | None) -> Machine:
    """The devices of a topology, or those of this machine for None. `cpu:N` is `prepare`d before jax starts.

    Raises:
      UserError: there is no such topology, or what compiles for it is not installed.
    """
    import jax

    if topology is None or _fake_devices(topology):
        from vero_jax.sampling.room import device_memory

        devices = jax.devices()
        kind = devices[0].device_kind
        chip = CHIPS.get(_KINDS.get(kind, "")) or next((c for c in CHIPS.values() if c.name in kind), None)
        return Machine(f"{len(devices)} x {kind}", devices, device_memory(devices), chip)
    if gpus := gpu_topology(topology):
        kind, count = gpus
        return Machine(f"{topology} ({count} GPUs)", gpu_devices(kind, count), CHIPS[kind].memory, CHIPS[kind])
    kind, name = topology_name(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "to compile for a TPU, its compiler must be installed, although no TPU is needed: "
            "pip install 'vero-jax[tpu]', in the version that belongs to jax"
        )
    from jax.experimental import topologies

    # libtpu takes a host to have four chips, and the smallest slice has one.
    host = {"chips_per_host_bounds": (1, 1, 1)} if name.endswith(":1x1") else {}
    try:
        devices = list(topologies.get_topology_desc(platform="tpu", topology_name=name, **host).devices)
    except Exception as error:  # libtpu raises whatever its layers do
        reason = str(error).strip().split("\n")[0][:300]
        raise UserError(f"libtpu cannot compile for {name} ({reason})") from error
    return Machine(f"{topology} ({len(devices)} chips)", devices, CHIPS[kind].memory, CHIPS[kind])


def prepare(topology: str | None, environ: Any = os.environ) -> None:
    """Sets what jax and the compilers read when they start. Call it before jax is used.

    Raises:
      UserError: the topology is not one.
    """
    if topology is None:
        return
    if count := _fake_devices(topology):
        flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", environ.get("XLA_FLAGS", ""))
        environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={count}".strip()
    elif gpu_topology(topology):
        environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # it says several times that there is no driver
    else:
        topology_name(topology)
        # There is no metadata server to ask. What libtpu would like to hear from it changes no topology that is given,
        # and without it it prints errors.
        for name, value in (("SKIP_MDS_QUERY", "1"), ("ACCELERATOR_TYPE", "v5p-8"), ("WORKER_HOSTNAMES", "localhost")):
            environ.setdefault(f"TPU_{name}", value)
    # Nothing runs: the devices of this machine, TPUs above all, are left to others.
    environ["JAX_PLATFORMS"] = "cpu"
    with contextlib.suppress(ImportError):
        import jax

        jax.config.update("jax_platforms", "cpu")
