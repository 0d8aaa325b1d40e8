"""Arithmetic of batches on the host: bins under a cap, balanced parts, masks and padding of token matrices."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from vero_jax.errors import UserError


def first_fit_decreasing(sizes: Sequence[Sequence[int]], caps: Sequence[int]) -> list[list[int]]:
    """Bins under several caps at once: items in order of falling first size, each into the first bin with room.

    At most 11/9 of the optimal number of bins (+ 1) for one cap (D. Johnson, 1973). Deterministic: ties by index.

    Args:
      sizes: for every item its size under each cap.
      caps: what no bin may exceed.

    Returns:
      the items of each bin, in rising order.

    Raises:
      UserError: an item alone exceeds a cap.
    """
    order = sorted(range(len(sizes)), key=lambda item: ([-size for size in sizes[item]], item))
    bins: list[list[int]] = []
    room: list[list[int]] = []
    for item in order:
        if any(size > cap for size, cap in zip(sizes[item], caps, strict=True)):
            raise UserError(f"item {item} of size {tuple(sizes[item])} is larger than the limit {tuple(caps)}")
        fits = (all(size <= free for size, free in zip(sizes[item], left, strict=True)) for left in room)
        number = next((number for number, enough in enumerate(fits) if enough), len(bins))
        if number == len(bins):
            bins.append([])
            room.append(list(caps))
        bins[number].append(item)
        room[number] = [free - size for free, size in zip(room[number], sizes[item], strict=True)]
    return [sorted(items) for items in bins]


def dynamic_batches(lengths: Int[np.ndarray, "S"], cap: int, *, multiple_of: int = 1) -> list[list[int]]:
    """Micro-batches whose token sum never exceeds `cap`, their number a multiple of `multiple_of` (some may be empty).

    (The reference chooses their number from the cap and may then exceed it; a static shape cannot.)
    """
    bins = first_fit_decreasing([(int(length),) for length in lengths], (cap,))
    return bins + [[] for _ in range(-len(bins) % multiple_of)]


def balanced_parts(lengths: Int[np.ndarray, "S"], parts: int) -> list[list[int]]:
    """Splits items into parts of equal number with sums as equal as can be had cheaply.

    Largest differencing method (Karmarkar and Karp, 1982) on tuples of one item per part: the two partial solutions
    with the widest spread are merged, heaviest part with lightest, until one is left.

    Returns:
      the items of each part, in rising order.

    Raises:
      UserError: the number of items is no multiple of `parts`.
    """
    if len(lengths) % parts:
        raise UserError(f"{len(lengths)} items cannot be split into {parts} parts of equal number")
    order = sorted(range(len(lengths)), key=lambda item: (int(lengths[item]), item))
    heap: list[tuple[int, int, list[tuple[int, list[int]]]]] = []
    for start in range(0, len(order), parts):
        solution = sorted((int(lengths[item]), [item]) for item in order[start : start + parts])
        heap.append((solution[0][0] - solution[-1][0], start, solution))
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, age, one), (_, other_age, other) = heapq.heappop(heap), heapq.heappop(heap)
        merged = sorted((a + b, x + y) for (a, x), (b, y) in zip(one, reversed(other), strict=True))
        heapq.heappush(heap, (merged[0][0] - merged[-1][0], min(age, other_age), merged))
    return [sorted(items) for _, items in heap[0][2]] if heap else [[] for _ in range(parts)]


def sequence_length_metrics(lengths: Int[np.ndarray, "S"], parts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Token totals of equal consecutive chunks, and of the parts that replaced them (`global_seqlen/*`)."""
    lengths = np.asarray(lengths, np.int64)
    before = lengths.reshape(len(parts), -1).sum(axis=1)
    after = [int(lengths[list(part)].sum()) for part in parts]
    return {
        "global_seqlen/min": float(before.min()),
        "global_seqlen/max": float(before.max()),
        "global_seqlen/minmax_diff": float(before.max() - before.min()),
        "global_seqlen/balanced_min": float(min(after)),
        "global_seqlen/balanced_max": float(max(after)),
        "global_seqlen/mean": float(lengths.sum() / len(parts)),
    }


def equal_slices(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most `size`, as equal as possible: an update never sees a tiny remainder."""
    number = max(math.ceil(count / size), 1)
    bounds = [count * i // number for i in range(number + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(bounds)]


def response_mask(response_ids: Int[np.ndarray, "S R"], stop_ids: Sequence[int]) -> Int[np.ndarray, "S R"]:
    """1 up to and including the first stop id of each padded row; a row without one is all ones.

    Only for rows whose lengths are unknown: padding before a stop id cannot be seen. The sampler reports lengths.
    """
    is_stop = np.isin(response_ids, list(stop_ids)).astype(np.int32)
    return (np.cumsum(is_stop, axis=1) - is_stop == 0).astype(np.int32)


def fit_prompt(
    input_ids: Int[np.ndarray, "b T"],
    attention_mask: Int[np.ndarray, "b T"],
    max_length: int,
    pad_id: int,
    truncation: str,
) -> tuple[Int[np.ndarray, "b M"], Int[np.ndarray, "b M"]]:
    """Prompts of exactly `max_length` tokens: padded on the left, or cut.

    Args:
      truncation: "left" keeps the last tokens, "right" the first, "middle" the first floor(M / 2) and the last of the
        rest, "error" refuses.

    Raises:
      UserError: the prompt is longer and truncation is "error", or the word is unknown.
    """
    length = input_ids.shape[1]
    if length <= max_length:
        padding = ((0, 0), (max_length - length, 0))
        return np.pad(input_ids, padding, constant_values=pad_id), np.pad(attention_mask, padding)
    if truncation == "left":
        kept = np.arange(length - max_length, length)
    elif truncation == "right":
        kept = np.arange(max_length)
    elif truncation == "middle":
        head = max_length // 2
        kept = np.concatenate([np.arange(head), np.arange(length - (max_length - head), length)])
    elif truncation == "error":
        raise UserError(f"a prompt of {length} tokens is longer than {max_length}; raise the limit or drop it")
    else:
        raise UserError(f"unknown truncation {truncation!r}; use left, right, middle or error")
    return input_ids[:, kept], attention_mask[:, kept]
