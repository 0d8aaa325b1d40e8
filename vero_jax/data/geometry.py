"""The arithmetic of image grids: resized sizes, where each patch lies, and rotary positions. numpy only.

A *grid* is (frames, height, width) in patches. Patches come in merge-block order: block row, block column, then row
and column inside the block, frames outermost, so that `merge_size ** 2` neighbours are one merged visual token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Int32

from vero_jax.errors import UserError

MAX_ASPECT_RATIO = 200


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Size (height, width) at which the model sees an image: multiples of `factor`, area inside the limits if it can.

    Qwen-VL's rule. Sides are rounded half to even, so 80 pixels at factor 32 become 64, not 96.

    Args:
      height, width: the stored image, in pixels.
      factor: pixels along one side of a merged visual token (patch size x merge size).
      min_pixels, max_pixels: limits of the area, in pixels.

    Raises:
      ValueError: a side is not positive, or one is more than 200 times the other.
    """
    if height < 1 or width < 1:
        raise ValueError(f"an image of {width}x{height} pixels has no area")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"an image of {width}x{height} pixels has one side more than {MAX_ASPECT_RATIO} times as long as the other"
        )
    rows, columns = round(height / factor), round(width / factor)
    if rows * columns * factor * factor > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        # A side may round to nothing here, the area limit notwithstanding: one token is the least there is.
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif rows * columns * factor * factor < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def smart_resize_video(
    frames: int, height: int, width: int, factor: int, temporal_factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Size (height, width) at which the model sees the frames of a video: `smart_resize` over the whole volume.

    Qwen3-VL's rule: the limits count the pixels of all frames together. A frame smaller than one token is first grown
    to one, and the number of frames is rounded half to even (5 frames at two a patch count as 4) to see if the limits
    are met, but not in the scale.

    Args:
      frames, height, width: of the stored video.
      factor: pixels along one side of a merged visual token.
      temporal_factor: frames in a patch.
      min_pixels, max_pixels: limits of frames x height x width.

    Raises:
      ValueError: there are fewer frames than in one patch, or a shape that `smart_resize` refuses.
    """
    if frames < temporal_factor:
        raise ValueError(
            f"a video of {frames} frames is shorter than one patch of {temporal_factor}; give it as images"
        )
    if height < 1 or width < 1:
        raise ValueError(f"a video of {width}x{height} pixels has no area")
    if height < factor or width < factor:
        grow = max(factor / height, factor / width)
        height, width = int(height * grow), int(width * grow)
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise ValueError(
            f"a video of {width}x{height} pixels has one side more than {MAX_ASPECT_RATIO} times as long as the other"
        )
    rows, columns = round(height / factor), round(width / factor)
    volume = round(frames / temporal_factor) * temporal_factor * rows * columns * factor * factor
    if volume > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif volume < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor


def check_pixel_limits(min_pixels: int, max_pixels: int, factor: int, place: str) -> None:
    """Refuses limits that leave no room for an image. Raises `UserError` naming the values and `place`."""
    if not 0 < min_pixels <= max_pixels or max_pixels < factor * factor:
        raise UserError(
            f"{place}: image areas from min_pixels={min_pixels} to max_pixels={max_pixels} leave no room for an image; "
            "give others (data.min_pixels and data.max_pixels in a config, or --max-pixels), so that min <= max and "
            f"max >= {factor * factor} (one token)"
        )


def frame_grids(grids: Int[np.ndarray, "I 3"]) -> Int32[np.ndarray, "F 2"]:
    """(height, width) in patches of every frame: a video of t frames counts as t pictures."""
    grids = np.asarray(grids, np.int32).reshape(-1, 3)
    return np.repeat(grids[:, 1:], grids[:, 0], axis=0)


def merged_counts(grids: Int[np.ndarray, "I 3"], merge_size: int = 2) -> Int32[np.ndarray, "I"]:
    """Merged visual tokens of each grid."""
    grids = np.asarray(grids, np.int32).reshape(-1, 3)
    return (grids.prod(axis=1) // merge_size**2).astype(np.int32)


def _within(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For runs of the given lengths laid end to end: the run of each element, and its place inside the run."""
    run = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    return run, np.arange(len(run)) - starts[run]


def patch_geometry(
    grids: Int[np.ndarray, "I 3"], merge_size: int = 2
) -> tuple[Int32[np.ndarray, "P 2"], Int32[np.ndarray, "P 2"], Int32[np.ndarray, "P"]]:
    """Where each patch lies, in merge-block order.

    Args:
      grids: (frames, height, width) in patches, heights and widths divisible by `merge_size`.
      merge_size: patches along one side of a merged token.

    Returns:
      coords: (row, column) of the patch inside its frame, in patches.
      sizes: (height, width) of that frame, in patches.
      segments: number of the frame over all grids, from 1; attention stays inside one segment.

    Raises:
      ValueError: a side of a grid is not a multiple of `merge_size`.
    """
    frames = frame_grids(grids)
    if (frames % merge_size).any():
        raise ValueError(f"grids {np.asarray(grids).tolist()} have a side that is no multiple of {merge_size} patches")
    frame, place = _within(frames.prod(axis=1))
    sizes = frames[frame].reshape(-1, 2)
    block, inside = np.divmod(place, merge_size**2)
    block_row, block_column = np.divmod(block, sizes[:, 1] // merge_size)
    row, column = np.divmod(inside, merge_size)
    coords = np.stack([block_row * merge_size + row, block_column * merge_size + column], axis=1)
    return coords.astype(np.int32), sizes.astype(np.int32), (frame + 1).astype(np.int32)


def mrope_positions(
    token_ids: Int[np.ndarray, "T"],
    grids: Int[np.ndarray, "I 3"],
    *,
    image_token_id: int | None,
    video_token_id: int | None = None,
    merge_size: int = 2,
    time_scales: Float[np.ndarray, "I"] | Sequence[float] | None = None,
) -> tuple[Int32[np.ndarray, "T 3"], Int32[np.ndarray, "T"]]:
    """Rotary positions of Qwen-VL (time, height, width), and which merged visual token stands where.

    A text token advances all three axes by one. A picture of h x w merged tokens at position p holds time p, height
    p + row and width p + column, and the text after it goes on at p + max(h, w), however many tokens it has.

    In Qwen3-VL the frames of a video are pictures of their own, with their time written as text between them. In
    Qwen2.5-VL a video is one block of tokens at p whose frame f holds time p + floor(f * time scale); the text after
    it goes on at p + max(h, w) too, so the times of a long video reach beyond it (Hugging Face transformers 5; version
    4 went on after the largest).

    Args:
      token_ids: one unpadded sequence.
      grids: the images and videos in the order in which they appear in the sequence.
      image_token_id, video_token_id: ids of the placeholders that stand for one merged token each; None where the
        checkpoint has none.
      merge_size: patches along one side of a merged token.
      time_scales: time positions from one frame of a grid to its next (Qwen2.5-VL: tokens per second x seconds between
        frames of patches; of no account for images); None makes every frame a picture of its own (Qwen3-VL).

    Returns:
      positions: rotary position of each token on the three axes.
      image_index: index over all merged tokens of the grids, -1 for text.

    Raises:
      ValueError: the placeholders in the sequence are not the ones that the grids call for.
    """
    token_ids = np.asarray(token_ids)
    grids = np.asarray(grids, np.int32).reshape(-1, 3)
    visual = np.zeros(len(token_ids), bool)
    for placeholder in (image_token_id, video_token_id):
        if placeholder is not None:
            visual |= token_ids == placeholder
    if time_scales is None:
        sizes = frame_grids(grids) // merge_size
        counts = sizes.prod(axis=1)
        scales = np.zeros(len(sizes), np.float32)
    else:
        sizes = grids[:, 1:] // merge_size
        counts = grids[:, 0] * sizes.prod(axis=1)
        scales = np.asarray(time_scales, np.float32).reshape(-1)
    places = np.flatnonzero(visual)
    if len(places) != counts.sum():
        raise ValueError(
            f"the sequence holds {len(places)} visual tokens, its images {grids.tolist()} "
            f"(frames, height, width in patches) need {int(counts.sum())}"
        )
    block, place = _within(counts)
    advance = np.where(visual, 0, 1)
    first = places[np.cumsum(counts) - counts]
    last = places[np.cumsum(counts) - 1]
    if not np.array_equal(last - first + 1, counts):
        raise ValueError("text stands between the visual tokens of one image")
    advance[last] = sizes.max(axis=1)
    start = np.cumsum(advance) - advance
    positions = np.repeat(start[:, None], 3, axis=1)
    frame, inside = np.divmod(place, sizes.prod(axis=1)[block])
    row, column = np.divmod(inside, sizes[block, 1])
    # The product in float32 and its truncation decide some positions; so the reference computes them.
    time = (frame.astype(np.float32) * scales[block]).astype(np.int64)
    base = start[first][block]
    positions[places] = np.stack([base + time, base + row, base + column], axis=1)
    image_index = np.full(len(token_ids), -1)
    image_index[places] = np.arange(len(places))
    return positions.astype(np.int32), image_index.astype(np.int32)
