"""A file of the batch whose gradient was not finite: all that it takes to compute it again, and to see why.

The layout is a line that names the kind of file, a digest of the rest, and `parallel.wire`'s JSON with arrays behind
it, which names no code that could run. Files are whole or not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from vero_jax.errors import UserError
from vero_jax.parallel.wire import from_bytes, to_bytes
from vero_jax.runtime.files import atomic_write
from vero_jax.types import Group

_MAGIC = b"vero_jax batch 1\n"
_DIGEST_BYTES = 16


@dataclasses.dataclass(frozen=True)
class KeptBatch:
    """The mini-batches of a step whose updates were skipped.

    Attributes:
      phase: "cold_start" or "reinforcement"; step: of the phase, from 1; global_step: of both.
      updates: numbers (from 0) of the step's updates that were skipped.
      moved: whether an update behind a skipped one happened, so that the weights after the step are other ones.
      batches: the groups of each of them, with scores and advantages, or solutions as responses in the cold start.
      config: all settings, as YAML.
      run: the run's folder, where its checkpoints are looked for.
    """

    phase: str
    step: int
    global_step: int
    updates: tuple[int, ...]
    moved: bool
    batches: tuple[tuple[Group, ...], ...]
    config: str
    run: Path


def write_batch(path: Path, batch: KeptBatch) -> None:
    """Replaces the file in one move.

    Raises:
      UserError: the disk refuses.
    """
    body = to_bytes(batch)
    atomic_write(path, _MAGIC + _digest(body) + body)


def read_batch(path: Path) -> KeptBatch:
    """What `write_batch` wrote.

    Raises:
      UserError: it cannot be read, is another kind of file, or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if not data.startswith(_MAGIC):
        raise UserError(f"{path} is no batch that vero_jax kept (they lie in <run>/bad_updates)")
    start = len(_MAGIC) + _DIGEST_BYTES
    body = data[start:]
    if data[len(_MAGIC) : start] != _digest(body):
        raise UserError(f"{path} is damaged: its content is not what was written; take another file, or a copy of it")
    try:
        found = from_bytes(body)
    except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise UserError(
            f"{path} was written by another version of vero_jax ({error}); read it with that one"
        ) from error
    if not isinstance(found, KeptBatch):
        raise UserError(f"{path} holds something else than a batch")
    return found


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
