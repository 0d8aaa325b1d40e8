"""The score of one answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Score:
    """The reference's figure for an answer and the strict one beside it, on the benchmark's own scale (0..1 mostly)."""

    value: float | None
    """As the reference scores it, without random guesses; None where even it has no figure."""
    strict: float | None
    """Without the reference's leaks; None: not judged, or the judge's reply can't be read."""
    prediction: str = ""
    """What was read in the answer."""
    group: str = ""
    """Split, sub-task or category by which figures are also given."""
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Further figures of the same answer."""
    missing: str = ""
    """Why there is no figure."""


UNJUDGED = Score(None, None, missing="unjudged")


def right(value: bool, strict: bool | None = None, prediction: object = "", group: str = "") -> Score:
    """The score of an answer that is right or wrong; the strict figure is the same where none is given."""
    return Score(
        float(value), float(value if strict is None else strict), "" if prediction is None else str(prediction), group
    )
