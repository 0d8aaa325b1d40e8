"""The order of patches in a tower's buffer, with and without attention windows."""

from __future__ import annotations

import numpy as np
import pytest

from vero_jax.data.geometry import patch_geometry
from vero_jax.data.patches import PatchLayout

GRIDS = np.asarray([[1, 10, 6], [2, 4, 8], [1, 2, 2]])


def test_without_windows_nothing_moves() -> None:
    arranged = PatchLayout().arrange(GRIDS)
    coords, sizes, segments = patch_geometry(GRIDS)
    np.testing.assert_array_equal(arranged.order, np.arange(60 + 64 + 4))
    np.testing.assert_array_equal(arranged.places, np.arange(32))
    assert arranged.windows is None
    for ours, plain in ((arranged.coords, coords), (arranged.sizes, sizes), (arranged.segments, segments)):
        np.testing.assert_array_equal(ours, plain)


def test_windows_hold_square_parts_of_one_frame_and_lie_together() -> None:
    arranged = PatchLayout(merge_size=2, window=2).arrange(GRIDS)
    windows = arranged.windows
    assert windows is not None
    assert (np.diff(windows) >= 0).all() and set(np.diff(windows)) <= {0, 1} and windows[0] == 1
    for window in np.unique(windows):
        here = windows == window
        assert len(np.unique(arranged.segments[here])) == 1
        assert len(np.unique(arranged.coords[here] // 4, axis=0)) == 1
    # 5 x 3, twice 2 x 4, and 1 x 1 merged tokens in windows of 2 x 2: the right and lower edge have smaller ones.
    assert windows.max() == 3 * 2 + 2 * (1 * 2) + 1
    assert sorted(np.bincount(windows)[1:]) == [4, 4, 8, 8, 8] + [16] * 6


def test_windows_and_tokens_follow_the_raster() -> None:
    arranged = PatchLayout(merge_size=2, window=2).arrange(np.asarray([[1, 6, 6]]))
    tokens = arranged.coords[::4] // 2
    assert tokens[:, 0].tolist() == [0, 0, 1, 1, 0, 1, 2, 2, 2]
    assert tokens[:, 1].tolist() == [0, 1, 0, 1, 2, 2, 0, 1, 2]


@pytest.mark.parametrize("window", [0, 1, 2, 3, 7])
def test_tokens_find_their_patches(window: int) -> None:
    arranged = PatchLayout(merge_size=2, window=window).arrange(GRIDS)
    coords, _, segments = patch_geometry(GRIDS)
    np.testing.assert_array_equal(coords[arranged.order], arranged.coords)
    np.testing.assert_array_equal(segments[arranged.order], arranged.segments)
    np.testing.assert_array_equal(arranged.order.reshape(-1, 4)[arranged.places], np.arange(128).reshape(-1, 4))


def test_no_pictures_are_fine() -> None:
    arranged = PatchLayout(merge_size=2, window=2).arrange(np.zeros((0, 3), np.int32))
    assert len(arranged.order) == len(arranged.places) == len(arranged.windows) == 0


def test_a_side_that_does_not_divide_into_tokens_is_an_error() -> None:
    with pytest.raises(ValueError, match="no multiple of 2"):
        PatchLayout(merge_size=2, window=2).arrange(np.asarray([[1, 3, 4]]))


@pytest.mark.parity
@pytest.mark.parametrize("window_size", [8, 16, 24, 112])
def test_transformers_has_the_same_windows(window_size: int) -> None:
    torch = pytest.importorskip("torch")
    from transformers.vision_utils import get_vision_window_index

    index, bounds = get_vision_window_index(
        torch.from_numpy(GRIDS), spatial_merge_size=2, window_size=window_size, patch_size=4
    )
    arranged = PatchLayout(merge_size=2, window=window_size // 8).arrange(GRIDS)
    np.testing.assert_array_equal(arranged.order.reshape(-1, 4)[:, 0] // 4, index.numpy())
    starts = np.flatnonzero(np.diff(arranged.windows, prepend=0))
    np.testing.assert_array_equal([*starts, len(arranged.windows)], np.unique(bounds.numpy()))
