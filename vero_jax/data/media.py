"""Pictures as users pass them: files, bytes or Pillow images, beside a conversation or inside its parts.

Out come the encoded images and the videos of the conversation in the order of their places, as an `Example` has them.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from vero_jax.data.chat import IMAGE_MARKER, VIDEO_MARKER, PromptError, part_kind
from vero_jax.types import Video

if TYPE_CHECKING:
    from PIL import Image

ImageLike: TypeAlias = "bytes | str | Path | Image.Image"
"""An encoded image, the path of one, or a Pillow image."""


def encoded(picture: ImageLike) -> bytes:
    """The picture as an encoded image, none of its pixels changed.

    Raises:
      PromptError: a path cannot be read, or it is nothing of the kind.
    """
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        try:
            return Path(picture).expanduser().read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise PromptError("image not readable", f"cannot read {picture!s:.200} ({why})") from error
    if not callable(getattr(picture, "save", None)):
        raise PromptError("image not readable", f"a {type(picture).__name__} is no file, bytes or Pillow image")
    buffer = io.BytesIO()
    # PNG lacks some modes that TIFF has.
    picture.save(buffer, "PNG" if picture.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16") else "TIFF")
    return buffer.getvalue()


def take_media(
    messages: Sequence[Mapping[str, Any]], images: Sequence[ImageLike], videos: Sequence[Video]
) -> tuple[tuple[Mapping[str, Any], ...], tuple[bytes, ...], tuple[Video, ...]]:
    """Takes the pictures out of the parts of a conversation and puts all in the order of their places.

    A place is a marker in a text, a bare part, or a part that holds its picture: {"type": "image", "image": ImageLike}
    or {"type": "video", "video": Video | list of ImageLike, "fps": number or absent}. Markers and bare parts take the
    next of `images` and `videos`. Where no place is marked, the pictures stand before the text of the first user turn,
    images first.

    Returns:
      the messages with bare parts, the images, the videos. Places that are left without a picture, and the other way
      round, are for `chat.conversation` to find.

    Raises:
      PromptError: a picture cannot be read.
    """
    turns = [dict(turn) if isinstance(turn, Mapping) else turn for turn in messages]
    _mark_places(turns, "video", VIDEO_MARKER, len(videos))
    _mark_places(turns, "image", IMAGE_MARKER, len(images))  # in front of the videos
    with_videos = bool(videos) or any(part_kind(part) == "video" for turn in turns for part in _parts(turn))
    waiting: dict[str, list[Any]] = {"image": list(images), "video": list(videos)}
    taken: dict[str, list[Any]] = {"image": [], "video": []}

    def take_next(kind: str, count: int = 1) -> None:
        taken[kind] += waiting[kind][:count]
        del waiting[kind][:count]

    for turn in turns:
        content = turn.get("content") if isinstance(turn, dict) else None
        if isinstance(content, str):
            take_next("image", content.count(IMAGE_MARKER))
            take_next("video", content.count(VIDEO_MARKER) if with_videos else 0)
        parts = []
        for part in _parts(turn):
            kind = part_kind(part)
            if kind in ("image", "video"):
                held = part.get(kind, part.get("path"))
                if held is None and {"url", "image_url", "base64"} & set(part):
                    raise PromptError("image not readable", f"a part of type {kind} gives no file, bytes or image")
                if held is None:
                    take_next(kind)
                else:
                    taken[kind].append(held if kind == "image" else _video(held, part.get("fps")))
                part = {"type": kind}
            parts.append(part)
        if _parts(turn):
            turn["content"] = parts
    pictures = tuple(encoded(picture) for picture in taken["image"] + waiting["image"])
    return tuple(turns), pictures, tuple(taken["video"] + waiting["video"])


def _parts(turn: Any) -> Sequence[Any]:
    content = turn.get("content") if isinstance(turn, Mapping) else None
    return content if isinstance(content, list | tuple) else ()


def _mark_places(turns: list[Any], kind: str, marker: str, count: int) -> None:
    """Puts `count` places before the first question where the conversation has none."""
    texts = [turn.get("content") for turn in turns if isinstance(turn, dict)]
    marked = any(isinstance(text, str) and marker in text for text in texts)
    if not count or marked or any(part_kind(part) == kind for turn in turns for part in _parts(turn)):
        return
    for turn in turns:
        if isinstance(turn, dict) and turn.get("role") == "user":
            content = turn.get("content")
            if isinstance(content, str):
                turn["content"] = marker * count + content
            elif isinstance(content, list | tuple):
                turn["content"] = [{"type": kind}] * count + list(content)
            return


def _video(held: Any, fps: Any) -> Video:
    if isinstance(held, Video):
        return held
    if isinstance(held, str | Path | bytes) or not isinstance(held, Sequence):
        raise PromptError("video not usable", "a video part holds a Video or a list of frames; videos are not decoded")
    return Video(tuple(encoded(frame) for frame in held), None if fps is None else float(fps))
