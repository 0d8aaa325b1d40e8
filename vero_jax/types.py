"""The nouns of the recipe: what travels from the data to the gradient, each a small frozen host-side (numpy) type.

    Example --processor--> Prompt --sampling--> Group --rewards--> Group with scores --learning--> rows

Nothing here imports jax, so that data and reward workers can use it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32, UInt8

DOMAINS = (
    "chart_ocr",
    "knowledge_recognition",
    "spatial_action",
    "counting_grounding_search",
    "stem",
    "visual_alignment",
)
"""Vero's six task categories, in the order of the recipe's mixture (`ability` in the data)."""


@dataclasses.dataclass(frozen=True)
class Video:
    """A video as a stack of encoded frames, all of one size. `data.videos` reads and thins them out."""

    frames: tuple[bytes, ...]
    """Encoded images, in order of time."""
    fps: float | None = None
    """Frames per second of the source from which the frames were taken; None when nobody knows."""
    indices: tuple[int, ...] | None = None
    """Which frame of the source each one is; None when they are all of its frames."""
    source_frames: int | None = None
    """How many frames the source has, where `indices` are given; None when nobody knows."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One question as stored: text and encoded images, its domain and source. No pixels are decoded yet."""

    id: str
    domain: str
    source: str
    messages: tuple[Mapping[str, Any], ...]
    """Chat messages {"role", "content"}; the place of an image is marked by `<image>` in the content, that of a video
    by `<video>`. A content may also be a list of parts, and a turn may carry what its chat template reads besides
    (tool_calls, reasoning_content)."""
    images: tuple[bytes, ...]
    reward_type: str
    ground_truth: str
    extra_info: Mapping[str, Any]
    """The row's own extra_info (question, answer, tolerance, index, ...), with small further columns and marks."""
    solution: str = ""
    """A reference response for the cold start, or "" when the row has none."""
    videos: tuple[Video, ...] = ()


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Tokens, patches and grids of one example: what the model sees. P counts vision patches, T tokens.

    I counts images and videos alike, in the order in which they stand in the text.
    """

    example: Example
    token_ids: Int32[np.ndarray, "T"]
    positions: Int32[np.ndarray, "T 3"]
    """Rotary position of each token on the axes (time, height, width)."""
    image_index: Int32[np.ndarray, "T"]
    """Which merged visual token stands at each place (counted over all of `grids`), -1 for text."""
    patches: UInt8[np.ndarray, "P E"] | Float32[np.ndarray, "P E"]
    """Raw pixels in merge-block order (or float32 values, normalised already); E = channels * frames * patch ** 2."""
    grids: Int32[np.ndarray, "I 3"]
    """(frames, height, width) of each image or video in patches; a patch spans `temporal_patch` frames."""
    image_sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of each image (not video) as stored, before resizing, in the order of `Example.images`."""
    resized_sizes: tuple[tuple[int, int], ...] = ()
    """(width, height) of each image as the model sees it."""

    @property
    def next_position(self) -> int:
        """Rotary position (equal on all axes) of the first response token.

        One more than the largest of any axis, as `transformers` decodes; after a long Qwen2.5-VL video that can be more
        than the last text position plus one.
        """
        return int(self.positions.max()) + 1 if len(self.positions) else 0


@dataclasses.dataclass(frozen=True)
class Response:
    """One sampled answer: ids (the stop id included when there is one), their log-probabilities, and why it stopped."""

    token_ids: Int32[np.ndarray, "R"]
    logprobs: Float32[np.ndarray, "R"]
    """float32 log-probability of each token under the untruncated policy at the sampling temperature."""
    stop_reason: str
    """"stop" (a stop id was drawn) or "length" (the limit was reached)."""
    text: str = ""
    """Decoded without special tokens that carry no text (the stop id among them)."""
    warped_logprobs: Float32[np.ndarray, "R"] | None = None
    """Under the distribution that was drawn from (penalties, banned ids, truncation), where they were asked for."""


@dataclasses.dataclass(frozen=True)
class Score:
    """What the rewards say of one response. `missing` is None, or why there is no score (then the numbers are NaN)."""

    total: float
    """accuracy and format mixed, plus the overlong term."""
    accuracy: float
    format: float
    overlong: float = 0.0
    missing: str | None = None
    extras: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Further numbers that the user's own reward functions gave, to be logged by source."""
    latency_s: float = dataclasses.field(default=math.nan, compare=False)
    """Seconds that the verifier took, or until it was given up; NaN where nothing ran."""


@dataclasses.dataclass(frozen=True)
class Group:
    """A prompt and its n responses: the unit of sampling, of normalisation and of learning."""

    prompt: Prompt
    responses: tuple[Response, ...]
    scores: tuple[Score, ...] = ()
    advantages: Float32[np.ndarray, "N"] | None = None
