"""Folders that appear when they are complete, whatever ends their writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vero_jax.errors import UserError
from vero_jax.runtime.files import atomic_write
from vero_jax.runtime.output_folder import new_folder

WRITER = """
import sys, time
from pathlib import Path
from vero_jax.runtime.output_folder import new_folder
with new_folder(Path(sys.argv[1])) as draft:
    (draft / "half").mkdir()
    (draft / "half" / "file").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_the_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as draft:
        (draft / "file").write_text("x")
        assert draft.parent == out.parent and not out.exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "file").read_text() == "x"


def test_an_empty_folder_may_be_there_already_and_another_may_not(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with new_folder(out) as draft:
        (draft / "file").write_text("x")
    with pytest.raises(UserError, match="exists already"), new_folder(out):
        pass
    assert [path.name for path in out.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOSPC, "full"), "the disk is full"),
        (OSError(errno.EDQUOT, "quota"), "quota is used up"),
        (OSError(errno.EROFS, "ro"), "read-only"),
    ],
)
def test_an_error_of_the_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, error: OSError, text: str) -> None:
    with pytest.raises(UserError, match=text), new_folder(tmp_path / "out") as draft:
        (draft / "half").write_text("x")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_other_errors_pass_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_is_told_and_a_killed_one_s_rest_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(out)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "writing\n"
        with pytest.raises(UserError, match="being written by another process"), new_folder(out):
            pass
        assert (tmp_path / ".out.partial" / "half").is_dir()
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    with new_folder(out) as draft:
        assert list(draft.iterdir()) == []
        (draft / "file").write_text("x")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["file"]


def test_a_folder_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("x")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_in_the_place_of_a_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="that is a folder: give the name of a file"):
        atomic_write(tmp_path, "x")
