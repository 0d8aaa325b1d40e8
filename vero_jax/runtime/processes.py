"""What the processes of a run do before anything else: they join, and open the run's folder together."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from vero_jax.config import Config
from vero_jax.config_loader import flatten, to_dict
from vero_jax.errors import UserError
from vero_jax.parallel.distributed import Hosts, check_alike, connect
from vero_jax.runtime.compilation import enable_compilation_cache, spare_host_threads
from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.places import checkpoint_place
from vero_jax.runtime.run_dir import RunDir, open_run


@contextlib.contextmanager
def join(config: Config) -> Iterator[Hosts]:
    """Makes this process one of the run's, before anything is computed.

    Raises:
      UserError: the others were not found, or were started with other settings.
    """
    spare_host_threads()
    enable_compilation_cache(config.data.cache_dir)
    with connect(config.distributed) as hosts:
        check_alike(hosts, flatten(to_dict(config)))
        yield hosts


def open_shared_run(config: Config, hosts: Hosts) -> RunDir:
    """The run's folder, which the primary process opens and locks, and in which all must find each other's files.

    Raises:
      UserError: as `open_run`, or the folder is not the same one on every host.
    """
    opened: list[RunDir] = []
    mark = secrets.token_hex(8)

    def first() -> tuple[Path, bool, str]:
        run = open_run(config)
        opened.append(run)
        if hosts.count > 1:
            atomic_write(run.path / ".hosts", mark)
        return run.path, run.resuming, mark

    path, resuming, wanted = hosts.agree(first)
    if hosts.count > 1:
        absent = [index for index, sees in enumerate(hosts.exchange(_sees(path / ".hosts", wanted))) if not sees]
        if absent:
            raise UserError(
                f"run_dir {path} is not the same folder on every host (process {absent[0]} does not see what process 0 "
                "writes there): put it on a disk that all hosts share"
            )
    return opened[0] if opened else RunDir(path, resuming, place=checkpoint_place(config, path))


def _sees(file: Path, content: str, within_s: float = 10.0) -> bool:
    """Whether a file has this content; a network's file system may show it a moment later."""
    deadline = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError):
            if file.read_text(encoding="utf-8") == content:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def check_batches(config: Config, processes: int) -> None:
    """Whether each process can read as many questions of a batch as the others.

    Raises:
      UserError: it cannot.
    """
    sizes = {"trainer.prompts_per_step": config.trainer.prompts_per_step}
    if config.cold_start.steps:
        sizes["cold_start.batch_size"] = config.cold_start.batch_size
    for name, size in sizes.items():
        if size % processes:
            raise UserError(f"{name}={size} questions do not divide over {processes} processes; make it a multiple")
