"""What the numbers of a box or a point mean, said to the policy as the rewards will read its answer.

Vero's questions ask for absolute pixels, and its ground truths are pixels of the stored image. A policy of the Qwen3-VL
family answers in thousandths of the image, one of the Qwen2.5-VL family in pixels of the resized image that it sees.
One setting, `data.coordinates`, decides for the three that must agree:

    setting           the question says        ground truth becomes          an answer is read as
    normalized_1000   0 to 1000 on both axes   thousandths (in the reward)   thousandths
    pixels            absolute pixels          pixels of the resized image   pixels of the resized image
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Coordinates = Literal["normalized_1000", "pixels"]

POINTING_TYPES = ("grounding", "clicking")
"""Reward types whose answers hold coordinates."""

_NORMALIZED = "coordinates from 0 to 1000, relative to the width and height of the image"
_PIXELS = "absolute pixel coordinates"
SENTENCES: Mapping[Coordinates, str] = {
    "normalized_1000": f"Use {_NORMALIZED} (origin at top-left).",
    "pixels": f"Use {_PIXELS} (origin at top-left).",
}
"""What a question gets that asks for `bbox_2d` or `point_2d` and does not say in which coordinates."""

_RANGE = r"\(?(?:\s*(?:range|scaled?|from|between|in|to|of|the)\b)*\s*\[?0\s*(?:-|–|\.\.|,|to|and)\s*1,?000\]?\)?"
_SAYS_PIXELS = re.compile(
    r"(?:absolute\s+)?(?:image\s+)?pixel\s+(?:coordinates?|positions?|values?)"
    r"|absolute\s+coordinates?(?:\s+(?:in|of)\s+pixels)?"
    r"|coordinates?\s+in\s+(?:absolute\s+)?pixels",
    re.IGNORECASE,
)
_SAYS_NORMALIZED = re.compile(
    rf"(?:normali[sz]ed|relative)\s+(?:image\s+)?coordinates?(?:,?\s*{_RANGE})?"
    rf"|coordinates?,?\s+(?:that\s+are\s+|are\s+)?(?:normali[sz]ed|scaled|relative)?\s*{_RANGE}"
    r"(?:,?\s+relative\s+to\s+the\s+width\s+and\s+height\s+of\s+the\s+image)?",
    re.IGNORECASE,
)
_ASKS = re.compile(r"bbox_2d|point_2d")
LONGEST_ADDITION = max(len(_NORMALIZED), *(len(sentence) + 1 for sentence in SENTENCES.values()))
"""Characters that one replacement, or the sentence at the end, can add to a question."""


def reworded(
    messages: Sequence[Mapping[str, Any]], reward_type: str, coordinates: Coordinates
) -> Sequence[Mapping[str, Any]]:
    """The messages of a grounding or clicking question in the policy's coordinates; others come back as they are.

    Words for the other kind of coordinates are replaced in the users' turns. Where no turn says anything and the
    question asks for `bbox_2d` or `point_2d`, the last user's turn gets a sentence at its end.
    """
    if reward_type not in POINTING_TYPES:
        return messages
    wrong, right = (
        (_SAYS_PIXELS, _SAYS_NORMALIZED) if coordinates == "normalized_1000" else (_SAYS_NORMALIZED, _SAYS_PIXELS)
    )
    wording = _NORMALIZED if coordinates == "normalized_1000" else _PIXELS
    turns = [dict(message) for message in messages]
    own = [turn for turn in turns if turn.get("role") == "user" and isinstance(turn.get("content"), str)]
    said = False
    for turn in own:
        text, replaced = wrong.subn(wording, turn["content"])
        said = said or replaced > 0 or right.search(text) is not None
        turn["content"] = text
    if own and not said and any(_ASKS.search(turn["content"]) for turn in own):
        own[-1]["content"] = f"{own[-1]['content'].rstrip()} {SENTENCES[coordinates]}"
    return turns
