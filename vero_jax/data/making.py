"""Making one config: room on the disk, one maker at a time, a hidden folder, checksums, one rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from absl import logging
from array_record.python.array_record_module import ArrayRecordReader
from rich.console import Console

from vero_jax.data import builder, hub
from vero_jax.data.disk import check_space, friendly_disk
from vero_jax.data.origins import Origin
from vero_jax.data.prepared import (
    FORMAT,
    REPORT,
    check_sizes,
    file_sha256,
    index_name,
    part_folder,
    read_report,
)
from vero_jax.data.report import duplicate_ids, image_sizes
from vero_jax.errors import UserError

_SAY_EVERY_S = 10.0
_SHOW_EVERY_S = 0.5
_SCRATCH = ".making-"
_SPARE = 64 << 20  # bytes beyond the size of the files: index, report, and what the file system needs
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


class Progress:
    """Tells how one config gets on: a line every ten seconds, and a livelier one for a terminal."""

    def __init__(self, name: str, say: Callable[[str], None], show: Callable[[str], None]):
        self._name, self._say, self._show = name, say, show
        self._started = self._said = self._shown = time.monotonic()
        self._before: dict[str, int] = {}

    def tick(self, split: str, rows: int) -> None:
        self._before[split] = rows
        now = time.monotonic()
        total = sum(self._before.values())
        line = f"{self._name}: {split} {rows:,} rows, {total / max(now - self._started, 1e-6):,.0f} rows/s"
        if now - self._shown >= _SHOW_EVERY_S:
            self._shown = now
            self._show(line)
        if now - self._said >= _SAY_EVERY_S:
            self._said = now
            self._say(line)


@contextlib.contextmanager
def live_line() -> Iterator[Callable[[str], None]]:
    """A line at the bottom of a terminal that is written over; nothing where the output is no terminal."""
    if not sys.stdout.isatty():
        yield lambda line: None
        return
    with Console().status("preparing") as status:
        yield lambda line: status.update(line.replace("[", r"\["))


def make_root(root: Path) -> None:
    with friendly_disk(root):
        root.mkdir(parents=True, exist_ok=True)


def make(
    origin: Origin,
    data_dir: Path,
    root: Path,
    *,
    overwrite: bool,
    say: Callable[[str], None],
    progress: Progress,
) -> Path:
    """The folder of a config, made unless it is there.

    Args:
      origin: the config.
      data_dir: TFDS's folder of data sets, below which it appears.
      root: folder of the same disk for work in progress.
      overwrite: whether a folder that is damaged or was made from other files is replaced.
      say: gets a line before the work begins.
      progress: is told how it gets on.

    Raises:
      UserError: the disk is full or does not let us write, the rows cannot be read, or another folder is in the way.
    """
    folder = part_folder(data_dir, origin.builder, origin.name)
    with friendly_disk(folder.parent):
        if not _complete(folder, origin, overwrite):
            with _only_maker(root, f"{origin.name}-{origin.fingerprint}", say):
                if not _complete(folder, origin, overwrite):
                    say(f"preparing {origin.name}")
                    _check_space(origin, root)
                    _write(origin, folder, root, say, progress)
    return folder


def _complete(folder: Path, origin: Origin, overwrite: bool) -> bool:
    """Whether the config is there. UserError if something else is."""
    if not folder.parent.exists():
        return False
    try:
        if not (folder / REPORT).exists():
            raise UserError(f"{folder.parent} is in the way and was not made by this command; remove it")
        report = read_report(folder)
        check_sizes(folder, report)
    except UserError:
        if overwrite:
            return False
        raise
    if report["made_from"] == origin.fingerprint:
        return True
    if overwrite:
        return False
    raise UserError(
        f"{folder.parent} was prepared from other files (or with another limit) than {origin.name} has now; use "
        "--overwrite to make it anew, or give another --out"
    )


def _write(origin: Origin, folder: Path, root: Path, say: Callable[[str], None], progress: Progress) -> None:
    """Writes the files into a hidden folder, then renames that."""
    rows = origin.rows(say)
    tfds.disable_progress_bar()
    scratch = root / f"{_SCRATCH}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # TFDS tells of every step and of every config that it does not know
    try:
        scratch.mkdir()
        config = builder.SourceConfig(name=origin.name, version=folder.name, rows=rows, tick=progress.tick)
        kind = builder.VeroMini if origin.builder == builder.VeroMini.name else builder.Vero600k
        made = kind(config=config, data_dir=scratch)
        made.download_and_prepare(download_dir=str(scratch / "downloads"))
        written = part_folder(scratch, origin.builder, origin.name)
        _finish(written, origin, made)
        folder.parent.parent.mkdir(parents=True, exist_ok=True)
        if folder.parent.exists():
            folder.parent.rename(scratch / "replaced")
        try:
            written.parent.rename(folder.parent)
        except OSError:
            # Where locks do not work, another process may have been faster: its folder is complete, ours goes.
            if not (folder / REPORT).is_file():
                raise
    finally:
        logging.set_verbosity(verbosity)
        shutil.rmtree(scratch, ignore_errors=True)


def _finish(folder: Path, origin: Origin, made: builder.VeroMini | builder.Vero600k) -> None:
    """Looks whether everything arrived on the disk, and writes the report with the checksums."""
    indexes = [folder / index_name(split) for split in made.counts]
    for split, wanted in made.counts.items():
        shards = sorted(folder.glob(f"{origin.builder}-{split}.array_record-*"))
        there = sum(ArrayRecordReader(str(shard)).num_records() for shard in shards)
        if there != wanted:
            raise UserError(f"of {wanted} rows of {split} only {there} arrived in {folder}; look at the disk's state")
    made.report.images = image_sizes(indexes)
    for split, index in zip(made.counts, indexes, strict=True):
        if found := duplicate_ids(_ids(index)):
            made.report.duplicates[split] = found
    files = {
        path.name: {"size": path.stat().st_size, "sha256": file_sha256(path)}
        for path in sorted(folder.iterdir())
        if path.is_file()
    }
    report = {
        "format": FORMAT,
        "config": origin.name,
        "position": origin.position,
        "made_from": origin.fingerprint,
        "fingerprint": made.content,
        "counts": made.counts,
        "rows": made.report.to_json(),
        "files": files,
    }
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")


def _ids(index: Path) -> pa.ChunkedArray:
    return pq.read_table(index, columns=["id"])["id"]


def _check_space(origin: Origin, root: Path) -> None:
    """UserError if what is to be written, and downloaded first, has no room."""
    needs = [(root, origin.size + _SPARE)] if origin.size else []
    if origin.missing:
        needs.append((hub.download_folder(), origin.missing))
    check_space(origin.name, needs)


@contextlib.contextmanager
def _only_maker(root: Path, name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other process makes this config. Where the file system knows no locks, both make it."""
    path = root / f".{name}.lock"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor, path, say)
            # The one before removes the file when it is done; a lock on a file that is gone keeps nobody out.
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path, say: Callable[[str], None]) -> None:
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process prepares {path.name.removeprefix('.').rpartition('-')[0]}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def remove_leftovers(root: Path) -> None:
    """Removes half-made folders of processes of this machine that no longer live."""
    host = socket.gethostname()
    for path in root.glob(f"{_SCRATCH}{host}-*"):
        pid = path.name.removeprefix(f"{_SCRATCH}{host}-").split("-")[0]
        try:
            os.kill(int(pid), 0)
        except (ProcessLookupError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:
            pass  # alive, and somebody else's
