"""Where a new vision tower starts from: a position table that tells any two places apart."""

from __future__ import annotations

import numpy as np
import pytest

from vero_jax.models.vision import position_waves


def test_one_half_of_the_table_tells_rows_and_the_other_columns():
    table = position_waves(4, 16).reshape(4, 4, 16)
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table[:, :, :8], np.broadcast_to(table[:, :1, :8], (4, 4, 8)))
    np.testing.assert_array_equal(table[:, :, 8:], np.broadcast_to(table[:1, :, 8:], (4, 4, 8)))
    np.testing.assert_array_equal(table[:, 0, :8], table[0, :, 8:])


@pytest.mark.parametrize(("side", "width"), [(1, 16), (2, 4), (4, 16), (16, 128)])
def test_places_differ_and_entries_are_of_order_one(side, width):
    table = position_waves(side, width)
    assert table.shape == (side * side, width)
    assert np.abs(table).max() <= 1
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1) + np.eye(side * side)
    assert distances.min() > 0.05


def test_columns_that_make_no_group_of_four_are_zero():
    table = position_waves(3, 10)
    assert not table[:, 8:].any()
    assert table[:, :8].any(axis=0).all()
