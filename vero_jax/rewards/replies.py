"""A model's replies on disk, one JSON line each: whatever ends the process, what was answered is not asked again.

Lines are only ever appended. A last line that was cut short, and any other line that cannot be read, is ignored.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from vero_jax.errors import UserError
from vero_jax.rewards.judge_cache import request_key

T = TypeVar("T")
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


def reply_key(row_id: str, request: Mapping[str, Any], rollout: int) -> str:
    """What a reply is kept under: the row's id, the request with its model and settings, and which rollout it is."""
    digest = hashlib.sha256(request_key(request))
    digest.update(json.dumps([row_id, rollout]).encode())
    return digest.hexdigest()[:32]


def read_records(
    path: Path, fits: Callable[[Mapping[str, Any]], bool] = lambda record: True
) -> dict[str, dict[str, Any]]:
    """What a `ReplyFile` left, by key; nothing where there is no file.

    Args:
      fits: whether a record is whole; the others are left out.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        return {str(record["key"]): record for _, record in _lines(path) if record is not None and fits(record)}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a file, each with its record, None where it cannot be read."""
    with open(path, "rb") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield line, record if isinstance(record, dict) and "key" in record else None


class ReplyFile(Generic[T]):
    """What was made of each reply, by key. A context manager; one process at a time.

    Args:
      path: of the file; made if absent.
      parse: what is kept in memory of a record {"key", "id", "reply" or "error", ...}.

    Raises:
      UserError: the file cannot be read or written, or another process has it.
    """

    def __init__(self, path: Path, parse: Callable[[Mapping[str, Any]], T]) -> None:
        self.path = path
        self._parse = parse
        self._known: dict[str, T] = {}
        self.ignored = 0
        """Lines that could not be read."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise self._refused(error) from error
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> ReplyFile[T]:
        return self

    def __exit__(self, *_: object) -> None:
        file, self._file = self._file, -1  # whoever still adds meets an error, and no other file of that number
        os.close(file)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: object) -> bool:
        return key in self._known

    def get(self, key: str) -> T | None:
        """What was made of the reply under a key, None where there is none."""
        return self._known.get(key)

    def add(self, record: Mapping[str, Any]) -> None:
        """Appends a record with its "key". Raises UserError where the disk refuses."""
        line = json.dumps(record, ensure_ascii=True).encode("ascii") + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError as error:
            raise self._refused(error) from error
        self._known[str(record["key"])] = self._parse(record)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise UserError(
                    f"{self.path} is in use by another process: wait for it, or give another file"
                ) from None
            if error.errno not in _NO_LOCKS:
                raise self._refused(error) from error

    def _load(self) -> None:
        end = b"\n"
        try:
            for line, record in _lines(self.path):
                end = line[-1:]
                try:
                    if record is None:
                        raise ValueError("no record")
                    self._known[str(record["key"])] = self._parse(record)
                except (ValueError, KeyError, TypeError, RecursionError):
                    self.ignored += 1
            if end != b"\n":
                os.write(self._file, b"\n")  # the next record must not go on a line that was cut
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> UserError:
        return UserError(
            f"cannot use {self.path} for the replies ({error.strerror}): free some space, or give another file"
        )
