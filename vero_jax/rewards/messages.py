"""What the pool and its workers say to each other: JSON objects, each after its length in four bytes.

JSON, not pickle: nothing that a policy writes can become more than text on the other side.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

from vero_jax.rewards.settings import RewardItem, RewardSettings

HEADER = struct.Struct("!I")
MAX_BYTES = 256 * 1024 * 1024


def encode(message: Mapping[str, Any]) -> bytes:
    """The bytes of one message. Raises TypeError or ValueError for what JSON can't hold."""
    body = json.dumps(message, default=_plain).encode("ascii")
    if len(body) > MAX_BYTES:
        raise ValueError(f"message of {len(body)} bytes")
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> dict[str, Any]:
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("a message is a JSON object")
    return value


def read_message(stream: BinaryIO) -> dict[str, Any] | None:
    """The next message, or None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    body = stream.read(HEADER.unpack(header)[0])
    return decode(body)


def item_message(item: RewardItem) -> dict[str, Any]:
    return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}


def settings_message(settings: RewardSettings, seconds: float) -> dict[str, Any]:
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    return {"settings": values, "seconds": seconds}


def _plain(value: Any) -> Any:
    """Arrays and numpy numbers as lists and numbers."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} can't be sent to a reward worker")
