"""Rectangular pieces of tensors: which to read, how to cut them, and fast copies between layouts and types.

Numpy only. Copies run outside Python's global lock, so that several threads can read and copy at once.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Sequence

import ml_dtypes  # its import teaches numpy the name bfloat16
import numpy as np

Box = tuple[tuple[int, int], ...]
"""First and last-but-one index along every axis."""

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TILE = 256
"""Side of the tiles of a transposing copy: source and target of one tile stay in the cache (1.4 GB/s against 0.3)."""


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole tensor."""
    return tuple((0, size) for size in shape)


def extents(box: Box) -> tuple[int, ...]:
    """The shape of a box."""
    return tuple(stop - start for start, stop in box)


def intersect(one: Box, other: Box) -> Box | None:
    """What two boxes share; None when that is nothing."""
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return shared if all(start < stop for start, stop in shared) else None


def slices(box: Box, origin: Box | None = None) -> tuple[slice, ...]:
    """For indexing; relative to the corner of `origin` if one is given."""
    if origin is None:
        return tuple(slice(start, stop) for start, stop in box)
    return tuple(slice(start - o, stop - o) for (start, stop), (o, _) in zip(box, origin, strict=True))


def cover(boxes: Iterable[Box]) -> list[Box]:
    """Disjoint boxes over all of these: every combination of the intervals that they have along each axis.

    Exact when the boxes are such a combination themselves, as the parts are that the devices of one host hold.
    """
    listed = list(boxes)
    if not listed:
        return []
    return list(itertools.product(*(_merged(axis) for axis in zip(*listed, strict=True))))


def cut(box: Box, limit: int, grid: Sequence[int] = ()) -> Iterator[Box]:
    """Cuts a box along its leading axes into pieces of about `limit` elements, in their order in memory.

    Args:
        grid: borders inside of the box lie on multiples of this along each axis; a piece may be larger for that. Axes
            that it does not list are cut anywhere.
    """
    shape = extents(box)
    row = math.prod(shape[1:])
    if row * shape[0] <= limit:
        yield box
    elif row > limit and len(shape) > 2 and tuple(grid[:1]) in ((), (1,)):
        for index in range(*box[0]):
            for rest in cut(box[1:], limit, grid[1:]):
                yield ((index, index + 1), *rest)
    else:
        align = grid[0] if grid else 1
        step = max(limit // row // align * align, align)
        start, stop = box[0]
        while start < stop:
            end = min((start // step + 1) * step, stop)
            yield ((start, end), *box[1:])
            start = end


def runs(shape: Sequence[int], box: Box) -> Iterator[tuple[int, int]]:
    """(first element, number of elements) of the pieces of a box that lie together in a tensor's memory."""
    axis = len(shape)
    while axis > 0 and box[axis - 1] == (0, shape[axis - 1]):
        axis -= 1
    if axis == 0:
        yield 0, math.prod(shape)
        return
    inner = math.prod(shape[axis:])
    start, stop = box[axis - 1]
    strides = [math.prod(shape[i + 1 :]) for i in range(axis - 1)]
    length = (stop - start) * inner
    for outer in itertools.product(*(range(*box[i]) for i in range(axis - 1))):
        base = sum(index * stride for index, stride in zip(outer, strides, strict=True))
        yield base + start * inner, length


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Like np.empty, at an address that jax takes over on the CPU without a copy (a multiple of 64)."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(dtype).reshape(shape)


class Scratch(threading.local):
    """Memory for one block per thread and use, kept between blocks: new memory costs more than to fill it."""

    def __init__(self) -> None:
        self._kept: dict[str, np.ndarray] = {}

    def take(self, use: str, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array that is this thread's until it asks for the same use again."""
        size = math.prod(shape) * dtype.itemsize
        if use not in self._kept or self._kept[use].nbytes < size:
            self._kept[use] = np.empty(size, np.uint8)
        return self._kept[use][:size].view(dtype).reshape(shape)


def copy_into(target: np.ndarray, values: np.ndarray) -> None:
    """target[...] = values, rounded to the target's type, in tiles when the two lie differently in memory.

    Plain numpy is several times slower here: a transposing copy misses the cache at every element, and bfloat16 is a
    type of ours, which numpy copies one by one under the global lock.
    """
    if values.ndim < 2 or values.flags.c_contiguous or values.strides[-1] == values.itemsize:
        for rows in _row_blocks(target):
            _copy(target[rows], values[rows])
        return
    for outer in np.ndindex(*target.shape[:-2]):
        into, out_of = target[outer], values[outer]
        for row in range(0, into.shape[0], TILE):
            for column in range(0, into.shape[1], TILE):
                tile = (slice(row, row + TILE), slice(column, column + TILE))
                _copy(into[tile], out_of[tile])


def as_type(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in another type; the array itself when it has it already."""
    if values.dtype == dtype:
        return values
    out = np.empty(values.shape, dtype)
    copy_into(out, values)
    return out


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one type are equal bit by bit (which NaNs are too)."""
    return one.dtype == other.dtype and np.array_equal(_bits(one), _bits(other))


def _copy(target: np.ndarray, values: np.ndarray) -> None:
    if target.dtype == values.dtype:
        _bits(target)[...] = _bits(values)
    elif values.dtype == BFLOAT16 and target.dtype == np.float32:
        # The upper half of a float32 is the bfloat16.
        np.left_shift(_bits(values), 16, out=_bits(target), dtype=np.uint32, casting="unsafe")
    else:
        target[...] = values.astype(target.dtype)


def _bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.dtype(f"u{values.itemsize}"))


def _row_blocks(values: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Cuts along the first axis into blocks of about a million elements, which bounds temporary arrays."""
    if values.ndim == 0:
        yield ()
        return
    step = max(1, 2**20 // max(math.prod(values.shape[1:]), 1))
    for start in range(0, values.shape[0], step):
        yield (slice(start, start + step),)


def _merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(set(intervals)):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
        else:
            merged.append((start, stop))
    return merged
