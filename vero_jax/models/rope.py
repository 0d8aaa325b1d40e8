"""Rotary positions (Su et al. 2021): three-axis for text, two-axis for patches. Positions are data.

Both use the half-split convention: the first half of a head's numbers is rotated against the second half.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

VISION_THETA = 10000.0


def inverse_frequencies(size: int, theta: float) -> Float32[np.ndarray, "F"]:
    """theta ** -(2 i / size) for i in 0 .. size/2 - 1, rounded to float32 step by step as torch rounds it."""
    exponents = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return np.float32(1.0) / np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def interleaved_axes(section: tuple[int, int, int], count: int) -> Int32[np.ndarray, "F"]:
    """Which axis (0 time, 1 height, 2 width) each of `count` frequencies reads, in Qwen3-VL's interleaved order.

    Height has frequencies 1, 4, 7, ... and width 2, 5, 8, ..., as many as `section` says; time has the others.
    """
    axes = np.zeros(count, np.int32)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes


def chunked_axes(section: tuple[int, int, int], count: int) -> Int32[np.ndarray, "F"]:
    """The same in Qwen2.5-VL's order: the lowest frequencies for time, then those for height, then width."""
    return np.repeat(np.arange(3, dtype=np.int32), section)[:count]


def text_rotary(
    positions: Int[Array, "B T 3"],
    head_dim: int,
    theta: float,
    section: tuple[int, int, int],
    *,
    interleaved: bool = True,
) -> tuple[Float32[Array, "B T C"], Float32[Array, "B T C"]]:
    """cos and sin, in float32, of every token's angles (multimodal RoPE, Wang et al. 2024, arXiv:2409.12191).

    Args:
        positions: of each token on the axes (time, height, width).
        section: how many of the head_dim / 2 frequencies each axis has.
        interleaved: whether the axes take turns (Qwen3-VL) or have one run of frequencies each (Qwen2.5-VL).
    """
    frequencies = inverse_frequencies(head_dim, theta)
    axes = (interleaved_axes if interleaved else chunked_axes)(section, head_dim // 2)
    chosen = jnp.take(positions, axes, axis=-1)
    # An elementwise product, not a matmul: accelerators round the factors of a matmul to bfloat16 by default.
    angles = chosen.astype(jnp.float32) * frequencies
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def patch_rotary(coords: Int[Array, "B P 2"], head_dim: int) -> tuple[Float32[Array, "B P C"], Float32[Array, "B P C"]]:
    """cos and sin, in float32, of every patch's angles: a quarter of the numbers for the row, a quarter for the column,
    then both again."""
    frequencies = inverse_frequencies(head_dim // 2, VISION_THETA)
    angles = coords[..., None].astype(jnp.float32) * frequencies
    angles = angles.reshape(*coords.shape[:-1], head_dim // 2)
    angles = jnp.concatenate([angles, angles], axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "B T H C"], cos: Float[Array, "B T C"], sin: Float[Array, "B T C"]
) -> Float[Array, "B T H C"]:
    """Rotates queries or keys, in the type that x and the tables promote to."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[..., None, :] + turned * sin[..., None, :]
