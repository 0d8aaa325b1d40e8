"""Writing files so that a reader never meets half of one, and a full disk is a sentence instead of a traceback."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vero_jax.errors import UserError

_USER_ERRNOS = {
    errno.ENOSPC: "the disk is full: free some space and start again (a run goes on from its last checkpoint)",
    errno.EDQUOT: "your disk quota is used up: free some space and start again",
    errno.EROFS: "the file system is read-only: choose another folder (of a run: run_dir)",
    errno.EACCES: "permission is denied: choose another folder (of a run: run_dir) or change the folder's rights",
    errno.EPERM: "permission is denied: choose another folder (of a run: run_dir) or change the folder's rights",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another folder (of a run: run_dir)",
    errno.EISDIR: "that is a folder: give the name of a file",
    errno.EEXIST: "a file of that name is in the way: move it or choose another folder (of a run: run_dir)",
}


def disk_error(error: OSError, path: str | os.PathLike[str]) -> UserError | None:
    """The sentence for a failed write that the user can mend, or None when the error is of another kind."""
    reason = _USER_ERRNOS.get(error.errno or 0)
    return None if reason is None else UserError(f"cannot write {path}: {reason}.")


@contextlib.contextmanager
def friendly_writes(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a full disk, a missing right or a wrong folder inside the block into a UserError that names the path."""
    try:
        yield
    except OSError as error:
        sentence = disk_error(error, path)
        if sentence is None:
            raise
        raise sentence from error


def atomic_write(path: Path, content: str | bytes) -> None:
    """Replaces the file in one move: a reader, or a crash at any point, sees the old content or the new one."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with friendly_writes(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The temporary file must be on the same file system for os.replace to be atomic.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)  # mkstemp makes it private
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
