"""The stream of training questions and the pass over the validation questions, read ahead by Grain.

    rows kept -> one endless shuffled order per domain -> exact mixture -> this host's share -> decode -> batches

Everything is a function of the sample's number: a run resumes at step k by starting at k * batch_size, whatever the
number of hosts or worker processes was before.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import grain
import numpy as np
from absl import flags
from jaxtyping import Int64

from vero_jax.config import DataConfig
from vero_jax.data import mixture, schema
from vero_jax.data.chat import PromptError, conversation
from vero_jax.data.images import ImageError
from vero_jax.data.prepare import ExampleSource, PreparedData
from vero_jax.errors import UserError
from vero_jax.types import Example

if TYPE_CHECKING:
    from vero_jax.data.processor import Processor

T = TypeVar("T")

READ_THREADS = 2
READ_AHEAD = 64  # finished questions held ready; Grain's own default would be 500 of them, gigabytes of patches
CLOSED = "closed"
"""What a reader that is being closed gives instead of a question."""
MAX_REPLACEMENTS = 32
_BAD_ROW = (schema.RowError, PromptError, ImageError)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which rows of a split are used: their numbers in order, and why the others are not."""

    split: str
    rows: Int64[np.ndarray, "n"]
    domains: tuple[str, ...]
    """The domain of each of `rows`."""
    dropped: Mapping[str, int]
    """Rows left out, by reason."""
    judged: int = 0
    """How many of `rows` need a judge."""

    def __str__(self) -> str:
        text = f"{self.split}: {len(self.rows)} questions"
        if self.dropped:
            text += ", left out " + ", ".join(f"{count} ({reason})" for reason, count in self.dropped.items())
        return text


def select_rows(
    prepared: PreparedData,
    split: str,
    *,
    judge: str = "none",
    own_types: Collection[str] = (),
    processor: Processor | None = None,
) -> Selection:
    """Leaves out the rows that cannot be used in this run, from the index alone (no image is read).

    Args:
      prepared: the data.
      split: its split.
      judge: "none" leaves out the questions that only a judge can score.
      own_types: reward types that the user's own functions score, so that they need no judge.
      processor: with one, prompts that it cannot make, or longer than its `max_prompt_length`, are left out too.

    Raises:
      UserError: nothing is left.
    """
    columns = ["domain", "reward_type"]
    if processor is not None:
        columns += ["messages", "widths", "heights"]
    index = prepared.index(split, columns)
    needs_judge = set(schema.JUDGE_TYPES) - set(own_types)
    judged = 0
    rows: list[int] = []
    dropped: collections.Counter[str] = collections.Counter()
    for row, reward_type in enumerate(index["reward_type"]):
        reason = None
        if judge == "none" and reward_type in needs_judge:
            reason = "needs a judge, reward.judge is none"
        elif processor is not None:
            sizes = list(zip(index["widths"][row], index["heights"][row], strict=True))
            reason = _prompt_problem(processor, json.loads(index["messages"][row]), sizes)
        if reason is None:
            rows.append(row)
            judged += reward_type in needs_judge
        else:
            dropped[reason] += 1
    domains = tuple(index["domain"][row] for row in rows)
    selection = Selection(split, np.asarray(rows, np.int64), domains, dict(dropped), judged)
    if not rows:
        raise UserError(
            f"no question of {prepared.source} is left to use ({selection}); check the split's name and limits"
        )
    return selection


def _prompt_problem(processor: Processor, messages: Sequence[Mapping[str, str]], sizes: schema.Sizes) -> str | None:
    try:
        length = prompt_length(processor, messages, sizes)
    except PromptError as error:
        return error.reason
    limit = processor.max_prompt_length
    return "prompt too long" if limit is not None and length > limit else None


def prompt_length(processor: Processor, messages: Sequence[Mapping[str, str]], sizes: schema.Sizes) -> int:
    """Tokens of the prompt of some messages with images of the stored `sizes` (width, height), image tokens included.

    Raises:
      PromptError: these messages and images make no prompt.
    """
    text = processor.template.render(conversation(messages, len(sizes), processor.system_prompt))
    length = len(processor.tokenizer.encode(text, add_special_tokens=False).ids) - len(sizes)
    for width, height in sizes:
        length += processor.image_tokens(width, height)
    return length


