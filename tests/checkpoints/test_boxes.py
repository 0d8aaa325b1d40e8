"""Boxes of tensors: cuts and covers lose nothing, and the fast copies are the plain ones."""

from __future__ import annotations

import itertools

import ml_dtypes
import numpy as np
import pytest

from vero_jax.checkpoints import boxes


def painted(shape: tuple[int, ...], pieces: list[boxes.Box]) -> np.ndarray:
    """How often each element is in one of the boxes."""
    count = np.zeros(shape, int)
    for piece in pieces:
        count[boxes.slices(piece)] += 1
    return count


@pytest.mark.parametrize("limit", [1, 7, 24, 100, 10**6])
@pytest.mark.parametrize("grid", [(), (1, 4), (2,), (3, 5, 2), (50, 50, 50)])
def test_a_cut_box_is_whole_in_order_and_cut_on_the_grid(limit: int, grid: tuple[int, ...]) -> None:
    shape, box = (7, 10, 6), ((1, 7), (3, 10), (0, 6))
    pieces = list(boxes.cut(box, limit, grid))
    np.testing.assert_array_equal(painted(shape, pieces), painted(shape, [box]))
    assert pieces == sorted(pieces)
    for piece in pieces:
        for step, (start, stop), (first, last) in zip(grid, piece, box, strict=False):
            assert start in (first, start - start % step) and (stop == last or stop % step == 0)
        assert grid or np.prod(boxes.extents(piece)) <= max(limit, 6)


def test_a_cover_is_disjoint_and_exact_for_the_parts_of_a_mesh() -> None:
    held = [((0, 2), (4, 6)), ((0, 2), (6, 8)), ((6, 8), (4, 6)), ((6, 8), (6, 8)), ((0, 2), (4, 6))]
    found = boxes.cover(held)
    assert found == [((0, 2), (4, 8)), ((6, 8), (4, 8))]
    np.testing.assert_array_equal(painted((9, 9), found), np.minimum(painted((9, 9), held), 1))
    assert boxes.cover([]) == []


def test_runs_are_the_memory_of_a_box() -> None:
    values = np.arange(4 * 5 * 6).reshape(4, 5, 6)
    for box in itertools.product([(0, 4), (1, 3)], [(0, 5), (2, 3)], [(0, 6), (1, 5)]):
        parts = [values.reshape(-1)[first : first + count] for first, count in boxes.runs(values.shape, box)]
        np.testing.assert_array_equal(np.concatenate(parts), values[boxes.slices(box)].reshape(-1))
    assert len(list(boxes.runs(values.shape, ((1, 3), (0, 5), (0, 6))))) == 1
    assert list(boxes.runs((7,), ((2, 5),))) == [(2, 3)]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("before", "after"),
    [("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float32", "bfloat16"), ("float16", "float32")],
)
def test_a_copy_gives_what_numpy_gives_bit_for_bit(turned: bool, before: str, after: str) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**16, (2, 300, 520), dtype=np.uint16)
    with np.errstate(all="ignore"):
        values = bits.view(before) if before != "float32" else bits.view(ml_dtypes.bfloat16).astype(np.float32) * 1.01
        if turned:
            values = values.swapaxes(1, 2)
        target = np.empty(values.shape, after)
        boxes.copy_into(target, values)
        wanted = np.ascontiguousarray(values).astype(after)
    finite = ~np.isnan(wanted.astype(np.float32))
    assert boxes.same_bits(target[finite], wanted[finite])
    assert np.isnan(target[~finite].astype(np.float32)).all()


def test_memory_is_aligned() -> None:
    for shape in ((3,), (5, 7), (1, 2, 3)):
        found = boxes.aligned_empty(shape, np.dtype(ml_dtypes.bfloat16))
        assert found.ctypes.data % 64 == 0 and found.shape == shape and found.dtype == ml_dtypes.bfloat16


def test_bits_are_compared_not_numbers() -> None:
    nan, zero = np.array([np.nan], np.float32), np.array([0.0], np.float32)
    assert boxes.same_bits(nan, nan.copy())
    assert not boxes.same_bits(zero, -zero)
    assert not boxes.same_bits(zero, zero.astype(np.float64))
