"""Prompts from a padded batch as Hugging Face's processors give it, to run the very inputs of another program.

Pixel values stay as they are (float32, normalised already); positions are computed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from vero_jax.data import geometry
from vero_jax.data.processor import Processor
from vero_jax.errors import UserError
from vero_jax.types import Example, Prompt


@dataclasses.dataclass(frozen=True)
class VisualTokens:
    """How a checkpoint writes pictures into its tokens."""

    image_token_id: int | None
    video_token_id: int | None
    merge_size: int = 2
    tokens_per_second: float = 0.0
    """Rotary time positions per second of video (Qwen2.5-VL); 0 where time is written as text (Qwen3-VL)."""

    @classmethod
    def of(cls, processor: Processor) -> VisualTokens:
        images, videos = processor.image_settings, processor.video_settings
        return cls(
            processor.image_token_id,
            processor.video_token_id,
            1 if images is None else images.merge_size,
            0.0 if videos is None else videos.tokens_per_second,
        )


class _Kind:
    """The images, or the videos, of a batch: handed out one by one."""

    def __init__(self, batch: Mapping[str, Any], name: str, pixels: str, grids: str, merge_size: int):
        self.name = name
        self.merge_size = merge_size
        self.grids = _array(batch, grids, np.int32, (0, 3)).reshape(-1, 3)
        self.values = _array(batch, pixels, np.float32, (0, 0))
        self.seconds = _array(batch, "second_per_grid_ts", np.float32, (0,)).reshape(-1)
        patches = self.grids.prod(axis=1)
        if patches.sum() != len(self.values):
            raise UserError(
                f"the batch has {len(self.values)} rows of {pixels}, but {grids} {self.grids.tolist()} make "
                f"{patches.sum()}; pass both as the processor gave them"
            )
        self.ends = np.cumsum(patches)
        self.next = 0

    def take(self, row: int, tokens: int) -> tuple[Int32[np.ndarray, "3"], Float32[np.ndarray, "P E"], float, int]:
        """(grid, its pixel values, its seconds per frame of patches, its tokens) of the next one, for a run of tokens.

        Raises:
          UserError: there is none, or it needs more tokens than the run has.
        """
        if self.next == len(self.grids):
            raise UserError(
                f"row {row} of the batch has {tokens} {self.name} tokens more than the {len(self.grids)} grids of the "
                f"batch call for; its {self.name}s are missing"
            )
        number, self.next = self.next, self.next + 1
        grid = self.grids[number]
        needed = int(grid.prod()) // self.merge_size**2
        if needed > tokens:
            raise UserError(
                f"row {row} of the batch has {tokens} {self.name} tokens where grid {number} {grid.tolist()} needs "
                f"{needed}; the tokens were cut or belong to other {self.name}s"
            )
        end = int(self.ends[number])
        seconds = float(self.seconds[number]) if len(self.seconds) else 1.0
        return grid, self.values[end - int(grid.prod()) : end], seconds, needed


def prompts_from_batch(
    batch: Mapping[str, Any], visual: VisualTokens | Processor, *, ids: Sequence[str] | None = None
) -> list[Prompt]:
    """The rows of a batch as prompts without padding.

    Args:
      batch: numpy arrays (or what numpy can read): input_ids (B, S), and where there are any attention_mask (B, S; on
        either side; absent is no padding), pixel_values with image_grid_thw, pixel_values_videos with video_grid_thw
        and second_per_grid_ts. Grids and pixels are in the order of the rows.
      visual: of the checkpoint; a `Processor` knows them.
      ids: the examples' names; None numbers the rows.

    Raises:
      UserError: tokens, grids and pixels do not agree; names the row and the numbers.
    """
    visual = VisualTokens.of(visual) if isinstance(visual, Processor) else visual
    token_ids = _array(batch, "input_ids", np.int32, (0, 0))
    mask = np.ones(token_ids.shape, bool)
    if batch.get("attention_mask") is not None:
        mask = _array(batch, "attention_mask", np.bool_, (0, 0))
    if token_ids.ndim != 2 or mask.shape != token_ids.shape:
        raise UserError(
            f"input_ids has shape {token_ids.shape} and attention_mask {mask.shape}; both must be (rows, tokens)"
        )
    images = _Kind(batch, "image", "pixel_values", "image_grid_thw", visual.merge_size)
    videos = _Kind(batch, "video", "pixel_values_videos", "video_grid_thw", visual.merge_size)
    if len(videos.seconds) not in (0, len(videos.grids)):
        raise UserError(f"second_per_grid_ts has {len(videos.seconds)} entries for {len(videos.grids)} videos")
    images.seconds = images.seconds[:0]
    prompts = [
        _prompt(row, token_ids[row][mask[row]], images, videos, visual, f"row {row}" if ids is None else ids[row])
        for row in range(len(token_ids))
    ]
    for kind in (images, videos):
        if kind.next != len(kind.grids):
            raise UserError(
                f"the batch has {len(kind.grids)} {kind.name} grids, but its {len(token_ids)} rows have tokens for "
                f"{kind.next} only; the tokens were cut"
            )
    return prompts


def _prompt(
    row: int, token_ids: Int32[np.ndarray, "T"], images: _Kind, videos: _Kind, visual: VisualTokens, name: str
) -> Prompt:
    grids, values, scales = [], [], []
    placeholders = [index for index in (visual.image_token_id, visual.video_token_id) if index is not None]
    seen = token_ids[np.isin(token_ids, placeholders)]
    place = 0
    while place < len(seen):
        # Pictures of one kind may follow each other, so a run of equal tokens is an upper limit of the next one.
        others = np.flatnonzero(seen[place:] != seen[place])
        run = int(others[0]) if len(others) else len(seen) - place
        kind = images if seen[place] == visual.image_token_id else videos
        grid, pixels, seconds, tokens = kind.take(row, run)
        grids.append(grid)
        values.append(pixels)
        scales.append(float(np.float32(visual.tokens_per_second) * np.float32(seconds)))
        place += tokens
    widths = [kind.values.shape[1] for kind in (images, videos) if len(kind.values)]
    stacked = np.asarray(grids, np.int32).reshape(-1, 3)
    try:
        positions, image_index = geometry.mrope_positions(
            token_ids,
            stacked,
            image_token_id=visual.image_token_id,
            video_token_id=visual.video_token_id,
            merge_size=visual.merge_size,
            time_scales=scales if visual.tokens_per_second else None,
        )
    except ValueError as error:
        raise UserError(f"row {row} of the batch: {error}") from error
    return Prompt(
        example=Example(
            id=name, domain="", source="", messages=(), images=(), reward_type="", ground_truth="", extra_info={}
        ),
        token_ids=token_ids,
        positions=positions,
        image_index=image_index,
        patches=np.concatenate(values) if values else np.zeros((0, max(widths, default=0)), np.float32),
        grids=stacked,
    )


def _array(batch: Mapping[str, Any], key: str, dtype: Any, empty: tuple[int, ...]) -> np.ndarray:
    value = batch.get(key)
    return np.zeros(empty, dtype) if value is None else np.asarray(value).astype(dtype)