@dataclasses.dataclass(frozen=True)
class _Drawn(Generic[T]):
    """What stands at one place of the stream, and the (row id, reason) of the rows that could not stand there."""

    value: T | None
    problems: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class _Draw(Generic[T]):
    """Sample number -> question. Pickled to Grain's workers."""

    mixture: mixture.Mixture
    names: tuple[str, ...]
    orders: tuple[Any, ...]
    """For each domain an endless Grain dataset of row numbers."""
    sizes: tuple[int, ...]
    source: ExampleSource
    transform: Callable[[Example], T] | None

    def __call__(self, sample: int) -> _Drawn[T]:
        domain, place = self.mixture[int(sample)]
        problems: list[tuple[str, str]] = []
        # A replacement comes from half a pass further on: the next ones stand in this very batch already.
        far = place + self.sizes[domain] // 2
        for at in [place, *range(far, far + min(MAX_REPLACEMENTS, self.sizes[domain]))]:
            example = self.source[int(self.orders[domain][at])]
            try:
                value = example if self.transform is None else self.transform(example)
            except _BAD_ROW as error:
                problems.append((example.id, error.reason))
                continue
            return _Drawn(value, tuple(problems))  # type: ignore[arg-type]  # T is Example where transform is None
        raise UserError(
            f"{len(problems)} questions in a row of domain {self.names[domain]!r} cannot be used, the last one "
            f"({problems[-1][0]}) because: {problems[-1][1]}"
        )


class QuestionStream(Generic[T]):
    """Training batches by step number, with exact domain counts in each.

    Args:
      prepared: the data.
      data_cfg: split, weights, seed and number of workers.
      batch_size: questions per step, over all hosts.
      start_step: the step (from 0) that is asked for first, so that reading ahead starts there.
      transform: Example -> what batches hold, in a worker thread or process; a `RowError`, `PromptError` or
        `ImageError` it raises replaces the row by another one of its domain and is counted. None: the examples.
      selection: the rows to use; None uses all that need no judge.
      host, hosts: which share of every batch this process gets; `hosts` divides `batch_size`.

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
    ):
        if batch_size < 1 or batch_size % hosts:
            raise UserError(
                f"a batch of {batch_size} questions does not divide over {hosts} hosts; change the batch size"
            )
        selection = selection or select_rows(prepared, data_cfg.train_split)
        domains = np.asarray(selection.domains)
        self.available = {
            str(name): int(count) for name, count in zip(*np.unique(domains, return_counts=True), strict=True)
        }
        self.weights = mixture.present_weights(mixture.parse_weights(data_cfg.domain_weights), self.available)
        self.counts = dict(
            zip(self.weights, mixture.batch_counts(list(self.weights.values()), batch_size), strict=True)
        )
        """Questions of each domain in every batch."""
        self.batch_size = batch_size
        self.problems: collections.Counter[str] = collections.Counter()
        """Rows that had to be replaced in the batches given out so far, by reason."""
        self._share, self._host, self._hosts = batch_size // hosts, host, hosts
        self._workers = data_cfg.workers
        self._fingerprint = f"{prepared.fingerprint}-{zlib.crc32(selection.rows.tobytes()):08x}"
        self._seed = data_cfg.seed
        orders, sizes = [], []
        for name in self.weights:
            rows = selection.rows[domains == name]
            seed = zlib.crc32(f"{data_cfg.seed}/{name}".encode())  # a domain's order does not depend on the others
            orders.append(grain.MapDataset.source(rows).shuffle(seed=seed).repeat())
            sizes.append(len(rows))
        self._draw = _Draw(
            mixture=mixture.Mixture(list(self.counts.values()), data_cfg.seed),
            names=tuple(self.weights),
            orders=tuple(orders),
            sizes=tuple(sizes),
            source=prepared.examples(selection.split),
            transform=transform,
        )
        self._reader: _Reader | None = None
        self._next_step = start_step

    def batch(self, step: int) -> list[T]:
        """This host's share of the batch of a step (from 0). Steps in a row are read ahead, any may be asked for."""
        if self._reader is None or step != self._next_step:
            self.close()
            first = step * self.batch_size + self._host
            numbers = grain.MapDataset.range(first, sys.maxsize, self._hosts)
            self._reader = _Reader(numbers, self._draw, self._workers)
        drawn = [next(self._reader) for _ in range(self._share)]
        self._next_step = step + 1
        for item in drawn:
            self.problems.update(reason for _, reason in item.problems)
        return [item.value for item in drawn]  # type: ignore[misc]

    def iterate(self, start_step: int = 0) -> Iterator[list[T]]:
        """Batches without end, from a step on."""
        step = start_step
        while True:
            yield self.batch(step)
            step += 1

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint keeps before `step`: the number of questions drawn, and what the order depends on."""
        return {"samples": step * self.batch_size, "seed": self._seed, "fingerprint": self._fingerprint}

    def step_of(self, state: Mapping[str, Any]) -> int:
        """The step to go on with.

        Raises:
          UserError: the state belongs to other data, another order or another batch size.
        """
        for key, mine in (("seed", self._seed), ("fingerprint", self._fingerprint)):
            if state[key] != mine:
                raise UserError(
                    f"the checkpoint's questions have {key} {state[key]!r}, this run's {mine!r}: the data, its filter "
                    "or data.seed changed; start a new run, or put the old settings back"
                )
        step, rest = divmod(int(state["samples"]), self.batch_size)
        if rest:
            raise UserError(
                f"the checkpoint stands at {state['samples']} questions, which is no multiple of this run's batch of "
                f"{self.batch_size}; use the old trainer.prompts_per_step"
            )
        return step

    def close(self) -> None:
        """Stops reading ahead."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def __enter__(self) -> QuestionStream[T]:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclasses.dataclass(frozen=True)
