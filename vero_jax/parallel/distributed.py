"""Several processes as one run, one to a host: how they find each other, agree, and pass host data around.

Every process runs the same program on the same values, so that each takes the same decisions; the devices of all of
them are one mesh. What would be done several times over (reading questions, scoring answers) is shared out by
`Hosts.index`, and the results go round with `Hosts.exchange`. Only the primary process (index 0) writes.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from vero_jax.config import DistributedConfig
from vero_jax.errors import UserError
from vero_jax.parallel.peers import Peer, Peers, listen, my_addresses
from vero_jax.parallel.wire import from_bytes, to_bytes

T = TypeVar("T")

EXCHANGE_BYTES = 2**27
"""Of device memory that an exchange takes at a time, about."""
SHUTDOWN_S = 20
"""Of waiting for others when the interpreter ends; they have said farewell by then."""


class Hosts:
    """The processes of a run, as one of them sees them. A run of one process has one, too, and pays nothing for it."""

    def __init__(self, index: int = 0, count: int = 1) -> None:
        self.index, self.count = index, count

    @property
    def primary(self) -> bool:
        """Whether this process writes."""
        return self.index == 0

    def exchange(self, value: T) -> list[T]:
        """What each process has given, in the order of the processes. All must call it, at the same place.

        For host data of any size, see `wire.to_bytes`.
        """
        if self.count == 1:
            return [value]
        data = np.frombuffer(to_bytes(value), np.uint8)
        # Two numbers, because jax would cut one of 64 bits in half.
        halves = multihost_utils.process_allgather(np.array(divmod(len(data), 2**20), np.int32))
        sizes = [int(high) * 2**20 + int(low) for high, low in halves]
        parts: list[list[np.ndarray]] = [[] for _ in sizes]
        most, at = max(EXCHANGE_BYTES // self.count, 2**12), 0
        while at < max(sizes):
            # Powers of two, so that the few programs which this compiles are soon all there.
            length = min(most, 2 ** max((max(sizes) - at - 1).bit_length(), 12))
            piece = np.zeros(length, np.uint8)
            mine = data[at : at + length]
            piece[: len(mine)] = mine
            gathered = multihost_utils.process_allgather(piece)
            for index, size in enumerate(sizes):
                if size > at:
                    parts[index].append(np.asarray(gathered[index][: size - at]))
            at += length
        return [from_bytes(b"".join(part.tobytes() for part in pieces)) for pieces in parts]

    def agree(self, make: Callable[[], T], *, where: int | None = None) -> T:
        """What process `where` (the primary one, if None) makes. The others wait for it, and for its error.

        Raises:
          UserError: the one that `make` raised, in every process.
        """
        if self.count == 1:
            return make()
        found: tuple[T | None, str | None] = None, None
        if self.index == (where or 0):
            try:
                found = make(), None
            except UserError as error:
                found = None, str(error)
        value, problem = self.exchange(found)[where or 0]
        if problem is not None:
            raise UserError(problem)
        return value  # type: ignore[return-value]

    def shares(self, items: Sequence[T]) -> list[T]:
        """All items out of one list per process, of which this one gives `items`: the first of each, the second, ...

        It undoes `everything[index::count]`. Lists may differ in length by one, the longer ones first.
        """
        lists = self.exchange(list(items))
        return [part[at] for at in range(max(map(len, lists))) for part in lists if at < len(part)]


def connect(config: DistributedConfig) -> contextlib.AbstractContextManager[Hosts]:
    """Finds the other processes of the run, if it has any. Before anything asks jax for its devices.

    Leaving the context waits for the others; see `Peers` for what happens when one of them fails.

    Raises:
      UserError: the settings do not fit, or the others were not found.
    """
    arguments = _arguments(config, os.environ)
    if arguments is None:
        return contextlib.nullcontext(Hosts())
    if config.mode == "manual":
        _wait_for_coordinator(config)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=round(config.timeout_s),
            # Behind our own look, whose message names the host.
            heartbeat_timeout_seconds=round(3 * config.peer_timeout_s + 30),
            shutdown_timeout_seconds=SHUTDOWN_S,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(
            f"the processes of this run have not found each other ({_first_line(error)}); check that each was started "
            "once, with the same distributed.coordinator, or set distributed.mode=off for a run of one process"
        ) from error
    hosts = Hosts(jax.process_index(), jax.process_count())
    if hosts.count > 1 and jax.default_backend() == "cpu":
        # A CPU program that comes out of the cache waits for ever in its first collective between processes.
        jax.config.update("jax_enable_compilation_cache", False)
    return contextlib.nullcontext(hosts) if hosts.count == 1 else _watched(hosts, config)


def _wait_for_coordinator(config: DistributedConfig) -> None:
    """Says what is waited for, and waits for process 0 here: where it does not come, jax would abort this process."""
    limit = f"at most distributed.timeout_s={config.timeout_s:g} seconds"
    if config.process_id == 0:
        others = config.num_processes - 1
        print(f"process 0 waits at {config.coordinator} for {others} others, {limit}", file=sys.stderr, flush=True)
        return
    host, _, port = config.coordinator.rpartition(":")
    deadline = time.monotonic() + config.timeout_s
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process 0 is not at distributed.coordinator={config.coordinator} after {config.timeout_s:g} "
                    f"seconds ({error}); start it there, or correct the address"
                ) from error
        time.sleep(0.2)


@contextlib.contextmanager
def _watched(hosts: Hosts, config: DistributedConfig) -> Iterator[Hosts]:
    server = listen() if hosts.primary else None
    port = 0 if server is None else server.getsockname()[1]
    known = hosts.exchange((Peer(hosts.index, socket.gethostname(), os.getpid()), my_addresses(), port))
    coordinator = config.coordinator.rpartition(":")[0]
    names = [coordinator] * bool(coordinator) + known[0][1]
    addresses = [(name, known[0][2]) for name in dict.fromkeys(names)]
    with Peers([p for p, _, _ in known], hosts.index, server, addresses, timeout_s=config.peer_timeout_s):
        yield hosts


def _arguments(config: DistributedConfig, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` is to be called with; None for a run of one process."""
    given = (config.coordinator, config.num_processes, config.process_id)
    if config.mode == "manual":
        if not config.coordinator or config.num_processes < 1 or not 0 <= config.process_id < config.num_processes:
            raise UserError(
                "distributed.mode=manual needs distributed.coordinator=<host:port of process 0>, "
                "distributed.num_processes, and on each host another distributed.process_id from 0; they are "
                f"{config.coordinator!r}, {config.num_processes} and {config.process_id}"
            )
        host, _, port = config.coordinator.rpartition(":")
        if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
            raise UserError(
                f"distributed.coordinator must be host:port, with a port from 1 to 65535, not {config.coordinator!r}"
            )
        return dict(zip(("coordinator_address", "num_processes", "process_id"), given, strict=True)) | {
            "cluster_detection_method": "deactivate"
        }
    if given != ("", 0, -1):
        raise UserError(
            "distributed.coordinator, num_processes and process_id are for distributed.mode=manual; set that too"
        )
    if config.mode == "off" or not _several(environ):
        return None
    return _slurm_devices(environ)


