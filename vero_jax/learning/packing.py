"""Which responses go to which row, and of which shape the rows are: on the host (numpy).

A compiled program depends on the shape of its rows, so there is a short fixed table of shapes, and a mini-batch takes
the one in which its padding costs least. A row never exceeds its tokens or patches.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from flax.traverse_util import flatten_dict

from vero_jax.data.patches import WITHOUT_WINDOWS, PatchLayout
from vero_jax.errors import UserError
from vero_jax.learning.batching import first_fit_decreasing
from vero_jax.learning.rows import RowPlan
from vero_jax.types import Group

SMALLEST_ROW = 128
ROW_STEP = 64
"""Lengths of rows are multiples of this many tokens."""
PATCH_STEP = 16
"""Patches of rows are multiples of this many: whole merged tokens."""


class RowShape(NamedTuple):
    """T tokens and P vision patches of a row."""

    tokens: int
    patches: int


class Piece(NamedTuple):
    """A group, or a part of its responses with its prefix repeated."""

    group: int
    members: tuple[int, ...]
    size: RowShape


def row_shapes(row_length: int, row_patches: int, rungs: int, patches_per_token: int = 4) -> tuple[RowShape, ...]:
    """The table: `rungs` lengths, each half of the one before (but at least 128 tokens), each without, with some or
    with all of the patches.

    A prompt has a token for every `patches_per_token` patches, so shorter rows need fewer of them.
    """
    lengths = [row_length]
    while len(lengths) < rungs and lengths[-1] > SMALLEST_ROW:
        lengths.append(max(_up(lengths[-1] // 2, ROW_STEP), SMALLEST_ROW))
    shapes = []
    for length in dict.fromkeys(lengths):
        most = min(row_patches, length * patches_per_token)
        patches = dict.fromkeys([0, min(_up(most // 2, PATCH_STEP), most), most])
        shapes += [RowShape(length, P) for P in patches]
    return tuple(shapes)


def pack_rows(
    groups: Sequence[Group],
    *,
    shapes: Sequence[RowShape],
    rows_per_micro_batch: int = 1,
    skip_zero_advantage: bool = True,
    mask_truncated: bool = False,
    oversize: Literal["error", "drop"] = "error",
    patch_layout: PatchLayout = WITHOUT_WINDOWS,
    patch_cost: float = 0.25,
) -> RowPlan:
    """Plans the rows of a mini-batch.

    Out of the loss altogether (rows and denominators): responses without tokens, responses whose score is missing,
    with `mask_truncated` those that hit the length limit, and with `oversize="drop"` those that fit no row. Out of the
    rows but in the denominators: responses whose advantage is exactly zero, if `skip_zero_advantage`; their gradient
    is zero in every policy loss, so that of the mini-batch stays the same; an entropy or KL term needs them.

    A group is one piece if its branches fit a row, else pieces that repeat the prefix. Of the shapes, the one is taken
    whose rows are the least work, padding included; of two equal ones, the longer. The pieces are spread over the rows
    evenly, and rows of like fill are computed together.

    Args:
      shapes: of rows; the first has the largest limits.
      rows_per_micro_batch: rows that are computed together, over all devices.
      oversize: what to do with a response that fits no row.
      patch_layout: of the policy's vision tower.
      patch_cost: work of a vision patch in language tokens.

    Raises:
      UserError: a prompt with one of its responses, or a prompt's images, do not fit a row, and `oversize` is "error".
    """
    limits = RowShape(*(max(shape[axis] for shape in shapes) for axis in range(2)))
    kept: dict[int, list[int]] = {}
    dropped: Counter[str] = Counter()
    sequences = tokens = seen_sequences = seen_tokens = 0
    for g, group in enumerate(groups):
        prefix, patches = len(group.prompt.token_ids), len(group.prompt.patches)
        for r, response in enumerate(group.responses):
            length = len(response.token_ids)
            missing = bool(group.scores) and group.scores[r].missing is not None
            if length == 0 or missing or (mask_truncated and response.stop_reason == "length"):
                continue
            if too_large := _too_large(prefix, patches, length, limits):
                if oversize == "error":
                    raise UserError(f"question {group.prompt.example.id!r}: {too_large[1]}")
                dropped[too_large[0]] += 1
                continue
            sequences, tokens = sequences + 1, tokens + length
            if skip_zero_advantage and group.advantages is not None and group.advantages[r] == 0:
                continue
            seen_sequences, seen_tokens = seen_sequences + 1, seen_tokens + length
            kept.setdefault(g, []).append(r)
    shape, rows = _choose(groups, kept, shapes, rows_per_micro_batch, patch_cost)
    images = [group.prompt.patches for group in groups if len(group.prompt.patches)]
    return RowPlan(
        groups=tuple(groups),
        row_length=shape.tokens,
        row_patches=shape.patches,
        rows_per_micro_batch=rows_per_micro_batch,
        contents=tuple(tuple((piece.group, piece.members) for piece in row) for row in rows),
        sequences=sequences,
        tokens=tokens,
        seen_sequences=seen_sequences,
        seen_tokens=seen_tokens,
        patch_layout=patch_layout,
        dropped=dict(dropped),
        patch_kind=(images[0].shape[1], str(images[0].dtype)) if images else (0, "uint8"),
    )


def empty_plan(
    shape: RowShape, rows_per_micro_batch: int, patch_kind: tuple[int, str], patch_layout: PatchLayout
) -> RowPlan:
    """One micro-batch of rows without groups, to compile programs with."""
    nobody = ((),) * rows_per_micro_batch
    return RowPlan((), *shape, rows_per_micro_batch, nobody, 0, 0, 0, 0, patch_layout, patch_kind=patch_kind)


def patch_cost(params: Any, expert_share: float = 1.0) -> float:
    """Work of a vision patch in language tokens, by the parameters that each meets.

    Args:
      params: the policy's tree, or its shapes.
      expert_share: of a mixture's experts, the share that one token goes to.
    """
    met: Counter[str] = Counter()
    for path, leaf in flatten_dict(params).items():
        if path[-1] != "embedding" or path[0] == "vision":  # the table of tokens, and the head, are met by few
            met[path[0]] += leaf.size * (expert_share if "moe" in path and "router" not in path else 1.0)
    return met["vision"] / met["language"]


def _too_large(prefix: int, patches: int, length: int, limits: RowShape) -> tuple[str, str] | None:
    """Why a response fits no row, as a word and as a sentence; None when it does."""
    if prefix + length > limits.tokens:
        return "tokens", (
            f"a prompt of {prefix} tokens with a response of {length} does not fit actor.row_length={limits.tokens}; "
            "raise it or lower rollout.max_response_length"
        )
    if patches > limits.patches:
        return "patches", (
            f"{patches} vision patches do not fit actor.row_patches={limits.patches}; raise it or lower data.max_pixels"
        )
    return None


def _choose(
    groups: Sequence[Group],
    kept: Mapping[int, Sequence[int]],
    shapes: Sequence[RowShape],
    multiple: int,
    patch_cost: float,
) -> tuple[RowShape, list[list[Piece]]]:
    """The shape with the least work, and the pieces of each of its rows."""
    best: tuple[float, RowShape, list[Piece], list[list[int]]] | None = None
    split: dict[int, list[Piece] | None] = {}
    for shape in sorted(set(shapes), reverse=True):
        if shape.tokens not in split:
            split[shape.tokens] = _pieces(groups, kept, shape)
        pieces = split[shape.tokens]
        if pieces is None or any(piece.size.patches > shape.patches for piece in pieces):
            continue
        each = shape.tokens + patch_cost * shape.patches
        total = RowShape(*(sum(piece.size[axis] for piece in pieces) for axis in range(2)))
        fewest = max((-(-amount // most) for amount, most in zip(total, shape, strict=True) if most), default=0)
        if best is not None and -(-fewest // multiple) * multiple * each >= best[0]:
            continue  # not even a perfect packing would be less work
        bins = first_fit_decreasing([piece.size for piece in pieces], shape)
        cost = -(-len(bins) // multiple) * multiple * each
        if best is None or cost < best[0]:
            best = cost, shape, pieces, bins
    if best is None:
        raise AssertionError("the largest shape holds every response")
    _, shape, pieces, bins = best
    return shape, _spread(pieces, shape, -(-len(bins) // multiple) * multiple) or _by_fill(
        [[pieces[i] for i in items] for items in bins]
    )


def _pieces(groups: Sequence[Group], kept: Mapping[int, Sequence[int]], shape: RowShape) -> list[Piece] | None:
    """The groups' responses in pieces that fit rows of a shape (patches aside); None when one alone does not."""
    pieces = []
    for g, members in kept.items():
        prefix, patches = len(groups[g].prompt.token_ids), len(groups[g].prompt.patches)
        lengths = [len(groups[g].responses[r].token_ids) for r in members]
        room = shape.tokens - prefix
        if max(lengths) > room:
            return None
        for part in first_fit_decreasing([(length,) for length in lengths], (room,)):
            tokens = sum(lengths[i] for i in part)
            size = RowShape(prefix + tokens, patches)
            pieces.append(Piece(g, tuple(members[i] for i in part), size))
    return pieces


def _spread(pieces: Sequence[Piece], shape: RowShape, rows: int) -> list[list[Piece]] | None:
    """The pieces over so many rows, each to the emptiest one (Graham 1969); None when that overfills a row."""
    heap = [(0, row) for row in range(rows)]
    filled: list[list[Piece]] = [[] for _ in range(rows)]
    room = [list(shape) for _ in range(rows)]
    for piece in sorted(pieces, key=lambda piece: (-piece.size.tokens, piece.group, piece.members)):
        full = []
        while heap:
            load, row = heapq.heappop(heap)
            if all(size <= left for size, left in zip(piece.size, room[row], strict=True)):
                break
            full.append((load, row))
        else:
            return None
        filled[row].append(piece)
        room[row] = [left - size for size, left in zip(piece.size, room[row], strict=True)]
        for item in (*full, (load + piece.size.tokens, row)):
            heapq.heappush(heap, item)
    return _by_fill(filled)


def _by_fill(rows: Sequence[list[Piece]]) -> list[list[Piece]]:
    """Fullest rows first: those of a micro-batch are about equally full, so that no device waits for another."""
    ordered = [sorted(row) for row in rows]
    return sorted(ordered, key=lambda row: (-sum(piece.size.tokens for piece in row), row))


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