class _Look(Generic[T]):
    """Row number -> question; a row that cannot be used gives no value."""

    source: ExampleSource
    transform: Callable[[Example], T] | None

    def __call__(self, row: int) -> _Drawn[T]:
        example = self.source[int(row)]
        try:
            return _Drawn(example if self.transform is None else self.transform(example))  # type: ignore[arg-type]
        except _BAD_ROW as error:
            return _Drawn(None, ((example.id, error.reason),))


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
) -> Iterator[list[T]]:
    """Every validation question once, in order; the last batch may be smaller.

    Args:
      prepared, data_cfg, transform: as for `QuestionStream`; `data_cfg.max_val_examples` takes that many, evenly
        spread.
      batch_size: questions per list on this host.
      selection: the rows to use; None uses all of the validation split that need no judge.
      problems: counts the rows that could not be used, by reason; they are left out.
      host, hosts: this process takes every `hosts`-th question.
    """
    selection = selection or select_rows(prepared, data_cfg.val_split)
    rows = selection.rows
    limit = data_cfg.max_val_examples
    if limit is not None and limit < len(rows):
        rows = rows[np.arange(limit) * len(rows) // limit]
    rows = rows[host::hosts]
    if not len(rows):
        return
    look = _Look(prepared.examples(selection.split), transform)
    reader = _Reader(grain.MapDataset.source(rows), look, data_cfg.workers)
    batch: list[T] = []
    try:
        for item in reader:
            if problems is not None:
                problems.update(reason for _, reason in item.problems)
            if item.value is not None:
                batch.append(item.value)
            if len(batch) == batch_size:
                yield batch
                batch = []
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

    def __init__(self, numbers: grain.MapDataset, look: Callable[[Any], Any], workers: int) -> None:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain asks absl's flags in its workers and fails where nobody parsed them
        self._workers, self._started = workers, False
        self._folder = tempfile.TemporaryDirectory(prefix="vero_jax_reader_") if workers else None
        if self._folder:
            look = _WhileOpen(look, self._folder.name)
        dataset = numbers.map(look).to_iter_dataset(grain.ReadOptions(READ_THREADS, READ_AHEAD))
        if workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(workers, READ_AHEAD))
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
