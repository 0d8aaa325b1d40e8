"""Judgements on disk, by the content of the request: several processes may share the file, and any may be killed.

SQLite in its write-ahead mode does the hard part. The cache is a convenience: when its file is damaged it is moved
away and a new one begun, when the disk refuses the run goes on without it, and either is said once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FILE = "judgements.sqlite3"
BUSY_SECONDS = 5.0
KEPT_REPLY = 2000
"""Characters of a reply that are kept beside its score, for people who want to know why."""


def request_key(request: Mapping[str, Any]) -> bytes:
    """What a judgement is stored under: SHA-256 of model, messages and sampling parameters; no address, no key."""
    return hashlib.sha256(json.dumps(request, sort_keys=True, allow_nan=False).encode("ascii")).digest()


class JudgeCache:
    """Scores by request. Use it from one thread.

    Args:
      folder: where the file lies; made if absent. On a network disk it must be one that can lock files.
      say: told once what is wrong.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.path = folder / FILE
        self._say = say
        self._connection: sqlite3.Connection | None = None
        self._off = False
        self._guarded(lambda: None, None)

    def get(self, key: bytes) -> float | None:
        """The raw score (1..10 as the judge gave it) of a request that was judged before."""
        row = self._guarded(lambda: self._row(key), None)
        return row[0] if row and isinstance(row[0], float) and math.isfinite(row[0]) else None

    def put(self, key: bytes, raw: float, reply: str) -> float:
        """Keeps a score and gives back the one to use: the first that any process kept."""

        def write() -> float:
            self._opened().execute(
                "INSERT OR IGNORE INTO judgements VALUES (?, ?, ?, ?)",
                (key, float(raw), reply[:KEPT_REPLY].encode("utf-8", "replace").decode(), time.time()),
            )
            return self._row(key)[0]

        kept = self._guarded(write, raw)
        return kept if isinstance(kept, float) and math.isfinite(kept) else raw

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _row(self, key: bytes) -> Any:
        return self._opened().execute("SELECT raw FROM judgements WHERE key = ?", (key,)).fetchone()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Made in the main thread, used in the judge's own; each statement commits by itself.
            connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            self._connection = connection
            connection.execute("PRAGMA journal_mode=WAL")
            # A power cut may cost the last judgements, never the file.
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS judgements "
                "(key BLOB PRIMARY KEY, raw REAL NOT NULL, reply TEXT, made REAL) WITHOUT ROWID"
            )
        return self._connection

    def _guarded(self, work: Callable[[], Any], otherwise: Any) -> Any:
        """`work`, once more with a new file if the old one is damaged, or `otherwise` where nothing helps."""
        if self._off:
            return otherwise
        for _ in range(2):
            try:
                self._opened()
                return work()
            except (OSError, sqlite3.OperationalError) as error:
                self._give_up(str(error))
                return otherwise
            except sqlite3.DatabaseError as error:
                self._set_aside(str(error))
        return otherwise

    def _give_up(self, problem: str) -> None:
        self.close()
        self._off = True
        self._say(f"judge: the cache {self.path} cannot be used ({problem}); this run goes on without it")

    def _set_aside(self, problem: str) -> None:
        self.close()
        away = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        try:
            os.replace(self.path, away)
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(f"{self.path}{suffix}", f"{away}{suffix}")
        except FileNotFoundError:
            return  # another process was faster
        except OSError as error:
            self._give_up(str(error))
            return
        self._say(f"judge: the cache {self.path} is damaged ({problem}); it is now {away.name}, and a new one is begun")
