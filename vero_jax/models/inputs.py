"""What the model reads, as device arrays: one packed buffer of vision patches and one row of language tokens.

Both are pytrees with a leading batch axis (B), so a jitted function takes them with one sharding. Axes: B rows,
T tokens in a row, P vision patches in a row's buffer, E elements of a patch.
"""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Float32, Int32, UInt8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class VisionInputs:
    """One packed patch buffer per row; the images of a row stand one after the other, padding last.

    Inside an image, patches are in the order of `data.patches.PatchLayout`.
    """

    patches: UInt8[Array, "B P E"] | Float32[Array, "B P E"]
    """Raw pixels (uint8, normalised on the device), or values normalised already (float32)."""
    coords: Int32[Array, "B P 2"]
    """(row, column) of each patch in its image, counted in patches, in merge-block order."""
    sizes: Int32[Array, "B P 2"]
    """(height, width) of the patch's image, in patches."""
    segments: Int32[Array, "B P"]
    """Which frame of which image a patch belongs to, counted from 1 inside the row; 0 is padding."""
    windows: Int32[Array, "B P"] | None = None
    """Which attention window a patch belongs to, likewise; None for towers without windows."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenInputs:
    """One row of language tokens: prompts as prefixes, responses as branches, padding last."""

    token_ids: Int32[Array, "B T"]
    positions: Int32[Array, "B T 3"]
    """Rotary position on the axes (time, height, width)."""
    image_index: Int32[Array, "B T"]
    """Index into the row's merged visual tokens (P / 4 of them), -1 for text."""
    groups: Int32[Array, "B T"]
    """Number of the group inside the row, from 1; 0 is padding."""
    branches: Int32[Array, "B T"]
    """0 in the prefix, from 1 in the branches."""
