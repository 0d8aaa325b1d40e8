"""Rows of JSONL files (one object a line) and of JSON files that hold one list of objects, one at a time.

What cannot be read becomes a `formats.BrokenRow` at its place; a file of another kind stops with a sentence.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from vero_jax.data.formats import BrokenRow, writable
from vero_jax.errors import UserError

_OTHER_KINDS = (
    (b"PAR1", "is a Parquet file; give it the suffix .parquet"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it"),
    (b"(\xb5/\xfd", "is compressed with zstd; unpack it"),
    (b"PK\x03\x04", "is a zip archive; unpack it"),
    (b"\xff\xfe", "is UTF-16 text; save it as UTF-8"),
    (b"\xfe\xff", "is UTF-16 text; save it as UTF-8"),
)
_BOM = b"\xef\xbb\xbf"
_HEAD = 4096
_CHUNK = 1 << 20  # characters of a list read at a time
_SPACE = " \t\r\n"


def read(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the line, or of the object in a list, from 1; the object) of every row of a file in UTF-8.

    Raises:
      UserError: the file cannot be read, or is of another kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            for start, advice in _OTHER_KINDS:
                if head.startswith(start):
                    raise UserError(f"{path} {advice}")
            head = head.removeprefix(_BOM).lstrip()
            if head.startswith(b"{") and head[1:].split(b"\n")[0].strip() == b"" and b"\n" in head:
                raise UserError(
                    f"{path} spreads an object over several lines; write one object a line, or one list of objects"
                )
            file.seek(0)
            yield from _listed(path, file) if head.startswith(b"[") else _lines(path, file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); give a file that you may read") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(file, 1):
        text = line.removeprefix(_BOM) if number == 1 else line
        if not text.strip():
            continue
        try:
            decoded = text.decode("utf-8")
            yield number, _row(path, json.loads(decoded), decoded)
        except UnicodeDecodeError as error:
            yield number, BrokenRow(path.stem, "line is not UTF-8", f"byte {error.start} of it is {line[error.start]}")
        except (ValueError, RecursionError) as error:
            cut = "" if line.endswith(b"\n") else "; it is the last line, the file may be cut off"
            yield number, BrokenRow(path.stem, "line is not JSON", f"{error}{cut}")


def _listed(path: Path, file: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of one list. No more of the text is held than the longest object and a chunk."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    decoder = json.JSONDecoder()
    held, ended, number = "", False, 0

    def more() -> None:
        nonlocal held, ended
        # Twice as much each time, or a long object would be tried again and again.
        chunk = text.read(max(_CHUNK, len(held)))
        held, ended = held + chunk, not chunk

    try:
        more()
        held = held.lstrip(_SPACE)[1:]
        while True:
            held = held.lstrip(_SPACE + ",")
            if not held and not ended:
                more()
                continue
            if held.startswith("]"):
                return
            number += 1
            while True:
                try:
                    value, end = decoder.raw_decode(held)
                    # A number or a word may go on in the next chunk.
                    if end < len(held) or ended:
                        break
                except (ValueError, RecursionError) as error:
                    if ended:
                        yield number, BrokenRow(path.stem, "list is not JSON", f"{error}; the file may be cut off")
                        return
                more()
            used, held = held[:end], held[end:]
            yield number, _row(path, value, used)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} after row {number}); save it as UTF-8") from error


def _row(path: Path, value: Any, text: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        return BrokenRow(path.stem, "row is no object", f"a {type(value).__name__} where an object belongs")
    if not writable(value, text):
        return BrokenRow(path.stem, "text is not UTF-8", "half of a surrogate pair such as \\ud83d", value.get("id"))
    return value