def _several(environ: Mapping[str, str]) -> bool:
    """Whether something has started us as one of several processes, or may have: a TPU slice can have several hosts."""
    if environ.get("JAX_PLATFORMS", "").startswith("cpu") and "JAX_COORDINATOR_ADDRESS" not in environ:
        on_tpu = False
    else:
        on_tpu = bool([*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]) and _has_libtpu()
    tasks = [environ.get(name, "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")]
    in_step = "SLURM_STEP_NODELIST" in environ or "OMPI_COMM_WORLD_RANK" in environ
    return (
        on_tpu
        or "JAX_COORDINATOR_ADDRESS" in environ
        or (in_step and any(number.isdigit() and int(number) > 1 for number in tasks))
    )


def _has_libtpu() -> bool:
    import importlib.util

    return importlib.util.find_spec("libtpu") is not None


def _slurm_devices(environ: Mapping[str, str]) -> dict[str, Any]:
    """Under Slurm jax gives each process one GPU, that of its number on the node. One process to a node is to have all
    of them."""
    alone = environ.get("SLURM_NTASKS_PER_NODE", "") == "1" or environ.get("SLURM_NTASKS") == environ.get(
        "SLURM_STEP_NUM_NODES", "no step"
    )
    count = environ.get("SLURM_GPUS_ON_NODE", "")
    if "SLURM_STEP_NODELIST" in environ and alone and count.isdigit() and int(count) > 1:
        return {"local_device_ids": list(range(int(count)))}
    return {}


def check_alike(hosts: Hosts, flat: Mapping[str, Any]) -> None:
    """Whether all processes were started with the same settings, from `config_loader.flatten`.

    Raises:
      UserError: they were not; the sentence names the settings and values.
    """
    mine = {key: value for key, value in flat.items() if not key.startswith("distributed.")}
    for index, theirs in enumerate(hosts.exchange(mine)):
        differing = sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key))
        if differing:
            listed = ", ".join(f"{key} ({mine.get(key)!r} and {theirs.get(key)!r})" for key in differing[:5])
            raise UserError(
                f"processes {hosts.index} and {index} were started with different settings: {listed}; start the same "
                "command on every host"
            )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300] or type(error).__name__
