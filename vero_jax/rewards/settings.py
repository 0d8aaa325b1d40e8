"""The small types of this room: what a verifier is told, what it gives back, and what travels to a worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
    math_seconds: float = 1.0
    """Processor time for one mathematical comparison; past it the answer counts as wrong. Main thread only."""
    custom: str = ""
    """User's scorer of the reward type "custom", as "path/to/file.py:function"."""
    custom_types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More of the user's scorers, by reward type name."""

    @classmethod
    def from_config(cls, config: RewardConfig, coordinates: str = "pixels") -> RewardSettings:
        """Settings of a run; `coordinates` is `data.coordinates`."""
        return cls(
            format_weight=config.format_weight,
            strict_reference=config.strict_reference,
            coordinates="normalized_1000" if coordinates == "normalized_1000" else "pixels",
            custom=config.custom,
            custom_types=dict(map(_named_target, config.custom_types)),
        )


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
