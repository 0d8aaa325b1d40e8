"""The score of one answer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vero_jax.errors import UserError


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

    @classmethod
    def of_row(cls, row: Mapping[str, Any], place: str) -> Score:
        """The score in a row of a results folder.

        Args:
          place: names the row in the sentence of an error.

        Raises:
          UserError: it is none.
        """
        parts = row.get("parts") or {}
        if not isinstance(parts, Mapping) or not all(map(_is_number, parts.values())):
            raise UserError(f"{place} is broken: parts is {parts!r}, not an object of numbers")
        for name in ("value", "strict"):
            if row.get(name) is not None and not _is_number(row[name]):
                raise UserError(f"{place} is broken: {name} is {row[name]!r}, not a number")
        prediction, group, missing = (str(row.get(name) or "") for name in ("prediction", "group", "missing"))
        return cls(row.get("value"), row.get("strict"), prediction, group, parts, missing)


UNJUDGED = Score(None, None, missing="unjudged")


def right(value: bool, strict: bool | None = None, prediction: object = "", group: str = "") -> Score:
    """The score of an answer that is right or wrong; the strict figure is the same where none is given."""
    return Score(
        float(value), float(value if strict is None else strict), "" if prediction is None else str(prediction), group
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
