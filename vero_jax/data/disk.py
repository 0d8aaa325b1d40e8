"""Room on the disk, and disks that refuse: sentences instead of tracebacks."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from vero_jax.errors import UserError

_DISK = {
    errno.ENOSPC: "the disk is full; free some space, or give a folder on another disk",
    errno.EFBIG: "a file grew beyond the limit that is set for files; raise it (ulimit -f), or give another folder",
    errno.EDQUOT: "your disk quota is used up; free some space, or give another folder",
    errno.EROFS: "the file system is read-only; give another folder",
    errno.EACCES: "permission is denied; give another folder, or change its rights",
    errno.EPERM: "permission is denied; give another folder, or change its rights",
    errno.ENOTDIR: "a part of the path is a file; give another folder",
    errno.EEXIST: "a file of that name is in the way; give another folder",
}


def check_space(what: str, needs: Sequence[tuple[Path, int]]) -> None:
    """UserError if one of the disks has less free than is needed.

    Args:
      what: what needs the room.
      needs: (folder, bytes), the folder or one above it exists; those on one disk add up.
    """
    disks: dict[int, tuple[Path, int]] = {}
    for folder, needed in needs:
        place = next(path for path in [folder, *folder.absolute().parents] if path.exists())
        device = place.stat().st_dev
        first, before = disks.get(device, (place, 0))
        disks[device] = (first, before + needed)
    for place, needed in disks.values():
        free = shutil.disk_usage(place).free
        if free < needed:
            raise UserError(
                f"{what} needs about {needed / 1e9:,.2f} GB on the disk of {place}, which has {free / 1e9:,.2f} GB "
                "free; free some space, or give a folder on another disk"
            )


@contextlib.contextmanager
def friendly_disk(place: Path) -> Iterator[None]:
    """Turns a full disk, a missing right or a wrong folder inside the block into a `UserError` that names the place."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None:  # array_record and arrow give the system's words only
            number = next((code for code in _DISK if os.strerror(code) in str(error)), None)
        if number not in _DISK:
            raise
        raise UserError(f"cannot write {place}: {_DISK[number]}") from error
