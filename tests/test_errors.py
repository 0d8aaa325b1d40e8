"""How commands end: one sentence for a user's mistake, quietly when the reader leaves, loudly for our own bugs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from vero_jax.errors import READER_LEFT, UserError, friendly

SCRIPT = """
import os, sys
from vero_jax.errors import friendly

@friendly
def main():
    {body}
    return 0

sys.exit(main())
"""


def piped(body: str, unbuffered: str) -> tuple[int, str, str]:
    """Exit status, what the reader got, and stderr, of a command whose reader leaves after one line."""
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        line = process.stdout.readline()
        process.stdout.close()
        error = process.stderr.read()
        return process.wait(), line, error


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "body",
    [
        "for number in range(200000): print('line', number)",
        "print('line 0', flush=True); __import__('time').sleep(0.5); print('more')",
        "print('line 0', flush=True); __import__('time').sleep(0.5); print('more'); sys.exit(0)",
    ],
)
def test_a_reader_that_leaves_ends_the_command_without_a_traceback(body, unbuffered):
    assert piped(body, unbuffered) == (READER_LEFT, "line 0\n", "")


def test_another_broken_pipe_is_still_our_bug():
    command = [sys.executable, "-c", SCRIPT.format(body="r, w = os.pipe(); os.close(r); os.write(w, b'x')")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "BrokenPipeError" in result.stderr


def test_a_users_mistake_is_one_sentence_and_status_2(capsys):
    @friendly
    def main() -> int:
        raise UserError("data.path=/x is missing; give another")

    assert main() == 2
    assert capsys.readouterr().err == "error: data.path=/x is missing; give another\n"


def test_files_of_tests_have_names_of_their_own(repo):
    # pytest collects no second file of a name, and says so only at the end of a run.
    names = Counter(path.name for path in (repo / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
