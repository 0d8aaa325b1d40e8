"""Several pictures as one, as MM-Vet v2 is evaluated: tiled, each with its number in a corner."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vero_jax.data.images import open_image, to_rgb

if TYPE_CHECKING:
    from PIL import Image

SIDE = 1_008
"""Width of landscape pictures, height of others, in pixels."""
_TAG = 40


def tiled(pictures: Sequence[bytes]) -> list[bytes]:
    """One PNG with all pictures side by side or one below the other, whichever is less elongated; a single one, too, is
    resized and numbered.

    Raises:
      ImageError: one of them can't be read.
    """
    if not pictures:
        return []
    from PIL import Image

    parts = [_numbered(to_rgb(open_image(data)), index) for index, data in enumerate(pictures, 1)]
    wide = sum(part.width for part in parts), max(part.height for part in parts)
    tall = max(part.width for part in parts), sum(part.height for part in parts)
    across = _elongation(*wide) <= _elongation(*tall)
    sheet = Image.new("RGB", wide if across else tall, "white")
    at = 0
    for part in parts:
        sheet.paste(part, (at, 0) if across else (0, at))
        at += part.width if across else part.height
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return [buffer.getvalue()]


def _numbered(image: Image.Image, number: int) -> Image.Image:
    from PIL import Image, ImageDraw

    scale = SIDE / (image.width if image.width > image.height else image.height)
    size = max(round(image.width * scale), 1), max(round(image.height * scale), 1)
    image = image.resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    text = f"[{number}]"
    width = int(draw.textlength(text, font_size=_TAG)) + _TAG // 2
    draw.rectangle((0, 0, width, _TAG + _TAG // 4), fill="white")
    draw.text((_TAG // 4, 0), text, fill="black", font_size=_TAG)
    return image


def _elongation(width: int, height: int) -> float:
    return max(width / height, height / width)
