"""From a rule's score to the reward of a response: the overlong term, and the sum."""

from __future__ import annotations

import math

import numpy as np

from vero_jax.config import RewardConfig
from vero_jax.rewards.settings import RuleScore
from vero_jax.types import Score

FLOAT32_MAX = float(np.finfo(np.float32).max)


def overlong_term(length: int, config: RewardConfig, max_response_length: int) -> float:
    """min(0, -(L - (Lmax - buffer)) / buffer * factor), at least -factor unless `overlong_floor` is off.

    Args:
      length: L, valid response tokens with the stop token.
      config: `overlong_*` settings; `overlong_max_length` is Lmax where it is given.
      max_response_length: Lmax otherwise: the longest answer that the sampler allows.
    """
    if config.overlong_buffer <= 0:
        return 0.0
    longest = max_response_length if config.overlong_max_length is None else config.overlong_max_length
    excess = (length - (longest - config.overlong_buffer)) / config.overlong_buffer
    term = min(-excess * config.overlong_factor, 0.0)
    return max(term, -config.overlong_factor) if config.overlong_floor else term


def total_score(rule: RuleScore, length: int, config: RewardConfig, max_response_length: int) -> Score:
    """The reward of a response of `length` tokens; accuracy and format stay free of the overlong term.

    A score that float32 cannot hold is none: as infinity it would spoil the advantages of its whole group.
    """
    overlong = overlong_term(length, config, max_response_length)
    if not abs(rule.score + overlong) <= FLOAT32_MAX:
        return missing_score("score beyond float32")
    return Score(rule.score + overlong, rule.accuracy, rule.format, overlong, extras=rule.extras)


def missing_score(reason: str) -> Score:
    """No score, and why: all numbers are NaN, so that nothing can take it for a zero."""
    return Score(math.nan, math.nan, math.nan, math.nan, reason)
