"""Folders of safetensors files: which tensors there are, any box of one on demand, and writing them piece by piece.

A file is 8 bytes (the header's length), the header (JSON: name -> type, shape, place), then the numbers, row by row.
The safetensors package reads whole tensors under Python's global lock; these read any part into given memory outside
of it, which is what streaming and sharded loading need.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vero_jax.checkpoints.boxes import BFLOAT16, Box, extents, runs, whole
from vero_jax.errors import UserError

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
FLOATS = {
    "F32": np.dtype(np.float32),
    "BF16": BFLOAT16,
    "F16": np.dtype(np.float16),
    "F64": np.dtype(np.float64),
}
_CODES = {dtype: code for code, dtype in FLOATS.items()}
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_BITS |= {"BOOL": 8, "I8": 8, "U8": 8, "F8_E4M3": 8, "F8_E5M2": 8}
_MAX_HEADER = 100 * 10**6
_POINTER = b"version https://git-lfs"


class _Entry(NamedTuple):
    file: str
    code: str
    shape: tuple[int, ...]
    start: int
    """Of the numbers in the file, in bytes."""


class Checkpoint:
    """The tensors of a folder: which there are, their shapes, and each on demand. A context manager; safe in threads.

    Args:
        canonical: from a name in the files to the one to call it by.

    Raises:
        UserError: a file is missing, damaged or no safetensors file, or the index is.
    """

    def __init__(self, folder: str | Path, canonical: Callable[[str], str] = str) -> None:
        self.folder = Path(folder).expanduser()
        self._entries: dict[str, _Entry] = {}
        self._descriptors: dict[str, int] = {}
        self._lock = threading.Lock()
        for file, promised in self._listing().items():
            path = self.folder / file
            if not path.is_file():
                raise UserError(f"{path} is missing, though {INDEX_FILE} lists it; copy the checkpoint again")
            entries = dict(_read_header(path))
            if absent := promised - set(entries):
                raise UserError(f"{path} lacks {_few(absent)}, which {INDEX_FILE} says it holds")
            for name, entry in entries.items():
                known = canonical(name)
                if known in self._entries:
                    other = self._entries[known].file
                    raise UserError(f"{self.folder} holds {known} twice, in {other} and in {file}; remove one of them")
                self._entries[known] = entry

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    @property
    def names(self) -> set[str]:
        return set(self._entries)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    @property
    def total_bytes(self) -> int:
        """Of all numbers."""
        return sum(math.prod(entry.shape) * _BITS.get(entry.code, 8) // 8 for entry in self._entries.values())

    def file(self, name: str) -> Path:
        return self.folder / self._entries[name].file

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name].shape

    def type_code(self, name: str) -> str:
        """As the file says it: "BF16", "F8_E4M3"."""
        return self._entries[name].code

    def dtype(self, name: str) -> np.dtype:
        code = self.type_code(name)
        if code not in FLOATS:
            raise UserError(
                f"{name} in {self.file(name)} is stored as {code}; only {', '.join(FLOATS)} are supported, "
                "use a checkpoint that is not quantised"
            )
        return FLOATS[code]

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Names by their place on disk, so that reading them goes forward."""
        return sorted(names, key=lambda name: (self._entries[name].file, self._entries[name].start))

    def read(
        self, name: str, view: tuple[int, ...] | None = None, box: Box | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """An array with the numbers of one box of a tensor; nothing else is read.

        Args:
            view: the shape to read it as, of equally many elements; None for its own.
            box: None for all of it.
            out: contiguous, of the box's shape and the tensor's type, to be filled; None makes a new one.
        """
        entry, dtype = self._entries[name], self.dtype(name)
        shape = entry.shape if view is None else view
        box = whole(shape) if box is None else box
        out = np.empty(extents(box), dtype) if out is None else out
        memory, done = memoryview(out.reshape(-1).view(np.uint8)), 0
        for first, count in runs(shape, box):
            size = count * dtype.itemsize
            self.read_bytes(entry.file, entry.start + first * dtype.itemsize, memory[done : done + size])
            done += size
        return out

    def read_bytes(self, file: str, offset: int, into: memoryview) -> None:
        """Fills `into` from a place in a file."""
        descriptor = self._descriptor(file)
        while len(into):
            count = os.preadv(descriptor, [into], offset)
            if count == 0:
                raise UserError(f"{self.folder / file} ends too early: it is truncated; copy it again")
            into, offset = into[count:], offset + count

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._descriptors:
                self._descriptors[file] = os.open(self.folder / file, os.O_RDONLY | os.O_CLOEXEC)
            return self._descriptors[file]

    def _listing(self) -> dict[str, set[str]]:
        """Files, each with the names that the index promises in it (none without an index)."""
        index = self.folder / INDEX_FILE
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
                files: dict[str, set[str]] = {}
                for name, file in weight_map.items():
                    if Path(file).name != file:
                        raise ValueError(f"{file!r} is no file name")
                    files.setdefault(file, set()).add(name)
                return files
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index} is not a valid index ({error!r}); copy the checkpoint again") from None
        if (self.folder / SINGLE_FILE).is_file():
            return {SINGLE_FILE: set()}
        others = sorted(path.name for path in self.folder.glob("*.bin")) if self.folder.is_dir() else []
        hint = (
            f"; it has {', '.join(others[:3])}, which is torch's own format: convert it to safetensors"
            if others
            else ""
        )
        raise UserError(f"{self.folder} has neither {SINGLE_FILE} nor {INDEX_FILE}{hint}")


