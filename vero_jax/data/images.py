"""From encoded bytes to rows of uint8 patches, pixel for pixel what Qwen-VL's PIL processor makes of them.

EXIF rotation is not applied (the models were trained without it). Resizing is Pillow's bicubic on uint8; the same
filter in floats moves pixels near edges by up to 29 levels. Pillow is imported when the first image is opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float32, UInt8

from vero_jax.errors import CountedError

if TYPE_CHECKING:
    from PIL import Image

MAX_IMAGE_PIXELS = 400_000_000
"""Largest stored image that is decoded. Real training data has pictures of 231 million pixels, above Pillow's limit."""

LARGE_PIXELS = 32_000_000
"""Stored images from this size on are decoded one at a time in each process, so that memory stays bounded."""
_LARGE = threading.Lock()

Background = Literal["white", "reference"]


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What preprocessor_config.json says: sizes in pixels, mean and std of pixels scaled to 0..1."""

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def factor(self) -> int:
        """Pixels along one side of a merged visual token."""
        return self.patch_size * self.merge_size

    @property
    def patch_elements(self) -> int:
        return len(self.mean) * self.temporal_patch_size * self.patch_size**2


class ImageError(CountedError):
    """An image that cannot be used."""


def open_image(data: bytes) -> Image.Image:
    """Reads the header of an encoded image (any format Pillow knows); its pixels are decoded later.

    Raises:
      ImageError: the bytes are no image, or it has more than `MAX_IMAGE_PIXELS`.
    """
    from PIL import Image, UnidentifiedImageError

    if Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS  # Pillow keeps its limit there, one for the whole process
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise ImageError("image too large", str(error)) from error
    except Exception as error:  # plugins reject a file by whatever comes: also struct.error, KeyError, RuntimeError
        # The message of an unknown format only names a Python object.
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise ImageError("image not readable", f"{len(data)} bytes that no image format accepts{why}") from error
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise ImageError("image too large", f"{image.width}x{image.height} pixels, more than {MAX_IMAGE_PIXELS}")
    return image


def one_at_a_time(image: Image.Image) -> contextlib.AbstractContextManager[object]:
    """For decoding inside of it: of images of `LARGE_PIXELS` or more, a process has one in such a block."""
    return _LARGE if image.width * image.height >= LARGE_PIXELS else contextlib.nullcontext()


def to_rgb(image: Image.Image, background: Background = "white") -> Image.Image:
    """Decodes the (first) frame into 8-bit RGB.

    Args:
      image: an opened image of any mode; 16-bit grey is scaled to 8 bits.
      background: "white" puts transparent pixels on white, as Qwen-VL's processor does; "reference" drops the alpha
        channel as the reference trainer does, which shows whatever colour (often black) lies under it.

    Raises:
      ImageError: the pixel data is broken.
    """
    from PIL import Image

    try:
        image.load()
        if image.mode.startswith(("I", "F")):
            return _grey_to_8_bits(image).convert("RGB")
        transparent = "A" in image.getbands() or image.info.get("transparency") is not None
        if not transparent or background == "reference":
            return image.convert("RGB")
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    except Exception as error:  # see `open_image`
        raise ImageError("image not readable", f"{image.width}x{image.height} {image.mode}: {error}") from error


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion of deep grey clips at 255, which turns a 16-bit scan white."""
    from PIL import Image

    values = np.asarray(image).astype(np.float64)
    if image.mode != "F" and (image.mode.startswith("I;16") or values.max() > 255):
        values = values / 257  # 65535 becomes 255
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))


def resize(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """Bicubic resize of an RGB image by Pillow, on uint8 (no resize where the size is the same already)."""
    from PIL import Image

    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def patchify(
    pixels: UInt8[np.ndarray, "H W 3"], patch_size: int, merge_size: int = 2, temporal_patch_size: int = 2
) -> UInt8[np.ndarray, "P E"]:
    """Cuts one still image into patches; see `patchify_frames`. The image repeats its one frame in every patch."""
    return patchify_frames(pixels[None], patch_size, merge_size, temporal_patch_size)


def patchify_frames(
    frames: UInt8[np.ndarray, "F H W 3"], patch_size: int, merge_size: int = 2, temporal_patch_size: int = 2
) -> UInt8[np.ndarray, "P E"]:
    """Cuts frames into patches in merge-block order, each flattened as (channel, frame, row, column).

    A patch spans `temporal_patch_size` frames, so E = 3 * temporal_patch_size * patch_size ** 2. The last frame is
    repeated where their number does not divide.

    Raises:
      ValueError: a side is not a multiple of patch_size * merge_size.
    """
    count, height, width, channels = frames.shape
    side = patch_size * merge_size
    if height % side or width % side:
        raise ValueError(f"an image of {width}x{height} pixels does not divide into tokens of {side} pixels")
    if missing := -count % temporal_patch_size:
        last = np.broadcast_to(frames[-1], (missing, height, width, channels))
        # A still image needs no copy.
        frames = (
            np.concatenate([frames, last]) if count > 1 else np.broadcast_to(frames, (1 + missing, *last.shape[1:]))
        )
    cut = frames.reshape(
        -1, temporal_patch_size,
        height // side, merge_size, patch_size,
        width // side, merge_size, patch_size,
        channels,
    ).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)  # fmt: skip
    return cut.reshape(-1, channels * temporal_patch_size * patch_size**2)


def unpatchify(
    patches: UInt8[np.ndarray, "P E"],
    grid: tuple[int, int, int],
    patch_size: int,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
) -> UInt8[np.ndarray, "F H W 3"]:
    """The frames from which `patchify_frames` made these patches: every pixel that the model sees, and no other.

    Args:
      patches: of one image or video.
      grid: its (frames, height, width) in patches; F = frames * temporal_patch_size.
    """
    times, rows, columns = (int(length) for length in grid)
    cut = patches.reshape(
        times, rows // merge_size, columns // merge_size, merge_size, merge_size,
        -1, temporal_patch_size, patch_size, patch_size,
    ).transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)  # fmt: skip
    return cut.reshape(times * temporal_patch_size, rows * patch_size, columns * patch_size, -1)


def encode_png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """The pixels as a PNG file, unchanged."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def normalise(
    patches: UInt8[np.ndarray, "P E"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float32[np.ndarray, "P E"]:
    """(pixel / 255 - mean) / std in float32, bit for bit as Qwen-VL's PIL processor computes it.

    The scale is a float64 product rounded to float32; the rest is float32. There are 256 x channels results, so this
    is a table look-up.
    """
    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    table = (scaled[None] - np.asarray(mean, np.float32)[:, None]) / np.asarray(std, np.float32)[:, None]
    count, elements = patches.shape
    channel = np.repeat(np.arange(len(mean)), elements // len(mean))
    return table[channel[None], patches] if count else np.zeros((0, elements), np.float32)


@dataclasses.dataclass(frozen=True)
class StillImage:
    """An opened image (decoded later) and the size at which the model sees it."""

    image: Image.Image
    height: int
    width: int
    """In pixels, after resizing."""
    settings: ImageSettings

    @property
    def grid(self) -> tuple[int, int, int]:
        """(1, height, width) in patches."""
        return 1, self.height // self.settings.patch_size, self.width // self.settings.patch_size

    def patches(self, background: Background) -> UInt8[np.ndarray, "P E"]:
        """Decodes, resizes and cuts the image. Raises `ImageError`."""
        with one_at_a_time(self.image):
            pixels = resize(to_rgb(self.image, background), self.height, self.width)
        settings = self.settings
        return patchify(pixels, settings.patch_size, settings.merge_size, settings.temporal_patch_size)
