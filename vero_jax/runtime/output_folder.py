"""A folder that appears under its name when it is complete, and never half of one, whatever ends its writer."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from vero_jax.errors import UserError

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space, or give a folder on another disk",
    errno.EDQUOT: "your disk quota is used up; free some space, or give another folder",
    errno.EROFS: "the file system is read-only; give another folder",
    errno.EACCES: "permission is denied; give another folder, or change the rights of this one",
    errno.EPERM: "permission is denied; give another folder, or change the rights of this one",
    errno.ENOTDIR: "a part of the path is a file; give another folder",
}
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


def check_free(out: Path) -> None:
    """UserError if something is at `out` that would be overwritten."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; give a new folder, or remove it first")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a draft folder beside `out` to write into, and renames it to `out` at the end of the block.

    An error in the block removes the draft; what a killed process left is replaced.

    Raises:
        UserError: `out` exists, another process is writing it, or the disk refuses.
    """
    draft = out.with_name(f".{out.name}.partial")
    lock = None
    try:
        check_free(out)
        lock = _lock(draft, out)
        try:
            _empty(draft)
            yield draft
            check_free(out)
            os.replace(draft, out)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if reason is None:
            raise
        raise UserError(f"cannot write {out}: {reason}") from error
    finally:
        if lock is not None:
            os.close(lock)


def _lock(draft: Path, out: Path) -> int:
    """Makes the draft and holds a lock on it, which the kernel drops when this process dies. Returns its descriptor."""
    draft.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"{out} is being written by another process; wait for it, or give another folder"
                ) from None
            if error.errno not in _NO_LOCKS:  # a file system without locks: two writers would go unnoticed there
                raise
        # Another process may have renamed or removed what was opened, between the opening and the lock.
        if not draft.is_dir() or not os.path.samestat(os.fstat(descriptor), os.stat(draft)):
            raise UserError(f"{out} was being written by another process until now; look at it, or try again")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _empty(folder: Path) -> None:
    for child in folder.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        else:
            child.unlink()
