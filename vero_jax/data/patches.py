"""In which order a picture's patches lie in the buffer that the vision tower reads, and how they are labelled.

A `Prompt` holds patches in merge-block order, as Hugging Face's processors give them. A tower with attention windows
(Qwen2.5-VL) reads them window by window, so that a block of attention meets few windows. Both the order and its undoing
are done here, on the host: the tower's outputs stay in buffer order, and the tokens' `image_index` points into that.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int, Int32

from vero_jax.data.geometry import patch_geometry


@dataclasses.dataclass(frozen=True)
class ArrangedPatches:
    """The patches of some pictures in buffer order; P patches, M merged visual tokens."""

    coords: Int32[np.ndarray, "P 2"]
    """(row, column) of the patch inside its frame, in patches."""
    sizes: Int32[np.ndarray, "P 2"]
    """(height, width) of that frame, in patches."""
    segments: Int32[np.ndarray, "P"]
    """Number of the frame over all pictures, from 1."""
    windows: Int32[np.ndarray, "P"] | None
    """Number of the attention window over all frames, from 1; None for towers without windows."""
    order: Int32[np.ndarray, "P"]
    """Which patch of the prompt lies at each place of the buffer."""
    places: Int32[np.ndarray, "M"]
    """Where in the buffer each merged token of the prompt lies, counted in merged tokens."""


@dataclasses.dataclass(frozen=True)
class PatchLayout:
    """What of a vision tower decides the order of its patches. Hashable.

    Attributes:
      merge_size: patches along one side of a merged token.
      window: merged tokens along one side of an attention window, 0 for towers without.
    """

    merge_size: int = 2
    window: int = 0

    @property
    def patches_per_token(self) -> int:
        return self.merge_size**2

    def arrange(self, grids: Int[np.ndarray, "I 3"]) -> ArrangedPatches:
        """Places the patches of pictures with these grids (frames, height, width in patches).

        Windows are numbered row by row inside each frame, and cut off at the right and lower edge (Qwen2.5-VL, Bai et
        al. 2025, arXiv:2502.13923, section 2.1.1).

        Raises:
          ValueError: a side of a grid is not a multiple of `merge_size`.
        """
        coords, sizes, segments = patch_geometry(grids, self.merge_size)
        if not self.window:
            order = np.arange(len(coords), dtype=np.int32)
            return ArrangedPatches(coords, sizes, segments, None, order, order[: len(order) // self.patches_per_token])
        side = self.merge_size * self.window
        row, column = (coords[:: self.patches_per_token] // side).T
        frame = segments[:: self.patches_per_token]
        # Merged tokens are in raster order already, so a stable sort by window keeps that order inside each.
        tokens = np.lexsort((column, row, frame))
        label = np.stack([frame, row, column], axis=1)[tokens]
        starts = np.ones(len(tokens), bool)
        starts[1:] = (label[1:] != label[:-1]).any(axis=1)
        order = (tokens[:, None] * self.patches_per_token + np.arange(self.patches_per_token)).reshape(-1)
        return ArrangedPatches(
            coords[order],
            sizes[order],
            segments[order],
            np.repeat(np.cumsum(starts), self.patches_per_token).astype(np.int32),
            order.astype(np.int32),
            np.argsort(tokens).astype(np.int32),
        )


WITHOUT_WINDOWS = PatchLayout()
"""Of Qwen3-VL, and of models that see nothing."""
