"""The language of a text, with langdetect's random draws fixed so that the same text always gets the same answer."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _detector() -> Any:
    import langdetect

    langdetect.DetectorFactory.seed = 0
    return langdetect


def detect_language(text: str) -> str | None:
    """Code of the most likely language ("en", "zh-cn", ...), or None where the text has nothing to go by."""
    langdetect = _detector()
    try:
        return str(langdetect.detect(text))
    except langdetect.LangDetectException:
        return None
