"""This package's own checkpoint format: one zarr array per parameter, laid out as training holds it.

    vero_jax.json   config.json   tokenizer and other files of the source   params/language.layers.attn.q.kernel/...

A parameter needs no transposing and no fusing to be read, and each process reads the chunks that its devices need. The
arrays are zarr 3 with checksums, written and read by TensorStore, so that other programs can open them too. Converting
back to Hugging Face's format gives the same bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from vero_jax.checkpoints.boxes import Box, Scratch, copy_into, extents, slices, whole
from vero_jax.checkpoints.names import ExpertLayout, Source, stored_params
from vero_jax.checkpoints.safetensors_io import FLOATS
from vero_jax.errors import UserError
from vero_jax.models.policy import ModelDef, ParamPath

MARKER = "vero_jax.json"
"""The file by which such a folder is known."""
PARAMS = "params"
VERSION = 1

CHUNK = 512
"""Side of the squares that a matrix is cut into: what is read at least of it (512 KiB in bfloat16)."""
_FILE_BYTES = 32 * 2**20
"""Chunks that are written together share a file of about this size."""
_CODES = {str(dtype): code for code, dtype in FLOATS.items()}


def is_native(folder: str | Path) -> bool:
    """Whether a folder holds a checkpoint of this format."""
    return (Path(folder).expanduser() / MARKER).is_file()


def layout(model_def: ModelDef) -> dict[ParamPath, list[Source]]:
    """Where each parameter lies: whole, in an array of its own."""
    return {path: [Source(".".join(path), tuple(leaf.shape))] for path, leaf in stored_params(model_def).items()}


class NativeFolder:
    """The arrays of a folder: which there are, and any box of one on demand. A context manager; safe in threads.

    Raises:
        UserError: the folder is damaged, or of a later version of the format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        try:
            header = json.loads((self.folder / MARKER).read_text(encoding="utf-8"))
            version = header["version"]
            self.experts: ExpertLayout = header["experts"]
            """How experts lay in the Hugging Face folder that this was made from."""
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder / MARKER} is not readable ({error}); convert the checkpoint again") from None
        if version != VERSION:
            raise UserError(
                f"{self.folder} has version {version} of the format, this vero_jax reads version {VERSION}; "
                "convert it with the vero_jax that wrote it"
            )
        root = self.folder / PARAMS
        names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
        self._arrays = {name: _open(root / name) for name in names}

    def __enter__(self) -> NativeFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self._arrays.clear()

    @property
    def names(self) -> set[str]:
        return set(self._arrays)

    @property
    def total_bytes(self) -> int:
        """Of all numbers."""
        return sum(math.prod(array.shape) * self.dtype(name).itemsize for name, array in self._arrays.items())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._arrays[name].shape)

    def type_code(self, name: str) -> str:
        """As safetensors calls it: "BF16"."""
        kind = self._arrays[name].dtype.name
        return _CODES.get(kind, kind)

    def dtype(self, name: str) -> np.dtype:
        return FLOATS[self.type_code(name)]

    def param_dtype(self, path: ParamPath) -> np.dtype:
        return self.dtype(".".join(path))

    def in_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names)

    def grid(self, name: str) -> tuple[int, ...]:
        """The shape of a chunk, of which always all is read."""
        return tuple(int(size or 1) for size in self._arrays[name].chunk_layout.read_chunk.shape or ())

    def read(
        self, name: str, view: tuple[int, ...] | None = None, box: Box | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """An array with the numbers of one box: `out`, or a new one."""
        array = self._arrays[name]
        box = whole(array.shape) if box is None else box
        out = np.empty(extents(box), self.dtype(name)) if out is None else out
        try:
            ts.array(out, copy=False).write(array[slices(box)]).result()
        except ValueError as error:
            raise UserError(
                f"{name} in {self.folder} cannot be read ({_first_line(error)}); convert the checkpoint again"
            ) from None
        return out

    def read_param(self, path: ParamPath, box: Box) -> np.ndarray:
        return self.read(".".join(path), box=box)


class NativeWriter:
    """A sink that writes parameters into a folder of this format; `finish` makes it one.

    Args:
        params: shape and type of every parameter.
        stacked: the parameters whose first axis is the layer.
    """

    def __init__(
        self, folder: Path, params: Mapping[ParamPath, tuple[tuple[int, ...], np.dtype]], stacked: set[ParamPath]
    ) -> None:
        self.folder, self._params, self._stacked = folder, dict(params), stacked
        self._scratch = Scratch()
        self._grids = {
            path: _grid(shape, dtype.itemsize, path in stacked, path[-1] == "kernel")
            for path, (shape, dtype) in params.items()
        }
        self._arrays = {
            path: _create(folder / PARAMS / ".".join(path), shape, dtype, *self._grids[path])
            for path, (shape, dtype) in params.items()
        }

    def wanted(self, path: ParamPath) -> list[Box]:
        return [whole(self._params[path][0])]

    def grid(self, path: ParamPath) -> tuple[int, ...]:
        """The shape of what shares a file, which is written fastest at once."""
        return self._grids[path][0]

    def rows(self, path: ParamPath) -> int:
        """The same, along the axis that a torch tensor has first."""
        grid = self._grids[path][0]
        return grid[-1] if path[-1] == "kernel" else grid[1 if path in self._stacked else 0]

    def write(self, path: ParamPath, number: int, box: Box, values: np.ndarray) -> None:
        dtype = self._params[path][1]
        if values.dtype != dtype or not values.flags.c_contiguous:
            straight = self._scratch.take("write", values.shape, dtype)
            copy_into(straight, values)
            values = straight
        try:
            self._arrays[path][slices(box)].write(values).result()
        except ValueError as error:
            if "No space left" in str(error):
                raise OSError(28, "No space left on device") from error
            raise

    def finish(self, experts: ExpertLayout) -> None:
        """Marks the folder as complete."""
        header = {"format": "vero_jax checkpoint", "version": VERSION, "experts": experts}
        (self.folder / MARKER).write_text(json.dumps(header, indent=2) + "\n", encoding="utf-8")


def _grid(
    shape: tuple[int, ...], itemsize: int, stacked: bool, cut_last: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(shape of the part of an array that shares a file, shape of a chunk in it).

    A file holds at most one layer, and of a large one as much as comes from (or goes to) adjacent memory of the torch
    tensor: columns of a linear map, rows of a table, some of the experts.
    """
    inner = shape[1:] if stacked else shape
    chunk = tuple(min(size, CHUNK) for size in inner) if len(inner) < 3 else (1, *(min(s, CHUNK) for s in inner[1:]))
    part = [-(-size // step) * step for size, step in zip(inner, chunk, strict=True)]
    axis = len(inner) - 1 if cut_last and len(inner) == 2 else 0
    rest = math.prod(part) // part[axis] * itemsize
    part[axis] = min(part[axis], max(_FILE_BYTES // rest // chunk[axis], 1) * chunk[axis])
    lead = (1,) if stacked else ()
    return (*lead, *part), (*lead, *chunk)


def _context() -> ts.Context:
    # The folder appears under its name when it is complete; forcing each file to the disk before would be slow.
    return ts.Context({"file_io_sync": False, "file_io_concurrency": {"limit": 16}})


def _create(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, part: tuple[int, ...], chunk: tuple[int, ...]
) -> ts.TensorStore:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(chunk),
            "codecs": [little, {"name": "crc32c"}],
            "index_codecs": [little, {"name": "crc32c"}],
        },
    }
    metadata = {
        "shape": list(shape),
        "data_type": str(dtype),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(part)}},
        "codecs": [sharding],
    }
    return _array(path, {"metadata": metadata, "create": True})


def _open(path: Path) -> ts.TensorStore:
    try:
        return _array(path, {"open": True})
    except ValueError as error:
        raise UserError(
            f"{path} is not a readable zarr array ({_first_line(error)}); convert the checkpoint again"
        ) from None


def _array(path: Path, options: dict[str, Any]) -> ts.TensorStore:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path.absolute())}, **options}
    return ts.open(spec, context=_context()).result()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]
