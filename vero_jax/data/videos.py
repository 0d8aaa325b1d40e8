"""Videos as stacks of frames: which frames are taken, at what size the model sees them, and when each was.

There is no video decoder here: a `Video` holds encoded images, for example a folder of frames that ffmpeg wrote. The
rules are those of Hugging Face's video processors; only the resizing is Pillow's, as for images.
"""

from __future__ import annotations

import dataclasses
import math
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8

from vero_jax.data import geometry, images
from vero_jax.errors import CountedError, UserError
from vero_jax.types import Video

if TYPE_CHECKING:
    from PIL import Image

UNKNOWN_FPS = 24.0
"""What transformers takes for the frame rate of a source that does not tell it."""

FRAME_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


class VideoError(CountedError):
    """A video that cannot be used."""


@dataclasses.dataclass(frozen=True)
class VideoSettings:
    """What a checkpoint says of videos; sizes in pixels. The patches are those of its images."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    limits: Literal["video", "frame"]
    """What `min_pixels` and `max_pixels` count: all frames together (Qwen3-VL), or each one (Qwen2.5-VL)."""
    tokens_per_second: float = 0.0
    """Rotary time positions per second (Qwen2.5-VL); 0 where the time is written as text (Qwen3-VL)."""
    max_video_tokens: int | None = None
    """With `cap_pixels_per_frame` in the folder: tokens to which a frame, or with limits per frame the whole video, is
    bounded besides. Unset in released checkpoints, which transformers 5.23 takes for no."""
    fps: float = 2.0
    """Frames per second to which `sample` thins out a source."""
    min_frames: int = 4
    max_frames: int = 768

    @property
    def factor(self) -> int:
        """Pixels along one side of a merged visual token."""
        return self.patch_size * self.merge_size

    @property
    def writes_times(self) -> bool:
        """Whether the prompt says when each frame was."""
        return self.tokens_per_second == 0

    def resized(self, frames: int, width: int, height: int) -> tuple[int, int]:
        """(height, width) at which the model sees the frames of such a video.

        Raises:
          VideoError: of that shape, none.
        """
        try:
            if self.limits == "video":
                low, high = self.min_pixels, self.max_pixels
                if self.max_video_tokens is not None:
                    share = min(self.max_video_tokens * self.factor**2, high // frames)
                    high = max(share, int(low * 1.05)) * frames
                return geometry.smart_resize_video(
                    frames, height, width, self.factor, self.temporal_patch_size, low, high
                )
            high = self.max_pixels
            if self.max_video_tokens is not None:
                total = int(self.max_video_tokens * self.factor**2 * 0.9)
                high = max(min(high, total * self.temporal_patch_size // frames), int(self.min_pixels * 1.05))
            return geometry.smart_resize(height, width, self.factor, self.min_pixels, high)
        except ValueError as error:
            raise VideoError("video shape not usable", str(error)) from error


@dataclasses.dataclass(frozen=True)
class FrameStack:
    """The opened frames of a video (decoded later) and the size at which the model sees them."""

    video: Video
    frames: tuple[Image.Image, ...]
    height: int
    width: int
    """In pixels, after resizing."""
    settings: VideoSettings

    @property
    def grid(self) -> tuple[int, int, int]:
        """(frames, height, width) in patches."""
        times = -(-len(self.frames) // self.settings.temporal_patch_size)
        return times, self.height // self.settings.patch_size, self.width // self.settings.patch_size

    def patches(self, background: images.Background) -> UInt8[np.ndarray, "P E"]:
        """Decodes, resizes and cuts the frames; an odd last one is repeated. Raises `images.ImageError`."""
        pixels = np.stack([
            images.resize(images.to_rgb(frame, background), self.height, self.width) for frame in self.frames
        ])  # fmt: skip
        settings = self.settings
        return images.patchify_frames(pixels, settings.patch_size, settings.merge_size, settings.temporal_patch_size)


def open_frames(video: Video, settings: VideoSettings) -> FrameStack:
    """Reads the headers of the frames and decides their size.

    Raises:
      VideoError: no frames, frames of several sizes, frame numbers that do not fit, or a shape that cannot be.
      images.ImageError: a frame is no image.
    """
    if not video.frames:
        raise VideoError("video not usable", "it has no frames")
    _check_times(video)
    opened = tuple(images.open_image(data) for data in video.frames)
    sizes = {frame.size for frame in opened}
    if len(sizes) > 1:
        listed = " and ".join(f"{width}x{height}" for width, height in sorted(sizes)[:2])
        raise VideoError("video not usable", f"its frames have different sizes, among them {listed}")
    height, width = settings.resized(len(opened), *opened[0].size)
    return FrameStack(video, opened, height, width, settings)


def _check_times(video: Video) -> None:
    if video.fps is not None and not (math.isfinite(video.fps) and video.fps > 0):
        raise VideoError("video not usable", f"fps {video.fps} must be a positive number")
    indices = video.indices
    if indices is None:
        return
    if len(indices) != len(video.frames):
        raise VideoError("video not usable", f"{len(indices)} frame numbers for {len(video.frames)} frames")
    if list(indices) != sorted(indices) or indices[0] < 0:
        raise VideoError("video not usable", "frame numbers must rise from 0 or more")
    if video.source_frames is not None and indices[-1] >= video.source_frames:
        raise VideoError("video not usable", f"frame number {indices[-1]} of a source of {video.source_frames} frames")


def source_fps(video: Video) -> float:
    """Frames per second of the source; `UNKNOWN_FPS`, with a warning, where the video does not say."""
    if video.fps is None:
        warnings.warn(f"a video does not say its fps; {UNKNOWN_FPS:g} is taken for it", stacklevel=2)
        return UNKNOWN_FPS
    return video.fps


def frame_times(video: Video, temporal_patch_size: int) -> list[float]:
    """The time of each frame of patches in seconds: halfway between the first and the last frame that it spans.

    An incomplete last one repeats the last frame, as its pixels do.
    """
    fps = source_fps(video)
    indices = list(video.indices or range(len(video.frames)))
    indices += [indices[-1]] * (-len(indices) % temporal_patch_size)
    times = [index / fps for index in indices]
    starts = range(0, len(times), temporal_patch_size)
    return [(times[start] + times[start + temporal_patch_size - 1]) / 2 for start in starts]


def seconds_per_grid(video: Video, temporal_patch_size: int) -> float:
    """Seconds from one frame of patches to the next, taking the frames as evenly spaced (Qwen2.5-VL)."""
    fps = source_fps(video)
    if video.indices is not None:
        taken = len(video.indices)
        if video.source_frames is not None:
            fps = taken / video.source_frames * fps
        elif video.indices[-1] > video.indices[0]:
            fps = (taken - 1) / (video.indices[-1] - video.indices[0]) * fps
    return temporal_patch_size / fps


def sample(video: Video, settings: VideoSettings) -> Video:
    """Thins out a video that holds all frames of its source, to about `settings.fps` frames per second.

    At least `min_frames` and at most `max_frames` are taken, evenly spaced, as transformers samples for the family.

    Raises:
      VideoError: the video is a sample already, or too short.
    """
    if video.indices is not None:
        raise VideoError("video not usable", "its frames are a sample already, so they cannot be sampled again")
    total = len(video.frames)
    fps = source_fps(video)
    if settings.limits == "video":
        count = min(max(int(total / fps * settings.fps), settings.min_frames), settings.max_frames, total)
        indices = np.linspace(0, total - 1, count).round().astype(int)
    else:
        step = settings.temporal_patch_size
        most = min(settings.max_frames, total) // step * step
        count = math.floor(min(max(total / fps * settings.fps, settings.min_frames), most) / step) * step
        if not count:
            raise VideoError("video not usable", f"{total} frames are fewer than the {step} of one patch")
        # The reference's float32 steps decide between neighbouring frames. Its rounding now and then adds one frame.
        indices = (np.arange(count, dtype=np.float32) * np.float32(total / count)).astype(int)
    return dataclasses.replace(
        video,
        frames=tuple(video.frames[index] for index in indices),
        indices=tuple(int(index) for index in indices),
        source_frames=total,
    )


def read_frames(folder: str | Path, fps: float | None = None) -> Video:
    """A folder of frames as a video: its images in the order of their names, numbers by value.

    Args:
      folder: holds one image file a frame.
      fps: frames per second of these frames; None when it is not known.

    Raises:
      UserError: the folder is missing, holds no images, or a file cannot be read.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder of frames {folder}; give a folder with one image file a frame")
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise UserError(f"{fps} frames per second of {folder} must be a positive number")
    files = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES]
    files.sort(key=lambda path: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)])
    if not files:
        raise UserError(f"{folder} holds no frames; it needs image files ({', '.join(sorted(FRAME_SUFFIXES))})")
    try:
        return Video(tuple(path.read_bytes() for path in files), fps)
    except OSError as error:
        raise UserError(f"cannot read a frame of {folder} ({error})") from error
