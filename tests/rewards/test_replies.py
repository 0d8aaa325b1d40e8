"""The file of replies: nothing that was written is lost, and nothing that was cut does harm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vero_jax.errors import UserError
from vero_jax.rewards.replies import ReplyFile, reply_key


def reply(record: Mapping[str, Any]) -> str:
    return str(record["reply"])


def add(path: Path, *keys: str) -> None:
    with ReplyFile(path, reply) as file:
        for key in keys:
            file.add({"key": key, "id": "x", "reply": f"to {key}"})


def test_replies_are_there_in_the_same_process_and_the_next(tmp_path: Path) -> None:
    path = tmp_path / "new" / "replies.jsonl"
    with ReplyFile(path, reply) as file:
        assert file.get("a") is None and len(file) == 0
        file.add({"key": "a", "id": "x", "reply": "é\n\ud800"})
        assert file.get("a") == "é\n\ud800"
    with ReplyFile(path, reply) as file:
        assert file.get("a") == "é\n\ud800" and len(file) == 1 and file.ignored == 0
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("cut", range(1, 30, 4))
def test_a_last_line_that_was_cut_is_ignored_and_the_next_one_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "replies.jsonl"
    add(path, "a", "b")
    path.write_bytes(path.read_bytes()[:-cut])
    lost = 0 if cut == 1 else 1  # without its line end alone, a record is still whole
    with ReplyFile(path, reply) as file:
        assert file.get("a") == "to a" and file.ignored == lost
        file.add({"key": "c", "id": "x", "reply": "to c"})
    with ReplyFile(path, reply) as file:
        assert file.get("a") == "to a" and file.get("c") == "to c" and len(file) == 3 - lost


@pytest.mark.parametrize("line", [b"garbage", b"[1]", b"{}", b'{"key": "z"}', b"\xff\xfe", b"[" * 100_000, b"", b"7"])
def test_a_damaged_line_in_the_middle_is_counted_and_costs_only_itself(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "replies.jsonl"
    add(path, "a")
    path.write_bytes(path.read_bytes() + line + b"\n")
    add(path, "b")
    with ReplyFile(path, reply) as file:
        assert file.get("a") == "to a" and file.get("b") == "to b" and file.ignored == 1


def test_two_processes_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    with ReplyFile(path, reply), pytest.raises(UserError, match="in use by another process"):
        ReplyFile(path, reply)
    add(path, "a")


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use .*for the replies") as caught:
        ReplyFile(tmp_path / "file" / "replies.jsonl", reply)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\nfrom pathlib import Path\nfrom vero_jax.rewards.replies import ReplyFile\n"
        "from vero_jax.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "with ReplyFile(Path(sys.argv[1]), lambda record: 1) as file:\n"
        "    try:\n        for n in range(50): file.add({'key': str(n), 'id': 'x', 'reply': 'y' * 30})\n"
        "    except UserError as error: print(error)\n"
    )
    path = tmp_path / "replies.jsonl"
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert "cannot use" in done.stdout and "free some space" in done.stdout
    with ReplyFile(path, reply) as file:
        assert file.get("0") == "y" * 30


def test_a_killed_writer_leaves_all_that_it_had_finished(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom vero_jax.rewards.replies import ReplyFile\n"
        "with ReplyFile(Path(sys.argv[1]), lambda record: 1) as file:\n"
        "    n = 0\n    while True:\n"
        "        file.add({'key': str(n), 'id': 'x', 'reply': 'y' * 5000})\n"
        "        n += 1\n        print(n, flush=True)\n"
    )
    path = tmp_path / "replies.jsonl"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(50):
            said = process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        said = (process.stdout.read().splitlines() or [said])[-1]
    with ReplyFile(path, reply) as file:
        assert len(file) >= int(said.strip() or 50) - 1 >= 49


def test_a_key_depends_on_row_request_and_rollout_alone() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "q"}], "temperature": 0.6}
    key = reply_key("a", request, 0)
    assert key == reply_key("a", json.loads(json.dumps(request, sort_keys=True)), 0)
    others = [("b", request, 0), ("a", request, 1), ("a", {**request, "model": "n"}, 0)]
    others += [("a", {**request, "temperature": 0.7}, 0), ("a", {**request, "images": ["x"]}, 0)]
    assert len({key, *(reply_key(*other) for other in others)}) == 6


def test_a_hundred_thousand_replies_are_read_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    path.write_text(
        "".join(json.dumps({"key": f"{n:032x}", "id": "x", "reply": "y" * 300}) + "\n" for n in range(100_000))
    )
    start = time.process_time()
    with ReplyFile(path, lambda record: True) as file:
        assert len(file) == 100_000
    assert time.process_time() - start < 10