def _read_header(path: Path) -> Iterator[tuple[str, _Entry]]:
    """The entries of one file, checked against each other and against the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
            if start == _POINTER:
                raise UserError(f"{path} is a Git LFS pointer instead of the weights; run `git lfs pull` there")
            length = int.from_bytes(start[:8], "little")
            if len(start) < 8 or length > min(size - 8, _MAX_HEADER):
                raise ValueError(f"its header would be {length} bytes long, it has {size}")
            file.seek(8)
            header = json.loads(file.read(length).decode("utf-8"))
        header.pop("__metadata__", None)
        end = 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            code, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            wanted = math.prod(shape) * _BITS[code] // 8 if code in _BITS else last - first
            if first != end or last - first != wanted:
                raise ValueError(f"{name} does not lie where its header says")
            end = last
            yield name, _Entry(path.name, code, shape, 8 + length + first)
        if 8 + length + end != size:
            raise ValueError(f"its header promises {8 + length + end} bytes, it has {size}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a readable safetensors file ({error}); copy it again") from None


class SafetensorsWriter:
    """Writes tensors of known names, shapes and types as files of at most a given size, piece by piece in any order.

    A context manager; safe in threads. Every element must be written once before it closes.

    Args:
        tensors: name -> (shape, dtype), in the order in which they shall lie in the files.
        max_shard_bytes: start a new file before one grows larger than this. One file gets no index.
    """

    def __init__(
        self, folder: Path, tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]], max_shard_bytes: int
    ) -> None:
        self.folder, self._tensors = folder, dict(tensors)
        self._sizes = {name: math.prod(shape) * dtype.itemsize for name, (shape, dtype) in tensors.items()}
        self._place: dict[str, tuple[int, int]] = {}
        self._descriptors: list[int] = []
        shards = list(_shards(self._sizes, max_shard_bytes))
        count = len(shards)
        self._files = (
            [SINGLE_FILE]
            if count == 1
            else [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        )
        try:
            for file, names in zip(self._files, shards, strict=True):
                self._begin(file, names)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(self, kind: Any, *exception: object) -> None:
        self._close()
        if kind is None and len(self._files) > 1:
            files = {name: self._files[number] for name, (number, _) in self._place.items()}
            index = {
                "metadata": {"total_size": sum(self._sizes.values())},
                "weight_map": dict(sorted(files.items())),
            }
            (self.folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        return self._tensors

    def write(self, name: str, first: int, values: np.ndarray) -> None:
        """Puts contiguous values at an element of a tensor's memory; their type must be the announced one."""
        dtype = self._tensors[name][1]
        if values.dtype != dtype:
            raise ValueError(f"{name} was announced as {dtype}, not {values.dtype}")
        number, start = self._place[name]
        offset = start + first * dtype.itemsize
        memory = memoryview(values.reshape(-1).view(np.uint8))
        while len(memory):
            count = os.pwrite(self._descriptors[number], memory, offset)
            memory, offset = memory[count:], offset + count

    def _close(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors.clear()

    def _begin(self, file: str, names: list[str]) -> None:
        # transformers refuses a file that does not say which framework's layout it has.
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            shape, dtype = self._tensors[name]
            header[name] = {
                "dtype": _CODES[dtype],
                "shape": list(shape),
                "data_offsets": [end, end + self._sizes[name]],
            }
            end += self._sizes[name]
        text = json.dumps(header, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)  # the numbers start at a multiple of 8, as readers that map the file want
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(self.folder / file, flags, 0o644)
        self._descriptors.append(descriptor)
        os.write(descriptor, len(text).to_bytes(8, "little") + text)
        for name in names:
            self._place[name] = (len(self._descriptors) - 1, 8 + len(text) + header[name]["data_offsets"][0])


def remove_weights(folder: Path) -> None:
    """Removes the safetensors files of a folder that is to get others."""
    for old in [folder / SINGLE_FILE, folder / INDEX_FILE, *folder.glob("model-*-of-*.safetensors")]:
        old.unlink(missing_ok=True)


def _shards(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in order, cut where a file would grow over the limit; a single larger tensor has a file of its own."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > limit:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    yield names


def _few(names: set[str], shown: int = 4) -> str:
    listed = sorted(names)
    rest = f" and {len(listed) - shown} more" if len(listed) > shown else ""
    return ", ".join(listed[:shown]) + rest
