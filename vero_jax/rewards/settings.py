"""The small types of this room: what a verifier is told, what it gives back, and what travels to a worker."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from vero_jax.config import RewardConfig
from vero_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RewardSettings:
    """What every verifier may look at besides the answer and the truth."""

    format_weight: float = 0.2
    """w in score = (1 - w) accuracy + w format."""
    strict_reference: bool = False
    """True: the reference's results, also where they are doubtful (docs/rewards.md lists them)."""
    coordinates: Literal["pixels", "normalized_1000"] = "pixels"
    """What predicted boxes and points mean when the row itself does not say (`normalize_bbox_to_1000`)."""
    math_seconds: float = 0.5
    """Processor time for one mathematical comparison; past it the answer counts as wrong. Main thread only."""
    custom: str = ""
    """User's scorer of the reward type "custom", as "path/to/file.py:function"."""
    custom_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More of the user's scorers, by reward type name."""
    functions: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """The user's rewards of every response with their weights, as "path/to/file.py:function"; "builtin" is the rules'.
    Empty: the rules alone."""

    @classmethod
    def from_config(cls, config: RewardConfig, coordinates: str = "pixels") -> RewardSettings:
        """Settings of a run; `coordinates` is `data.coordinates`."""
        return cls(
            format_weight=config.format_weight,
            strict_reference=config.strict_reference,
            coordinates="normalized_1000" if coordinates == "normalized_1000" else "pixels",
            custom=config.custom,
            custom_types=dict(map(_named_target, config.custom_types)),
            functions=weighted_targets(config.functions),
        )


BUILTIN = "builtin"
"""The name in `reward.functions` of Vero's own verifiers, format score included."""


def weighted_targets(entries: Sequence[str]) -> dict[str, float]:
    """{"file.py:function": weight} of `reward.functions`, whose entries are "file.py:function" or "...=weight".

    Raises UserError for a weight that is no finite number, a function that is named twice, or weights that are all 0.
    """
    weights: dict[str, float] = {}
    for entry in entries:
        target, equals, text = (part.strip() for part in entry.partition("="))
        try:
            weight = float(text) if equals else 1.0
        except ValueError:
            weight = math.nan
        if not target or not math.isfinite(weight):
            raise UserError(
                f"reward.functions has {entry!r}: write it as path/to/file.py:function, or with a number as the weight "
                "path/to/file.py:function=0.5"
            )
        if target in weights:
            raise UserError(f"reward.functions names {target!r} twice: give it once, with the sum of its weights")
        weights[target] = weight
    if weights and not any(weights.values()):
        raise UserError(
            "reward.functions has only weights of 0, so that every reward would be 0: give one another weight"
        )
    return weights


def _named_target(entry: str) -> tuple[str, str]:
    """("type", "file.py:function") of "type=file.py:function"."""
    name, _, target = entry.partition("=")
    if not name.strip() or not target.strip():
        raise UserError(f"reward.custom_types has {entry!r}: write it as reward_type=path/to/file.py:function")
    return name.strip().lower(), target.strip()


@dataclasses.dataclass(frozen=True)
class RuleScore:
    """What a rule says of one answer: score = (1 - w) accuracy + w format, before the overlong term."""

    score: float
    accuracy: float
    format: float
    extras: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Further numbers to be logged, by name; only the user's own functions give some."""


@dataclasses.dataclass(frozen=True)
class RewardItem:
    """One answer to be scored, in plain values that JSON can carry."""

    response: str
    """Decoded text without special tokens."""
    response_length: int
    """Valid response tokens, the stop token included."""
    ground_truth: Any
    reward_type: str
    extra_info: Any = None
    data_source: str = ""
    """Name of the dataset that the question comes from; the user's own functions see it."""
