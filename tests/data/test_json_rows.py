"""JSONL and JSON lists, one row at a time; broken lines are rows that say why, other kinds of file a sentence."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from vero_jax.data import json_rows
from vero_jax.data.formats import BrokenRow
from vero_jax.errors import UserError

ROWS = [{"a": "ü"}, {"a": [1, 2]}, {"a": "x" * 3_000_000}]


def read(folder: Path, data: bytes, name: str = "rows.jsonl"):
    (folder / name).write_bytes(data)
    return list(json_rows.read(folder / name))


def lines(rows=ROWS) -> bytes:
    return b"\n".join(json.dumps(row, ensure_ascii=False).encode() for row in rows)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_are_numbered_and_blank_ones_skipped(tmp_path, mark):
    assert read(tmp_path, mark + b"\n" + lines() + b"\n\n") == [(2, ROWS[0]), (3, ROWS[1]), (4, ROWS[2])]
    assert read(tmp_path, mark + lines(ROWS[:1]).replace(b"\n", b"\r\n")) == [(1, ROWS[0])]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_gives_the_same_rows(tmp_path, mark, indent):
    text = json.dumps(ROWS * 2, ensure_ascii=False, indent=indent).encode()
    assert read(tmp_path, mark + b" \n" + text, "rows.json") == list(enumerate(ROWS * 2, 1))
    assert read(tmp_path, b"[]", "rows.json") == []


def test_broken_lines_are_rows_that_say_why(tmp_path):
    got = read(tmp_path, b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n{"b": 2}\n' + b"[" * 100_000 + b'\n{"cut": "of')
    broken = {number: row.reason for number, row in got if isinstance(row, BrokenRow)}
    assert broken == {
        2: "line is not JSON",
        3: "row is no object",
        4: "line is not UTF-8",
        6: "line is not JSON",
        7: "line is not JSON",
    }
    assert [row for _, row in got if not isinstance(row, BrokenRow)] == [{"a": 1}, {"b": 2}]
    assert "cut off" in got[-1][1].detail
    assert "cut off" not in got[1][1].detail


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_half_of_a_surrogate_pair_is_a_broken_row(tmp_path, name):
    """It could be read, but never written again, and would end the run that tries."""
    texts = ['{"a": "\\ud83d\\ude00"}', '{"id": "x", "a": "\\ud83d"}', '{"a": "\\\\ud"}']
    data = "\n".join(texts) if name == "rows.jsonl" else f"[{', '.join(texts)}]"
    whole, half, other = (row for _, row in read(tmp_path, data.encode(), name))
    assert (whole, other) == ({"a": "\U0001f600"}, {"a": "\\ud"})
    assert (half.reason, half["id"]) == ("text is not UTF-8", "x")


@pytest.mark.parametrize("end", [b'{"a": 2', b"{", b"", b'{"a": 2} {"a": 3'])
def test_a_list_that_is_cut_off_gives_what_is_whole_and_one_broken_row(tmp_path, end):
    *whole, (number, last) = read(tmp_path, b'[{"a": 1}, ' + end, "rows.json")
    assert whole[0] == (1, {"a": 1})
    assert (number, last.reason) == (len(whole) + 1, "list is not JSON")
    assert "cut off" in last.detail


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PAR1....", "Parquet"),
        (b"\x1f\x8b" + zlib.compress(b"{}"), "gzip"),
        ("[]".encode("utf-16"), "UTF-16"),
        (b'{\n  "a": 1\n}\n', "several lines"),
        (b'[{"a": "\xff"}]', "not UTF-8"),
    ],
)
def test_other_kinds_of_file_are_a_sentence(tmp_path, data, says):
    with pytest.raises(UserError, match=says) as caught:
        read(tmp_path, data)
    assert "rows.jsonl" in str(caught.value)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        list(json_rows.read(tmp_path / "gone.jsonl"))
