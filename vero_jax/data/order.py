"""Which question stands at each place of the training stream.

Every batch holds an exact number of questions of each domain. A domain hands out its questions in an order of its own,
all of them once before any of them again. All of it is a function of (seed, place), so the stream can be entered
anywhere and a position is one integer: the number of questions drawn so far.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np
from jaxtyping import Int32, Int64

from vero_jax.data.mixture import batch_counts, rotating_counts
from vero_jax.data.selection import Selection
from vero_jax.errors import UserError


class Order(Protocol):
    """Sample number -> row, and the rows that may stand in for one that cannot be used. Can be pickled for workers."""

    names: tuple[str, ...]
    """The domains, in the order in which they take part."""

    def draw(self, sample: int) -> tuple[int, int]:
        """(number of the domain, number of the row)."""

    def others(self, sample: int) -> Iterator[int]:
        """Further rows of the domain of a sample, each of them once."""

    def counts(self, batch: int) -> dict[str, int]:
        """Questions of each domain in a batch."""


class Mixture:
    """The place of every sample: sample number -> (domain number, number in that domain's own endless order).

    Args:
      weights: of each domain; with `rotate=False`, whole numbers that sum to `batch_size` are its counts.
      batch_size: questions of a batch.
      seed: of the order inside each batch.
      rotate: places that do not divide go round the domains; False gives every batch the same counts.
    """

    def __init__(self, weights: Sequence[float], batch_size: int, seed: int, rotate: bool = False):
        self.batch_size, self.seed = batch_size, seed
        self._weights, self._rotate = tuple(weights), rotate
        self._counts = tuple(batch_counts(weights, batch_size))

    def counts(self, batch: int) -> tuple[int, ...]:
        """Questions of each domain in a batch."""
        return tuple(_rotated(self._weights, self.batch_size, batch)[0]) if self._rotate else self._counts

    def __getitem__(self, sample: int) -> tuple[int, int]:
        batch, place = divmod(sample, self.batch_size)
        domain, offset = _batch_order(self.counts(batch), self.seed, batch)[place]
        if self._rotate:
            before = _rotated(self._weights, self.batch_size, batch)[1][domain]
        else:
            before = batch * self._counts[domain]
        return domain, before + offset


@functools.lru_cache(maxsize=16)
def _batch_order(counts: tuple[int, ...], seed: int, batch: int) -> list[tuple[int, int]]:
    """(domain, which of the domain's questions in this batch) of each place in a batch, shuffled."""
    slots = [(domain, offset) for domain, count in enumerate(counts) for offset in range(count)]
    order = np.random.default_rng((seed, batch)).permutation(len(slots))
    return [slots[place] for place in order]


@functools.lru_cache(maxsize=16)
def _rotated(weights: tuple[float, ...], batch_size: int, batch: int) -> tuple[list[int], list[int]]:
    """The counts of a batch, and how many questions of each domain stand in all the batches before it."""
    block = 1 << max(batch.bit_length(), 10)  # batches that are computed at once
    counts, before = _rotated_block(weights, batch_size, block)
    return counts[batch].tolist(), before[batch].tolist()


@functools.lru_cache(maxsize=2)
def _rotated_block(
    weights: tuple[float, ...], batch_size: int, block: int
) -> tuple[Int64[np.ndarray, "batches D"], Int64[np.ndarray, "batches D"]]:
    counts = rotating_counts(weights, batch_size, block)
    return counts, np.cumsum(counts, axis=0) - counts


class OwnOrder:
    """Exact counts in every batch, and an endless shuffled order for each domain that does not depend on the others.

    Args:
      selection: the rows.
      weights: of the domains that are drawn.
      batch_size, seed: as of the run.
      rotate: see `Mixture`.
    """

    def __init__(self, selection: Selection, weights: Mapping[str, float], batch_size: int, seed: int, rotate: bool):
        self.names = tuple(weights)
        self._mixture = Mixture(list(weights.values()), batch_size, seed, rotate)
        self._orders: list[Any] = []
        self._sizes: list[int] = []
        for name in self.names:
            rows = selection.rows[selection.domains == selection.names.index(name)]
            own = zlib.crc32(f"{seed}/{name}".encode())
            self._orders.append(grain.MapDataset.source(rows).shuffle(seed=own).repeat())
            self._sizes.append(len(rows))

    def draw(self, sample: int) -> tuple[int, int]:
        domain, place = self._mixture[sample]
        return domain, int(self._orders[domain][place])

    def others(self, sample: int) -> Iterator[int]:
        domain, place = self._mixture[sample]
        # From half a pass further on: the next ones stand in this very batch already.
        far = place + self._sizes[domain] // 2
        seen = set()
        for at in range(far, far + 2 * self._sizes[domain]):  # two passes in part: together they hold every row
            row = int(self._orders[domain][at])
            if row not in seen:
                seen.add(row)
                yield row

    def counts(self, batch: int) -> dict[str, int]:
        return dict(zip(self.names, self._mixture.counts(batch), strict=True))


class ReferenceOrder:
    """The batches of the reference's sampler, to the row: see `reference_epoch`.

    Args:
      selection: the rows, in the order of the reference's files.
      weights, batch_size, seed: as of the run.

    Raises:
      UserError: there are fewer rows than a batch takes.
    """

    def __init__(self, selection: Selection, weights: Mapping[str, float], batch_size: int, seed: int):
        self.names = tuple(weights)
        self._shares = tuple(weights.values())
        self._batch_size, self._seed = batch_size, seed
        self._rows = selection.rows
        places = [self.names.index(name) if name in self.names else -1 for name in selection.names]
        self._owner = np.asarray(places, np.int32)[selection.domains]
        self._batches = len(self._rows) // batch_size
        if not self._batches:
            raise UserError(
                f"data.mixture.order=reference needs at least one batch of rows: {len(self._rows)} rows are left and "
                f"trainer.prompts_per_step is {batch_size}"
            )
        self._kept: tuple[int, Int64[np.ndarray, "batches B"]] | None = None

    def draw(self, sample: int) -> tuple[int, int]:
        place = self._place(sample)
        return int(self._owner[place]), int(self._rows[place])

    def others(self, sample: int) -> Iterator[int]:
        place = self._place(sample)
        same = np.flatnonzero(self._owner == self._owner[place])
        start = int(np.searchsorted(same, place)) + len(same) // 2
        for step in range(len(same)):
            yield int(self._rows[same[(start + step) % len(same)]])

    def counts(self, batch: int) -> dict[str, int]:
        del batch  # all alike
        return dict(zip(self.names, batch_counts(self._shares, self._batch_size), strict=True))

    def _place(self, sample: int) -> int:
        batch, inside = divmod(sample, self._batch_size)
        epoch, batch = divmod(batch, self._batches)
        if self._kept is None or self._kept[0] != epoch:
            self._kept = epoch, reference_epoch(self._owner, self._shares, self._batch_size, self._seed, epoch)
        return int(self._kept[1][batch, inside])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def reference_epoch(
    owner: Int32[np.ndarray, "rows"], weights: Sequence[float], batch_size: int, seed: int, epoch: int
) -> Int64[np.ndarray, "batches B"]:
    """The exact stream of the reference's sampler in one epoch: places in `owner` of every batch.

    One generator per epoch, seeded with seed + epoch, permutes every domain in order, permutes a domain again as soon
    as it is used up, and shuffles each batch. An epoch has floor(rows / batch_size) batches and drops what is left.

    Args:
      owner: number of the domain of each row, -1 for rows that are never drawn.
      weights: by domain number; all domains must have rows.
    """
    counts = batch_counts(weights, batch_size)
    members = [np.flatnonzero(owner == domain) for domain in range(len(weights))]
    rng = np.random.default_rng(seed + epoch)
    orders = [rng.permutation(rows) for rows in members]
    used = [0] * len(members)
    batches = []
    for _ in range(len(owner) // batch_size):
        batch: list[int] = []
        for domain, count in enumerate(counts):
            while count:
                take = orders[domain][used[domain] : used[domain] + count]
                batch += take.tolist()
                used[domain] += len(take)
                count -= len(take)
                if used[domain] == len(orders[domain]):
                    orders[domain], used[domain] = rng.permutation(members[domain]), 0
        rng.shuffle(batch)
        batches.append(batch)
    return np.asarray(batches, np.int64)
