"""Domain mixture: which domain, and which of its questions, stands at each place of the training stream.

Every batch holds the same exact number of questions of each domain. A domain hands out its questions in an order of its
own, all of them once before any of them again. Both are functions of (seed, place), so the stream can be entered
anywhere and a position is one integer: the number of questions drawn so far.
"""

from __future__ import annotations

import functools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from vero_jax.errors import UserError


def parse_weights(value: str | Mapping[str, float] | Sequence[Any]) -> dict[str, float]:
    """Mixture weights from "name:1/6,name:0.2", JSON text, a mapping or a list of pairs; summing to 1.

    Weights of zero or below leave their domain out.

    Raises:
      UserError: a weight is not a finite number, or none is positive.
    """
    pairs: list[Any]
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("{", "[")):
            try:
                return parse_weights(json.loads(text))
            except ValueError as error:
                raise UserError(f"domain weights {value!r} are no JSON ({error})") from error
        pairs = [item.rpartition(":")[::2] for item in text.split(",") if item.strip()]
    elif isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        pairs = list(value)
    weights = {}
    for pair in pairs:
        if isinstance(pair, Mapping) and len(pair) == 1:
            pair = next(iter(pair.items()))
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UserError(f"domain weight {pair!r} is no pair of a name and a number; write name: number")
        weights[str(pair[0]).strip()] = _number(pair[1], str(pair[0]))
    weights = {name: weight for name, weight in weights.items() if weight > 0}
    if not weights:
        raise UserError(f"domain weights {value!r} hold no positive weight; give at least one domain a weight above 0")
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()}


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, str) and "/" in value:
            above, below = value.split("/")
            number = float(above) / float(below)
        else:
            number = float(value)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"weight {value!r} of domain {name!r} is not a number") from error
    if not math.isfinite(number):
        raise UserError(f"weight {value!r} of domain {name!r} is not a finite number")
    return number


def present_weights(weights: Mapping[str, float], available: Mapping[str, int]) -> dict[str, float]:
    """The weights of the domains that have rows, renormalised. Says once which are missing and which are never drawn.

    Raises:
      UserError: no domain with a weight has rows.
    """
    absent = [name for name in weights if not available.get(name)]
    unused = [name for name, count in available.items() if count and name not in weights]
    kept = {name: weight for name, weight in weights.items() if name not in absent}
    if not kept:
        raise UserError(
            f"none of the domains {list(weights)} has rows; the data has {sorted(name for name in available)}: "
            "change data.domain_weights"
        )
    if absent:
        warnings.warn(f"domains without rows are left out of the mixture: {', '.join(absent)}", stacklevel=2)
    if unused:
        warnings.warn(f"domains without a weight are never drawn: {', '.join(unused)}", stacklevel=2)
    whole = sum(kept.values())
    return {name: weight / whole for name, weight in kept.items()}


def batch_counts(weights: Sequence[float], batch_size: int) -> list[int]:
    """Questions of each domain in a batch: floors of the shares, the rest one each to the largest remainders.

    Of equal remainders the earlier domain wins.
    """
    whole = sum(weights)
    shares = [weight / whole * batch_size for weight in weights]
    # Shares such as 0.1 * 30 fall just below a whole number; the tie-break must not depend on such noise either.
    counts = [math.floor(share + 1e-9) for share in shares]
    order = sorted(range(len(weights)), key=lambda place: (-round(shares[place] - counts[place], 9), place))
    for place in order[: batch_size - sum(counts)]:
        counts[place] += 1
    return counts


class Mixture:
    """The place of every sample: sample number -> (domain number, number in that domain's own endless order).

    Args:
      counts: questions of each domain in a batch.
      seed: of the order inside each batch.
    """

    def __init__(self, counts: Sequence[int], seed: int):
        self.counts = tuple(counts)
        self.batch_size = sum(counts)
        self.seed = seed

    def __getitem__(self, sample: int) -> tuple[int, int]:
        batch, place = divmod(sample, self.batch_size)
        domain, offset = _batch_order(self.counts, self.seed, batch)[place]
        return domain, batch * self.counts[domain] + offset


@functools.lru_cache(maxsize=16)
def _batch_order(counts: tuple[int, ...], seed: int, batch: int) -> list[tuple[int, int]]:
    """(domain, which of the domain's questions in this batch) of each place in a batch, shuffled."""
    slots = [(domain, offset) for domain, count in enumerate(counts) for offset in range(count)]
    order = np.random.default_rng((seed, batch)).permutation(len(slots))
    return [slots[place] for place in order]


def reference_epochs(
    owner: Int32[np.ndarray, "rows"], weights: Sequence[float], batch_size: int, seed: int
) -> Iterator[Int64[np.ndarray, "batches B"]]:
    """The exact stream of the reference's sampler, epoch after epoch: row numbers of every batch.

    One generator per epoch, seeded with seed + epoch, permutes every domain in order, permutes a domain again as soon
    as it is used up, and shuffles each batch. An epoch has floor(rows / batch_size) batches and drops what is left.

    Args:
      owner: number of the domain of each row.
      weights: by domain number; all domains must have rows.
    """
    counts = batch_counts(weights, batch_size)
    members = [np.flatnonzero(owner == domain) for domain in range(len(weights))]
    epoch = 0
    while True:
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
        yield np.asarray(batches, np.int64)
        epoch += 1
