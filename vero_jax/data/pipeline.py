"""The stream of training questions and the pass over the validation questions, read ahead by Grain.

    rows kept -> one endless shuffled order per domain -> exact mixture -> this host's share -> decode -> batches

Everything is a function of the sample's number: a run resumes at step k by starting at k * batch_size, whatever the
number of hosts or worker processes was before.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import grain
import numpy as np
from absl import flags

from vero_jax.config import DataConfig
from vero_jax.data import mixture, schema
from vero_jax.data.chat import PromptError
from vero_jax.data.images import ImageError
from vero_jax.data.order import Order, OwnOrder, ReferenceOrder
from vero_jax.data.prepare import ExampleSource, PreparedData
from vero_jax.data.selection import Selection, mean_areas, select_rows
from vero_jax.errors import UserError
from vero_jax.types import Example

T = TypeVar("T")
Gather = Callable[[list[Any]], list[Any]]

READ_THREADS = 2
READ_AHEAD = 32  # questions held ready beyond a batch, where memory allows
CLOSED = "closed"
"""What a reader that is being closed gives instead of a question."""
MAX_REPLACEMENTS = 32
_BAD_ROW = (schema.RowError, PromptError, ImageError)


@dataclasses.dataclass(frozen=True)
class _Drawn(Generic[T]):
    """What stands at one place of the stream, and the (row id, reason) of the rows that could not stand there."""

    value: T | None
    problems: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class _Draw(Generic[T]):
    """Sample number -> question. Pickled to Grain's workers."""

    order: Order
    source: ExampleSource
    transform: Callable[[Example], T] | None

    def __call__(self, sample: int) -> _Drawn[T]:
        domain, row = self.order.draw(int(sample))
        problems: list[tuple[str, str]] = []
        for at in itertools.chain([row], itertools.islice(self.order.others(int(sample)), MAX_REPLACEMENTS)):
            name = f"row {at}"
            try:
                example = self.source[at]
                name = example.id
                value = example if self.transform is None else self.transform(example)
            except _BAD_ROW as error:
                problems.append((name, error.reason))
                continue
            return _Drawn(value, tuple(problems))  # type: ignore[arg-type]  # T is Example where transform is None
        raise UserError(
            f"{len(problems)} questions in a row of domain {self.order.names[domain]!r} cannot be used, the last one "
            f"({problems[-1][0]}) because: {problems[-1][1]}"
        )


