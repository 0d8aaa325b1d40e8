"""What a server says when it refuses a request: its sentence, and how long it wants to be left alone."""

from __future__ import annotations

import email.utils
import json
import time
from collections.abc import Mapping
from typing import Any


def field(value: Any, name: str) -> Any:
    """`value[name]`, None where `value` is no object or has no such key."""
    return value.get(name) if isinstance(value, dict) else None


def message(body: bytes) -> str:
    """The sentence in a refusal's body: {"error": {"message": ...}} as a rule."""
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    error = field(value, "error") or value
    found = error if isinstance(error, str) else field(error, "message") or field(error, "detail")
    return found if isinstance(found, str) else text


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: Retry-After as seconds or as a date (RFC 9110, 10.2.3), or OpenAI's own."""
    value = headers.get("retry-after", "").strip()
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        else:
            seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(seconds, 0.0) if seconds == seconds else None
