"""Judgements on disk: equal requests, several processes, kills, damage, and disks that refuse."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vero_jax.rewards.judge_cache import FILE, JudgeCache, request_key

REPO = Path(__file__).resolve().parents[2]
WRITER = """
import sys
from pathlib import Path
from vero_jax.rewards.judge_cache import JudgeCache
cache = JudgeCache(Path(sys.argv[1]), print)
start = int(sys.argv[2])
for number in range(start, start + int(sys.argv[3])):
    cache.put(str(number).encode(), float(number % 10 + 1), "reply " * 50)
    print(number, flush=True)
"""


def writer(folder: Path, start: int, count: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", WRITER, str(folder), str(start), str(count)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_key_depends_on_the_content_and_not_on_its_order() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "ä \ud800"}], "top_p": 0.8}
    assert request_key(request) == request_key(dict(reversed(request.items())))
    assert request_key(request) != request_key(request | {"top_p": 0.9})
    assert request_key(request) != request_key(request | {"model": "n"})


def test_the_first_score_of_a_request_stays(tmp_path: Path) -> None:
    said: list[str] = []
    cache = JudgeCache(tmp_path / "deep" / "folder", said.append)
    other = JudgeCache(tmp_path / "deep" / "folder", said.append)
    assert cache.get(b"a") is None
    assert cache.put(b"a", 7, "good \ud800") == 7.0
    assert other.put(b"a", 3, "bad") == 7.0 and other.get(b"a") == 7.0
    cache.close()
    other.close()
    again = JudgeCache(tmp_path / "deep" / "folder", said.append)
    assert again.get(b"a") == 7.0 and said == []
    again.close()


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    processes = [writer(tmp_path, 100 * index, 100) for index in range(3)]
    for process in processes:
        assert process.communicate(timeout=120)[0].splitlines()[-1].isdigit()
    cache = JudgeCache(tmp_path, print)
    assert [cache.get(str(number).encode()) for number in range(300)] == [float(n % 10 + 1) for n in range(300)]
    cache.close()


def test_a_kill_while_writing_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    process = writer(tmp_path, 0, 10**9)
    assert process.stdout is not None
    seen = [int(process.stdout.readline()) for _ in range(300)]
    os.kill(process.pid, signal.SIGKILL)
    seen += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    process.stdout.close()
    said: list[str] = []
    cache = JudgeCache(tmp_path, said.append)
    assert all(cache.get(str(number).encode()) == number % 10 + 1 for number in seen)
    cache.put(b"next", 5.0, "")
    assert cache.get(b"next") == 5.0 and said == []
    cache.close()


@pytest.mark.parametrize("damage", ["garbage", "middle", "table"])
def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path, damage: str) -> None:
    cache = JudgeCache(tmp_path, print)
    for number in range(2000):
        cache.put(str(number).encode(), 5.0, "x" * 500)
    cache.close()
    file = tmp_path / FILE
    data = bytearray(file.read_bytes())
    if damage == "garbage":
        file.write_bytes(b"not a database" * 100)
    elif damage == "middle":
        data[4096 : len(data) // 2] = os.urandom(len(data) // 2 - 4096)
        file.write_bytes(data)
    else:
        file.unlink()
        with sqlite3.connect(file) as other:
            other.execute("CREATE TABLE judgements (something TEXT)")
        other.close()
    said: list[str] = []
    cache = JudgeCache(tmp_path, said.append)
    found = [cache.get(str(number).encode()) for number in range(2000)]
    assert set(found) <= {None, 5.0}
    assert cache.put(b"new", 4.0, "") == 4.0
    cache.close()
    assert len(said) == 1
    if damage == "table":  # nothing is broken, but it is not ours
        assert "goes on without it" in said[0]
    else:
        assert "damaged" in said[0] and len(list(tmp_path.glob("*.damaged-*"))) >= 1
        assert JudgeCache(tmp_path, said.append).get(b"new") == 4.0


def test_a_folder_that_cannot_be_made_is_said_and_lived_with(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    cache = JudgeCache(tmp_path / "file" / "folder", said.append)
    assert cache.get(b"a") is None and cache.put(b"a", 2.0, "") == 2.0 and cache.get(b"a") is None
    assert len(said) == 1 and "goes on without it" in said[0]
    cache.close()


def test_a_lock_that_is_not_given_back_is_lived_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vero_jax.rewards.judge_cache.BUSY_SECONDS", 0.2)
    said: list[str] = []
    cache = JudgeCache(tmp_path, said.append)
    holder = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    assert cache.put(b"a", 6.0, "") == 6.0
    assert time.monotonic() - start < 4.5 and "locked" in said[0]
    holder.close()
    cache.close()


def test_values_that_are_no_scores_are_not_found(tmp_path: Path) -> None:
    cache = JudgeCache(tmp_path, print)
    with sqlite3.connect(tmp_path / FILE, isolation_level=None) as other:
        other.execute("INSERT INTO judgements VALUES (?, ?, '', 0)", (b"text", "seven"))
        other.execute("INSERT INTO judgements VALUES (?, ?, '', 0)", (b"infinite", math.inf))
    other.close()
    assert cache.get(b"text") is None and cache.get(b"infinite") is None
    assert cache.put(b"infinite", 3.0, "") == 3.0
    cache.close()