class QuestionStream(Generic[T]):
    """Training batches by step number, with exact domain counts in each.

    Args:
      prepared: the data.
      data_cfg: split, mixture, seed and number of workers.
      batch_size: questions per step, over all hosts.
      start_step: the step (from 0) that is asked for first, so that reading ahead starts there.
      transform: Example -> what batches hold, in a worker thread or process; a `RowError`, `PromptError` or
        `ImageError` it raises replaces the row by another one of its domain and is counted. None: the examples.
      selection: the rows to use; None uses all that need no judge.
      host, hosts: which share of every batch this process reads; `hosts` divides `batch_size`.
      gather: all items out of one list per process, `everything[host::hosts]`, so that batches are whole in each; None
        leaves each process its share.

    Raises:
      UserError: no domain with a weight has rows, or the batch cannot be divided.
    """

    def __init__(
        self,
        prepared: PreparedData,
        data_cfg: DataConfig,
        *,
        batch_size: int,
        start_step: int = 0,
        transform: Callable[[Example], T] | None = None,
        selection: Selection | None = None,
        host: int = 0,
        hosts: int = 1,
        gather: Gather | None = None,
    ):
        if batch_size < 1 or batch_size % hosts:
            raise UserError(
                f"a batch of {batch_size} questions does not divide over {hosts} processes; change its size"
            )
        selection = selection or select_rows(prepared, data_cfg.train_split, mixture=data_cfg.mixture)
        self.available = selection.available
        self.weights = mixture.domain_weights(data_cfg, self.available, lambda: mean_areas(prepared, selection))
        order: Order
        if data_cfg.mixture.order == "reference":
            order = ReferenceOrder(selection, self.weights, batch_size, data_cfg.seed)
        else:
            order = OwnOrder(selection, self.weights, batch_size, data_cfg.seed, data_cfg.mixture.rotate)
        self.counts = order.counts(0)
        """Questions of each domain in the first batch; in every batch, unless places rotate."""
        self.batch_size = batch_size
        self.problems: collections.Counter[str] = collections.Counter()
        """Rows that had to be replaced in the batches given out so far, by reason."""
        self._share, self._host, self._hosts, self._gather = batch_size // hosts, host, hosts, gather
        self._workers = data_cfg.workers
        self._read_ahead = read_ahead(data_cfg, selection.largest_prompt, self._share)
        self._draw = _Draw(order, prepared.examples(selection.split), transform)
        self._reader: _Reader | None = None
        self._next_step = start_step
        self._waited, self._replaced = 0.0, 0

    def batch(self, step: int) -> list[T]:
        """The batch of a step (from 0), or this process's share where nothing gathers.

        Steps in a row are read ahead, any may be asked for.
        """
        if self._reader is None or step != self._next_step:
            self.close()
            first = step * self.batch_size + self._host
            numbers = grain.MapDataset.range(first, sys.maxsize, self._hosts)
            self._reader = _Reader(numbers, self._draw, self._workers, self._read_ahead)
        start = time.perf_counter()
        drawn = [next(self._reader) for _ in range(self._share)]
        if self._gather is not None:
            drawn = self._gather(drawn)
        self._waited = time.perf_counter() - start
        self._next_step = step + 1
        reasons = [reason for item in drawn for _, reason in item.problems]
        self.problems.update(reasons)
        self._replaced = len(reasons)
        return [item.value for item in drawn]  # type: ignore[misc]

    def metrics(self) -> dict[str, float]:
        """Of the latest batch: seconds that were waited for it, and rows that had to be replaced.

        Not of all batches: a run that goes on from a checkpoint has not seen those before it.
        """
        return {"timing_s/data_wait": self._waited, "data/replaced": float(self._replaced)}

    def iterate(self, start_step: int = 0) -> Iterator[list[T]]:
        """Batches without end, from a step on."""
        step = start_step
        while True:
            yield self.batch(step)
            step += 1

    def close(self) -> None:
        """Stops reading ahead."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def __enter__(self) -> QuestionStream[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_ahead(data_cfg: DataConfig, largest_prompt: int, batch: int) -> int:
    """Questions that each reader (worker process, or this one) holds ready: a batch in all, as far as memory allows.

    Args:
      data_cfg: number of workers, and `read_ahead_mb` for all of them.
      largest_prompt: bytes of the patches of the largest prompt.
      batch: questions that are asked for at a time.
    """
    readers = max(data_cfg.workers, 1)
    # Each of these stands three times at most: in its worker, on its way, and on the trainer's side.
    places = readers * (3 if data_cfg.workers else 1)
    fits = data_cfg.read_ahead_mb * 2**20 // max(largest_prompt, 1)
    return max(1, min(fits, batch + READ_AHEAD) // places)


@dataclasses.dataclass(frozen=True)
class _Look(Generic[T]):
    """Row number -> question; a row that cannot be used gives no value."""

    source: ExampleSource
    transform: Callable[[Example], T] | None

    def __call__(self, row: int) -> _Drawn[T]:
        name = f"row {row}"
        try:
            example = self.source[int(row)]
            name = example.id
            return _Drawn(example if self.transform is None else self.transform(example))  # type: ignore[arg-type]
        except _BAD_ROW as error:
            return _Drawn(None, ((name, error.reason),))


def validation_batches(
    prepared: PreparedData,
    data_cfg: DataConfig,
    *,
    batch_size: int,
    transform: Callable[[Example], T] | None = None,
    selection: Selection | None = None,
    problems: collections.Counter[str] | None = None,
    host: int = 0,
    hosts: int = 1,
    gather: Gather | None = None,
) -> Iterator[list[T]]:
    """Every validation question once, in order; the last batch may be smaller.

    Args:
      prepared, data_cfg, transform: as for `QuestionStream`; `data_cfg.max_val_examples` takes that many, evenly
        spread.
      batch_size: questions per list.
      selection: the rows to use; None uses all of the validation split that need no judge.
      problems: counts the rows that could not be used, by reason; they are left out.
      host, hosts, gather: this process reads every `hosts`-th question; see `QuestionStream`.
    """
    selection = selection or select_rows(prepared, data_cfg.val_split)
    rows = selection.rows
    limit = data_cfg.max_val_examples
    if limit is not None and limit < len(rows):
        rows = rows[np.arange(limit) * len(rows) // limit]
    rows = rows[host::hosts]
    if not len(rows) and gather is None:
        return
    look = _Look(prepared.examples(selection.split), transform)
    ahead = read_ahead(data_cfg, selection.largest_prompt, batch_size)
    reader = _Reader(grain.MapDataset.source(rows), look, data_cfg.workers, ahead)
    share = -(-batch_size // hosts)
    batch: list[T] = []
    try:
        while True:
            read = list(itertools.islice(reader, share))
            found = read if gather is None else gather(read)
            if not found:
                break
            if problems is not None:
                problems.update(reason for item in found for _, reason in item.problems)
            batch += [item.value for item in found if item.value is not None]
            while len(batch) >= batch_size:
                yield batch[:batch_size]
                batch = batch[batch_size:]
        if batch:
            yield batch
    finally:
        reader.close()


@dataclasses.dataclass(frozen=True)
class _WhileOpen:
    """`look` while the folder is there, then `CLOSED` at once. A folder, because Grain pickles what workers run."""

    look: Callable[[Any], Any]
    folder: str

    def __call__(self, number: Any) -> Any:
        return self.look(number) if os.path.isdir(self.folder) else CLOSED


class _Reader(Iterator[Any]):
    """`look` of a Grain dataset's elements, read ahead in threads of this process or in worker processes."""

    def __init__(self, numbers: grain.MapDataset, look: Callable[[Any], Any], workers: int, ahead: int) -> None:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks absl's flags in its workers and fails where nobody parsed them
        self._workers, self._started = workers, False
        self._folder = tempfile.TemporaryDirectory(prefix="vero_jax_reader_") if workers else None
        if self._folder:
            look = _WhileOpen(look, self._folder.name)
        dataset = numbers.map(look).to_iter_dataset(grain.ReadOptions(min(READ_THREADS, ahead), ahead))
        if workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, ahead))
        self._iterator = iter(dataset)

    def __next__(self) -> Any:
        self._started = True
        return next(self._iterator)

    def close(self) -> None:
        """Stops reading ahead, and ends the worker processes."""
        if self._folder:
            self._folder.cleanup()
            if self._started:
                self._drain()
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()

    def _drain(self) -> None:
        """Takes the questions that are finished already.

        A worker that ends gives them to a pipe first. They do not fit, so that Grain would wait 25 s for each worker.
        """
        rest = 0
        try:
            while rest < 2 * self._workers:
                rest = rest + 1 if next(self._iterator) == CLOSED else 0
        except StopIteration:
            pass
        except Exception:  # whatever a user's transform raises: the run that closes must not end by it
            logging.getLogger(__name__).debug("a question failed that nobody waits for", exc_info=True)
