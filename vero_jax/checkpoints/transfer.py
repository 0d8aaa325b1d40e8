"""Moves parameters between tensors on disk and wherever they are kept, block by block on a few threads.

Each tensor is read once, in the order of the files, and only as far as somebody wants it. What is in memory on the way
is at most `THREADS` blocks and their copies, whatever the size of the model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np

from vero_jax.checkpoints.boxes import (
    Box,
    Scratch,
    as_type,
    copy_into,
    cover,
    cut,
    extents,
    intersect,
    runs,
    same_bits,
    slices,
    whole,
)
from vero_jax.checkpoints.names import Source, by_tensor
from vero_jax.checkpoints.safetensors_io import SafetensorsWriter
from vero_jax.models.policy import ParamPath

THREADS = 4
"""More than the cores of a small machine, since some of them wait for the disk."""
BLOCK_BYTES = 32 * 2**20
"""Read, moved and written at a time, about."""

Layout = Mapping[ParamPath, Sequence[Source]]
_Piece = tuple[ParamPath, Source, int, Box]
"""A parameter, where it lies, the number of a wanted box of it, and which part of the tensor that box needs."""


class TensorReader(Protocol):
    """A checkpoint of either format."""

    def dtype(self, name: str) -> np.dtype: ...
    def in_order(self, names: Iterable[str]) -> list[str]: ...
    def read(
        self, name: str, view: tuple[int, ...] | None = None, box: Box | None = None, out: np.ndarray | None = None
    ) -> np.ndarray: ...


class ParamSink(Protocol):
    """Where parameters go. `write` is called from several threads, with boxes that lie in a wanted one."""

    def wanted(self, path: ParamPath) -> list[Box]:
        """Which boxes of the parameter, its layer axis included; they may overlap."""
        ...

    def write(self, path: ParamPath, number: int, box: Box, values: np.ndarray) -> None:
        """Takes a box of the parameter, for the wanted box of that number.

        `values` may lie transposed in memory, and is overwritten after the call.
        """
        ...


class ParamReader(Protocol):
    """Where parameters come from: any box of any of them, in its own type."""

    def read_param(self, path: ParamPath, box: Box) -> np.ndarray: ...


def read_into(
    reader: TensorReader, layout: Layout, sink: ParamSink, *, grid: Callable[[str], Sequence[int]] = lambda name: ()
) -> None:
    """Reads all that the sink wants, and nothing else.

    Args:
        layout: which tensors the parameters are made of.
        grid: tensors are cut at multiples of this only (`boxes.cut`).
    """
    tensors, scratch = by_tensor(layout), Scratch()

    def job(name: str, view: tuple[int, ...], block: Box, pieces: Sequence[_Piece]) -> None:
        values = reader.read(name, view, block, scratch.take("read", extents(block), reader.dtype(name)))
        _scatter(values, block, pieces, sink)

    def jobs() -> Iterable[Callable[[], None]]:
        for name in reader.in_order(tensors):
            pieces = [
                (path, source, number, box)
                for path, source in tensors[name]
                for number, wanted in enumerate(sink.wanted(path))
                if (box := _in_view(source, wanted)) is not None
            ]
            view = tensors[name][0][1].view
            limit = BLOCK_BYTES // reader.dtype(name).itemsize
            for area in cover(box for _, _, _, box in pieces):
                for block in cut(area, limit, grid(name)):
                    yield functools.partial(job, name, view, block, pieces)

    run_all(jobs())


def write_from(
    reader: ParamReader,
    layout: Layout,
    dtypes: Mapping[str, np.dtype],
    writer: SafetensorsWriter | None,
    *,
    grid: Callable[[str], Sequence[int]] = lambda name: (),
    threads: int = THREADS,
) -> None:
    """Writes every tensor of a layout.

    Args:
        dtypes: of the tensors.
        writer: None where another process writes and this one only takes part in reading.
        grid: tensors are cut at multiples of this only (`boxes.cut`).
        threads: 1 where all processes must read in the same order.
    """

    scratch = Scratch()

    def job(name: str, pieces: Sequence[tuple[ParamPath, Source]], block: Box) -> None:
        view = pieces[0][1].view
        values = scratch.take("write", extents(block), dtypes[name])
        for path, source in pieces:
            if (box := intersect(block, source.region)) is not None:
                found = source.turned(_read_layer(reader, path, source, source.from_view(box)))
                copy_into(values[slices(box, block)], found)
        if writer is not None:
            first = sum(start * math.prod(view[axis + 1 :]) for axis, (start, _) in enumerate(block))
            writer.write(name, first, values)

    def jobs() -> Iterable[Callable[[], None]]:
        for name, pieces in by_tensor(layout).items():
            limit = BLOCK_BYTES // dtypes[name].itemsize
            for block in cut(whole(pieces[0][1].view), limit, grid(name)):
                yield functools.partial(job, name, pieces, block)

    run_all(jobs(), threads)


class Comparison:
    """A sink that keeps nothing: it compares what it is given with what another place holds, bit by bit.

    Args:
        params: the shapes.
        dtypes: what both sides are rounded to first.
    """

    def __init__(
        self, params: Mapping[ParamPath, tuple[int, ...]], other: ParamReader, dtypes: Mapping[ParamPath, np.dtype]
    ) -> None:
        self._shapes, self._other, self._dtypes = params, other, dtypes
        self._scratch = Scratch()
        self.differing: set[ParamPath] = set()

    def wanted(self, path: ParamPath) -> list[Box]:
        return [whole(self._shapes[path])]

    def write(self, path: ParamPath, number: int, box: Box, values: np.ndarray) -> None:
        dtype = self._dtypes[path]
        straight = self._scratch.take("compare", values.shape, dtype)
        copy_into(straight, values)
        if not same_bits(straight, as_type(self._other.read_param(path, box), dtype)):
            self.differing.add(path)


class TensorSink:
    """A sink that writes the tensors of a layout, each box of a parameter where it belongs."""

    def __init__(self, params: Mapping[ParamPath, tuple[int, ...]], layout: Layout, writer: SafetensorsWriter) -> None:
        self._shapes, self._layout, self._writer, self._scratch = params, layout, writer, Scratch()

    def wanted(self, path: ParamPath) -> list[Box]:
        return [whole(self._shapes[path])]

    def write(self, path: ParamPath, number: int, box: Box, values: np.ndarray) -> None:
        for source, inner, found in _by_layer(self._layout[path], box, values):
            place = source.to_view(inner)
            straight = self._scratch.take("write", extents(place), self._writer.tensors[source.name][1])
            copy_into(straight, source.turned(found))
            flat, done = straight.reshape(-1), 0
            for first, count in runs(source.view, place):
                self._writer.write(source.name, first, flat[done : done + count])
                done += count


class TensorParams:
    """Boxes of parameters out of the tensors of a layout."""

    def __init__(self, reader: TensorReader, layout: Layout) -> None:
        self._reader, self._layout = reader, layout

    def read_param(self, path: ParamPath, box: Box) -> np.ndarray:
        layers = self._layout[path]
        values = np.empty(extents(box), self._reader.dtype(layers[0].name))
        for source, inner, target in _by_layer(layers, box, values):
            copy_into(target, source.turned(self._reader.read(source.name, source.view, source.to_view(inner))))
        return values


def run_all(jobs: Iterable[Callable[[], None]], threads: int = THREADS) -> None:
    """Runs jobs on a few threads, started in their order; the first error ends it."""
    if threads == 1:
        for job in jobs:
            job()
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="weights") as pool:
        running: set[Future[None]] = set()
        try:
            for job in jobs:
                if len(running) >= threads:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                running.add(pool.submit(job))
            for future in running:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _in_view(source: Source, wanted: Box) -> Box | None:
    """Which part of a tensor's view a wanted box of the parameter needs; None if that is another layer."""
    if source.layer is None:
        return source.to_view(wanted)
    if not wanted[0][0] <= source.layer < wanted[0][1]:
        return None
    return source.to_view(wanted[1:])


def _by_layer(layers: Sequence[Source], box: Box, values: np.ndarray) -> Iterable[tuple[Source, Box, np.ndarray]]:
    """(where it lies, box without layer axis, the values there) for each layer of a box of a parameter."""
    if layers[0].layer is None:
        yield layers[0], box, values
        return
    first, last = box[0]
    for layer in range(first, last):
        yield layers[layer], box[1:], values[layer - first]


def _scatter(values: np.ndarray, block: Box, pieces: Sequence[_Piece], sink: ParamSink) -> None:
    for path, source, number, wanted in pieces:
        box = intersect(block, wanted)
        if box is None:
            continue
        found = source.turned(values[slices(box, block)])
        place = source.from_view(box)
        if source.layer is not None:
            found, place = found[None], ((source.layer, source.layer + 1), *place)
        sink.write(path, number, place, found)


def _read_layer(reader: ParamReader, path: ParamPath, source: Source, box: Box) -> np.ndarray:
    if source.layer is None:
        return reader.read_param(path, box)
    return reader.read_param(path, ((source.layer, source.layer + 1), *box))[0]
